"""Commands that search, but for `nearest`, which can read images (cli.py); and how answers look."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, AsOf, LakePath, RecipeName, Where
from warehouse.console import print_answer, print_records, with_values

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from warehouse.nearest import Answer, Searcher

Level = Annotated[
    str,
    typer.Option("--level", help="treatment, compound, consensus, well, cell, field, batch or source."),
]
K = Annotated[int, typer.Option("-k", help="How many neighbours.")]
NotSameCompound = Annotated[bool, typer.Option("--not-same-compound", help="Leave its own compound out.")]
NotSameBatch = Annotated[
    bool, typer.Option("--not-same-batch", help="Leave out what shares a batch with it.")
]
NotSamePlate = Annotated[
    bool, typer.Option("--not-same-plate", help="Leave out what shares a plate with it.")
]
NotSamePosition = Annotated[
    bool, typer.Option("--not-same-position", help="Leave out what shares a well position with it.")
]
Device = Annotated[str, typer.Option("--device", help="Where to compare: cpu or gpu.")]
Out = Annotated[Path | None, typer.Option("--out", help="File: .parquet, .csv or .csv.gz; default a table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]
Limit = Annotated[int, typer.Option("-n", "--limit", min=1, help="Rows of the table for people.")]


def index(
    feature_set: Annotated[str, typer.Argument(help="Feature set to index.")],
    recipe: RecipeName = "none",
    level: Level = "treatment",
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", help="flat (exact), hnsw, ivf or ivf_pq; default that of the index there, else flat."
        ),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            "--recall", help="Share of the exact neighbours that hnsw, ivf, ivf_pq must find: 0.99."
        ),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build anew, also where plates can be added.")
    ] = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Build the similarity index that `nearest` asks, or add to it the plates that came since.

    Example: `wellhouse index transfer --recipe standardize --level well --kind hnsw`
    """
    from warehouse.lake import Lake
    from warehouse.nearest import build

    with Lake.open(lake, read_only=True) as opened:
        report = build(
            opened, feature_set, recipe=recipe, level=level, kind=kind, recall=recall, rebuild=rebuild
        )
    print_records([report], as_json)


def neighbours(
    feature_set: Annotated[str, typer.Argument(help="Feature set to search.")],
    recipe: RecipeName = "none",
    level: Level = "treatment",
    k: K = 20,
    not_same_compound: NotSameCompound = False,
    not_same_batch: NotSameBatch = False,
    not_same_plate: NotSamePlate = False,
    not_same_position: NotSamePosition = False,
    where: Where = None,
    out: Out = None,
    overwrite: Overwrite = False,
    limit: Limit = 20,
    device: Device = "cpu",
    as_of: AsOf = None,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Find the nearest neighbours of every row of a level: the k-NN graph, as a table.

    Example: `wellhouse neighbours transfer --recipe standardize -k 5 --not-same-compound --out graph.parquet`
    """
    from warehouse.nearest import Filters

    filters = Filters(not_same_compound, not_same_batch, not_same_plate, not_same_position, where)
    _answer(
        lambda searcher: searcher.graph(k, filters), (feature_set, recipe, level, device), lake, as_of, out,
        overwrite, limit, as_json,
    )  # fmt: skip


def pairs(
    feature_set: Annotated[str, typer.Argument(help="Feature set to search.")],
    threshold: Annotated[
        float, typer.Option("--threshold", help="Least similarity (cosine) of a pair.")
    ] = 0.9,
    recipe: RecipeName = "none",
    level: Level = "treatment",
    not_same_compound: NotSameCompound = False,
    not_same_batch: NotSameBatch = False,
    not_same_plate: NotSamePlate = False,
    not_same_position: NotSamePosition = False,
    where: Where = None,
    out: Out = None,
    overwrite: Overwrite = False,
    limit: Limit = 20,
    device: Device = "cpu",
    as_of: AsOf = None,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Find all pairs that are at least so similar, each once, the most similar first.

    Example: `wellhouse pairs transfer --recipe standardize --threshold .9 --not-same-compound`
    """
    from warehouse.nearest import Filters

    filters = Filters(not_same_compound, not_same_batch, not_same_plate, not_same_position, where)
    _answer(
        lambda searcher: searcher.pairs(threshold, filters), (feature_set, recipe, level, device), lake, as_of, out,
        overwrite, limit, as_json,
    )  # fmt: skip


def novelty(
    feature_set: Annotated[str, typer.Argument(help="Feature set to search.")],
    labels: Annotated[str, typer.Option("--labels", help="moa, target, pathway or gene_family.")] = "moa",
    recipe: RecipeName = "none",
    level: Level = "treatment",
    out: Out = None,
    overwrite: Overwrite = False,
    limit: Limit = 20,
    device: Device = "cpu",
    as_of: AsOf = None,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Find what looks like nothing that is annotated: each row without a label, and the nearest one with.

    Example: `wellhouse novelty transfer --recipe standardize --labels moa`
    """
    _answer(
        lambda searcher: searcher.novelty(labels), (feature_set, recipe, level, device), lake, as_of, out,
        overwrite, limit, as_json,
    )  # fmt: skip


def _answer(
    ask: "Callable[[Searcher], pl.DataFrame]",
    what: tuple[str, str, str, str],
    lake: str,
    as_of: str | None,
    out: Path | None,
    overwrite: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Search, and write the table to a file, or print it: all of it as JSON, its first rows for people."""
    from warehouse.export.tables import place, write_table
    from warehouse.nearest import Searcher
    from warehouse.upkeep.moments import open_at

    if out is not None:
        place(out, overwrite=overwrite)  # before the work
    with open_at(lake, as_of) as opened:
        searcher = Searcher(opened, *what)
        table = ask(searcher)
    if searcher.note is not None:
        typer.echo(f"note: {searcher.note}", err=True)
    if out is not None:
        path = write_table(table, out, overwrite=overwrite)
        print_answer({"rows": table.height, "files": [str(path)]}, as_json, f"{table.height} rows\n{path}")
        return
    print_answer(table.to_dicts() if as_json else None, as_json, with_values(table.head(limit)))
    if table.height > limit and not as_json:
        typer.echo(f"note: {limit} of {table.height} rows; -n shows more, --out writes all", err=True)


def print_nearest(answer: "Answer", k: int, as_json: bool) -> None:
    """Print neighbours, then which labels are frequent among them; what a person should know goes to stderr."""
    for note in answer.notes:
        typer.echo(f"note: {note}", err=True)
    if answer.neighbours.height < k:
        typer.echo(f"note: {k} were asked for, {answer.allowed} are there to choose from", err=True)
    document = {
        "query": answer.query,
        "allowed": answer.allowed,
        "neighbours": answer.neighbours.to_dicts(),
        "enrichment": answer.enrichment.to_dicts(),
        "notes": list(answer.notes),
    }
    said = [
        name for name in ("compound", "concentration", "unit") if "treatment" in answer.neighbours.columns
    ]
    print_answer(document, as_json, with_values(answer.neighbours.drop(said, strict=False)))
    if not as_json and answer.enrichment.height:
        kind = answer.enrichment["kind"][0]
        table = answer.enrichment.filter(kind=kind).drop("kind")
        print_answer(None, False, table.head(10), title=f"enrichment of {kind}")
