"""The command that computes a level anew: over chosen wells, or from cells."""

from pathlib import Path
from typing import Annotated

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath, RecipeName
from warehouse.console import print_answer


def profile(
    feature_set: Annotated[str, typer.Argument(help="Feature set to compute a level of.")],
    level: Annotated[
        str,
        typer.Option("--level", help="cell, field, well, treatment, compound, batch, source or consensus."),
    ] = "treatment",
    recipe: RecipeName = "none",
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            help="SQL predicate that chooses wells before they are aggregated: columns of wells, moa, target, pathway, "
            "gene_family, is_flagged. (`export --where` chooses among the level's rows, after.)",
        ),
    ] = None,
    passing: Annotated[bool, typer.Option("--passing", help="Only wells that are not flagged.")] = False,
    from_cells: Annotated[
        bool, typer.Option("--from-cells", help="Compute fields and wells anew, from the cells in the lake.")
    ] = False,
    show_sql: Annotated[
        bool, typer.Option("--show-sql", help="Print the whole query, and do not run it.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File: .parquet, .csv, .csv.gz, .h5ad or .npy; default a table."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="Rows of the table for people.")] = 20,
    numbers: Annotated[int, typer.Option("--numbers", min=0, help="Features of the table for people.")] = 3,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Compute a level over some of the wells, or from cells up; nothing is stored.

    Example: `wellhouse profile transfer --where "batch = 'Week1'" --passing --out week1.parquet`
    """
    from warehouse import slices
    from warehouse.export import write
    from warehouse.lake import Lake

    part = slices.Slice(where, passing, from_cells)
    with Lake.open(lake, read_only=True) as opened:
        if show_sql:
            query = slices.text(slices.select(opened, feature_set, level=level, recipe=recipe, part=part))
            print_answer({"sql": query}, as_json, query)
            return
        if out is not None:
            with opened.reading():
                chosen = slices.select(opened, feature_set, level=level, recipe=recipe, part=part)
                report = write(opened, chosen, out, overwrite=overwrite)
            files = [str(path) for path in report.files]
            document = {"rows": report.rows, "features": report.features, "files": files}
            print_answer(
                document, as_json, "\n".join([f"{report.rows} rows, {report.features} features", *files])
            )
            return
        found = slices.read(opened, feature_set, level=level, recipe=recipe, part=part)
    if as_json:
        pairs = zip(found.rows.to_dicts(), found.matrix.tolist(), strict=True)
        rows = [{**row, "embedding": vector} for row, vector in pairs]
        print_answer({"features": found.feature_names, "rows": rows}, True, "")
        return
    print_answer(None, False, slices.shown(found, limit, numbers))
    if len(found.rows) > limit:
        typer.echo(f"note: {limit} of {len(found.rows)} rows; -n shows more, --out writes all", err=True)
