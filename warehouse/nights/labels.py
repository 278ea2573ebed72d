"""Layouts and labels that became known, or changed, after the plates they belong to were taken in."""

from pathlib import Path

import polars as pl

from warehouse import layouts
from warehouse.lake import Lake
from warehouse.nights.jobs import Job
from warehouse.nights.profiles import here
from warehouse.runs import Run
from warehouse.screens import read_annotations, read_layout
from warehouse.screens.identity import DEFAULT


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
    with here(job, ("layout",)) as local:
        assert local.layout is not None
        rows = read_layout(
            Path(local.layout), source=job.source, batch=job.batch, compound_column=job.compound_column
        )
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
    with here(job, ("annotations",)) as local:
        assert local.annotations is not None
        rows = read_annotations(Path(local.annotations), compound_column=job.compound_column)
    return layouts.put_annotations(lake, run, rows)
