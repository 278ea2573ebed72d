"""Commands that take profiles in and give them out."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from warehouse.commands.options import (
    DEFAULT_LAKE,
    Annotations,
    AsJson,
    Batch,
    CompoundColumn,
    LakePath,
    Layout,
    Replace,
    Source,
)
from warehouse.console import pair, print_plates, progress_bars


def import_profiles(
    files: Annotated[list[Path], typer.Argument(help="Files and folders, of any known format.")],
    feature_set: Annotated[str, typer.Option("--feature-set", help="Name in the lake.")],
    format_name: Annotated[
        str | None,
        typer.Option("--format", help="Where it is not to be recognised: docs/profile_formats.md."),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option("--level", help="What a row is, where columns do not say: cell, field, well."),
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option("--metadata", help="Table of the rows of a plain matrix, in its order.")
    ] = None,
    compartments: Annotated[
        str | None, typer.Option("--compartments", help="CellProfiler's tables of a cell: Cells,Nuclei.")
    ] = None,
    align: Annotated[
        str, typer.Option("--align", help="Where features differ: refuse, reject, intersect, split.")
    ] = "refuse",
    layout: Layout = None,
    annotations: Annotations = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="Where a key is: plate=Assay_Barcode.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="File of feature names, one a line.")
    ] = None,
    field_operator: Annotated[
        str, typer.Option("--field-operator", help="Cells to field: median, mean, trimmed_mean.")
    ] = "median",
    well_operator: Annotated[
        str,
        typer.Option("--well-operator", help="Fields to well: mean, median, trimmed_mean, weighted_mean."),
    ] = "mean",
    source: Source = None,
    batch: Batch = None,
    plate: Annotated[
        str | None, typer.Option("--plate", help="Name of the plate, where files name none.")
    ] = None,
    well: Annotated[str | None, typer.Option("--well", help="The well, where files name none.")] = None,
    compound_column: CompoundColumn = None,
    replace: Replace = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Take profiles in that were made elsewhere: of wells, fields or single cells.

    Example: `wellhouse import-profiles BR0012.csv.gz --feature-set cellprofiler --layout platemaps/`
    """
    from warehouse import importers
    from warehouse.formats.keys import as_level
    from warehouse.lake import Lake
    from warehouse.names import unknown
    from warehouse.nights.jobs import ProfilesJob, text
    from warehouse.nights.take import put_failed
    from warehouse.runs import Run, counts_of, outcome_of
    from warehouse.screens import read_annotations, read_layout

    columns = dict(map(pair, column or []))
    for key in sorted(set(columns) - set(importers.KEY_COLUMNS)):
        raise unknown(key, "key of --column", importers.KEY_COLUMNS)
    settings = importers.ImportSettings(
        columns, None if features is None else importers.read_feature_list(features), source, batch, plate,
        well, as_level(level), metadata, tuple(compartments.split(",")) if compartments else (),
        field_operator, well_operator, align,
    )  # fmt: skip
    job = ProfilesJob(
        text(files[0]), feature_set, format_name, level, align, text(layout), text(annotations), columns,
        text(features), text(metadata), source, batch, plate, well, settings.compartments, field_operator,
        well_operator, compound_column, replace=replace,
    )  # fmt: skip
    run = Run("import-profiles", {"files": [str(path) for path in files], "feature_set": feature_set})
    with Lake.open(lake) as opened:
        wells = None if layout is None else read_layout(layout, compound_column=compound_column)
        labels = (
            None if annotations is None else read_annotations(annotations, compound_column=compound_column)
        )
        with progress_bars("plates") as progress:
            reports = importers.import_profiles(
                opened, files, feature_set, layout=wells, annotations=labels, settings=settings,
                replace=replace, progress=progress, format_name=format_name, run=run,
            )  # fmt: skip
        for report in reports:
            put_failed(opened, run, dataclasses.replace(job, path=text(report.path)), [report])
        run.finish(opened, counts_of(reports), outcome_of(reports))
    for report in reports:
        for note in report.notes:
            print(f"note: plate {report.plate}: {note}", file=sys.stderr)
    print_plates(reports, as_json)
