"""Commands that take profiles in and give them out."""

from pathlib import Path
from typing import Annotated

import typer

from warehouse.commands.options import (
    DEFAULT_LAKE,
    Annotations,
    AsJson,
    Batch,
    LakePath,
    Layout,
    Replace,
    Source,
)
from warehouse.console import pair, print_plates, progress_bars


def import_profiles(
    files: Annotated[list[Path], typer.Argument(help="CSV (.gz) or Parquet, one row a well.")],
    feature_set: Annotated[str, typer.Option("--feature-set", help="Name in the lake.")],
    layout: Layout = None,
    annotations: Annotations = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="Where a key is: plate=Assay_Barcode.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="File of feature names, one a line.")
    ] = None,
    source: Source = None,
    batch: Batch = None,
    replace: Replace = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Take well profiles in that were made elsewhere.

    Example: `wellhouse import-profiles BR0012.csv.gz --feature-set cellprofiler --layout platemaps/`
    """
    from warehouse import importers
    from warehouse.lake import Lake
    from warehouse.names import unknown
    from warehouse.screens import read_annotations, read_layout

    columns = dict(map(pair, column or []))
    for key in sorted(set(columns) - set(importers.KEY_COLUMNS)):
        raise unknown(key, "key of --column", importers.KEY_COLUMNS)
    settings = importers.ImportSettings(
        columns=columns,
        features=None if features is None else importers.read_feature_list(features),
        source=source,
        batch=batch,
    )
    with Lake.open(lake) as opened:
        wells = None if layout is None else read_layout(layout)
        labels = None if annotations is None else read_annotations(annotations)
        with progress_bars("plates") as progress:
            reports = importers.import_profiles(
                opened, files, feature_set, layout=wells, annotations=labels, settings=settings,
                replace=replace, progress=progress,
            )  # fmt: skip
    print_plates(reports, as_json)
