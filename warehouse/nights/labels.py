"""Layouts and labels that became known, or changed, after the plates they belong to were taken in."""

import polars as pl

from warehouse import layouts
from warehouse.lake import Lake
from warehouse.nights.jobs import Job
from warehouse.runs import Run
from warehouse.screens import read_annotations, read_layout
from warehouse.screens.identity import DEFAULT
from warehouse.screens.remote import at_hand


def layout_of(job: Job) -> pl.DataFrame:
    """Read the layout of a job, which may lie on S3.

    Raises:
        ScreenError: it cannot be read.
    """
    assert job.layout is not None
    with at_hand(job.layout) as ((path, _, _), _):
        return read_layout(path, source=job.source, batch=job.batch, compound_column=job.compound_column)


def relabel(lake: Lake, run: Run, job: Job) -> int:
    """Bring the wells of plates that are in up to date with the layout of a job.

    A layout may leave source and batch out, as the lake knows them by now; plates that the lake lacks bring their
    wells when they come.

    Returns:
        The number of plates whose layout is another now.

    Raises:
        ScreenError: the layout cannot be read.
    """
    if job.layout is None:
        return 0
    rows = layout_of(job)
    held = lake.frame("SELECT source AS held_source, batch AS held_batch, plate FROM main.plates")
    fits = (pl.col("source") == pl.col("held_source")) | (pl.col("source") == DEFAULT)
    fits &= (pl.col("batch") == pl.col("held_batch")) | (pl.col("batch") == DEFAULT)
    known = rows.join(held, on="plate", how="inner").filter(fits)
    known = known.with_columns(source="held_source", batch="held_batch").select(rows.columns)
    if known.is_empty():
        return 0
    report = layouts.put_layout(lake, run, known)
    return report.plates_added + report.plates_relabelled


def label(lake: Lake, run: Run, job: Job) -> int:
    """Add the labels of a job that the lake lacks, and return how many.

    Raises:
        ScreenError: the annotations cannot be read.
    """
    if job.annotations is None:
        return 0
    with at_hand(job.annotations) as ((path, _, _), _):
        rows = read_annotations(path, compound_column=job.compound_column)
    return layouts.put_annotations(lake, run, rows)
