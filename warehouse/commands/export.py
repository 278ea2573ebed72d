"""The command that gives profiles out."""

from pathlib import Path
from typing import Annotated

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath, RecipeName
from warehouse.console import print_answer


def export(
    feature_set: Annotated[str, typer.Argument(help="Feature set to write out.")],
    out: Annotated[Path, typer.Argument(help="File: .parquet, .csv, .csv.gz, .h5ad or .npy.")],
    level: Annotated[
        str,
        typer.Option("--level", help="cell, field, well, treatment, compound, batch, source or consensus."),
    ] = "well",
    recipe: RecipeName = "none",
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            help="SQL predicate over the level's rows, after aggregation (`profile --where` chooses wells, before).",
        ),
    ] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="parquet, csv, h5ad or npy; default by the file's name.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Write profiles to a file, with the field's names of columns, the list of features, and where they come from.

    Example: `wellhouse export transfer wells.parquet --recipe standardize`
    """
    from warehouse.export import export as run
    from warehouse.lake import Lake

    with Lake.open(lake, read_only=True) as opened:
        report = run(
            opened, feature_set, out, level=level, recipe=recipe, where=where, format=file_format, overwrite=overwrite
        )  # fmt: skip
    files = [str(path) for path in report.files]
    document = {"rows": report.rows, "features": report.features, "files": files}
    print_answer(document, as_json, "\n".join([f"{report.rows} rows, {report.features} features", *files]))
