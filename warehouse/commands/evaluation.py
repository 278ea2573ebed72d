"""Commands about scores, but for `evaluate`, which can use a GPU (cli.py); and how scores look."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath, RecipeName, Where
from warehouse.console import print_answer, with_values
from warehouse.errors import EvaluationError
from warehouse.names import unknown

if TYPE_CHECKING:
    import polars as pl

    from warehouse.evaluation import Board, Evaluation

FeatureSets = Annotated[
    list[str], typer.Argument(help="One feature set or more; its own recipe after a colon: transfer:center.")
]
Metrics = Annotated[
    str,
    typer.Option("--metrics", help="By name, with parameters: nsc,map,knn(k=11). All: `wellhouse metrics`."),
]
Labels = Annotated[
    str, typer.Option("--labels", help="moa, target, pathway, gene_family, compound or treatment.")
]
Level = Annotated[
    str | None,
    typer.Option(
        "--level",
        help="cell, field, well, treatment, compound, consensus, batch, source; default each metric's own.",
    ),
]
BatchKey = Annotated[str, typer.Option("--batch-key", help="What counts as a batch: batch, plate or source.")]
Baselines = Annotated[
    int,
    typer.Option(
        "--baselines", min=0, help="Draws of each baseline (one, where a metric clusters or trains); 0: none."
    ),
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Also print feature sets side by side, with intervals.")
]
Draws = Annotated[
    int, typer.Option("--draws", min=100, help="Draws of the bootstrap that makes the intervals.")
]
Clusters = Annotated[
    Path | None,
    typer.Option("--clusters", help="Clusters that a method brings itself: treatment, cluster."),
]
Folds = Annotated[Path | None, typer.Option("--folds", help="Given splits: compound, fold.")]
Pairs = Annotated[Path | None, typer.Option("--pairs", help="Known pairs: compound_a, compound_b.")]
Assays = Annotated[
    Path | None, typer.Option("--assays", help="Outcomes of assays: compound, assay, active (0 or 1).")
]
Device = Annotated[str, typer.Option("--device", help="Where to compare: cpu or gpu.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of all draws: metrics, baselines, intervals.")]
Details = Annotated[bool, typer.Option("--details", help="Also print one row a treatment or label.")]


def leaderboard(
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", help="Columns, as `evaluate` knows them; default those of the paper."),
    ] = None,
    labels: Labels = "moa",
    level: Level = None,
    where: Where = None,
    batch_key: BatchKey = "batch",
    clusters: Clusters = None,
    folds: Folds = None,
    pairs: Pairs = None,
    assays: Assays = None,
    seed: Seed = 0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Put all methods of the lake side by side: one row a feature set and recipe, the best score in bold.

    It reads the scores that `evaluate` stored, and computes none. Those that are no longer true are marked.

    Example: `wellhouse leaderboard --metrics nsc,nsb --markdown`
    """
    from warehouse.evaluation import Inputs
    from warehouse.evaluation import leaderboard as run
    from warehouse.evaluation.leaderboard import METRICS
    from warehouse.lake import Lake

    chosen = METRICS if metrics is None else names_of(metrics)
    with Lake.open(lake, read_only=True) as opened:
        board = run(
            opened, metrics=chosen, labels=labels, level=level, where=where, batch_key=batch_key,
            inputs=Inputs(clusters, folds, pairs, assays), seed=seed,
        )  # fmt: skip
    document = {
        "leaderboard": board.table.to_dicts(),
        **{
            name: [list(place) for place in sorted(getattr(board, name))]
            for name in ("best", "stale", "below")
        },
        "notes": list(board.notes),
    }
    if as_json:
        print_answer(document, True, "")
    elif markdown:
        print_answer(None, False, "\n\n".join([markdown_of(board), *board.notes]))
    else:
        print_board(board)


def metrics(as_json: AsJson = False) -> None:
    """List all metrics: what each answers, the level that it reads, its parameters, and the paper it is from.

    Example: `wellhouse metrics`
    """
    from warehouse.evaluation import metrics_frame

    table = metrics_frame()
    lines = [
        f"{one['metric']}{f'({inside})' if (inside := one['parameters']) else ''}\n"
        f"    {one['tells']}\n"
        f"    {one['level']}; goes by {one['needs'] or 'profiles alone'}; {one['better']} is better; {one['paper']}"
        for one in table.to_dicts()
    ]
    print_answer(table.to_dicts() if as_json else None, as_json, "\n".join(lines))


def feature_correlation(
    learned: Annotated[str, typer.Argument(help="Feature set whose features have no names.")],
    named: Annotated[str, typer.Argument(help="Feature set whose features say what they measure.")],
    recipe: RecipeName = "none",
    named_recipe: Annotated[
        str, typer.Option("--named-recipe", help="Recipe of the named feature set.")
    ] = "none",
    where: Where = None,
    top: Annotated[
        int, typer.Option("--top", min=1, help="Named features to list for each learned one.")
    ] = 5,
    method: Annotated[str, typer.Option("--method", help="pearson, or spearman of ranks.")] = "pearson",
    by: Annotated[
        str | None,
        typer.Option("--by", help="Best of each compartment, channel or kind of CellProfiler's features."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File: .parquet, .csv or .csv.gz; default a table.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="Rows of the table for people.")] = 20,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Say what learned features measure: the named features that each goes with, over the wells that both have.

    Example: `wellhouse feature-correlation transfer cellprofiler --top 1 --out meaning.csv`
    """
    from warehouse.evaluation import feature_correlation as run
    from warehouse.export.tables import place, write_table
    from warehouse.lake import Lake

    if out is not None:
        place(out, overwrite=overwrite)  # before the work
    with Lake.open(lake, read_only=True) as opened:
        made = run(
            opened, learned, named, recipe=recipe, named_recipe=named_recipe, where=where, top=top, method=method,
            by=by,
        )  # fmt: skip
    table = made.table
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    if out is not None:
        path = write_table(table, out, overwrite=overwrite)
        print_answer({"rows": table.height, "files": [str(path)]}, as_json, f"{table.height} rows\n{path}")
        return
    print_answer(table.to_dicts() if as_json else None, as_json, table.head(limit))
    if table.height > limit and not as_json:
        typer.echo(f"note: {limit} of {table.height} rows; -n shows more, --out writes all", err=True)


def names_of(metrics: str) -> list[str]:
    """Split a list of metrics at the commas outside of parentheses.

    Raises:
        EvaluationError: it names none.
    """
    from warehouse.evaluation.asked import split

    named = split(metrics)
    if not named:
        message = f"--metrics {metrics!r} names no metric: give some, such as nsc,map"
        raise EvaluationError(message)
    return named


def is_gpu(device: str) -> bool:
    """Tell whether to compare on a GPU.

    Raises:
        UnknownNameError: it is neither cpu nor gpu.
    """
    if device not in ("cpu", "gpu"):
        raise unknown(device, "device", ("cpu", "gpu"))
    return device == "gpu"


def check_comparison(feature_sets: Sequence[str], compare: bool) -> None:
    """Refuse to compare what is alone, before there is any work.

    Raises:
        EvaluationError: one feature set was given.
    """
    if compare and len(set(feature_sets)) < 2:
        message = f"--compare {' '.join(feature_sets)}: give two feature sets or more, or two recipes of one (a:center)"
        raise EvaluationError(message)


def print_evaluations(
    made: "Sequence[Evaluation]", comparison: "pl.DataFrame | None", details: bool, as_json: bool
) -> None:
    """Print scores beside their baselines; then feature sets side by side, and rows, where they were asked for.

    Raises:
        SystemExit: a metric could not be scored; the others are stored and printed.
    """
    from warehouse.evaluation import as_frame, details_frame

    table = as_frame(made)
    document: dict[str, Any] = {"evaluations": table.to_dicts()}
    summaries = {
        f"{each.feature_set}:{each.recipe} {each.asked.text}": each.asked.metric.summary(each.score)
        for each in made
        if each.asked.metric.summary is not None and each.failure is None
    }
    if summaries:
        document["summaries"] = {name: summary.to_dicts() for name, summary in summaries.items()}
    if comparison is not None:
        document["comparison"] = comparison.to_dicts()
    if details:
        document["details"] = [details_frame(evaluation).to_dicts() for evaluation in made]
    for note in dict.fromkeys(note for evaluation in made for note in evaluation.notes):
        typer.echo(f"note: {note}", err=True)
    failures = [evaluation.failure for evaluation in made if evaluation.failure is not None]
    print_answer(document, as_json, with_values(table.drop("snapshot")))
    if not as_json:
        for name, summary in summaries.items():
            print_answer(None, False, summary, title=name)
        _print_more(made, comparison, details)
    for failure in failures:
        typer.echo(f"error: {failure}", err=True)
    if failures:
        raise SystemExit(1)


def _print_more(made: "Sequence[Evaluation]", comparison: "pl.DataFrame | None", details: bool) -> None:
    from warehouse.evaluation import details_frame

    if comparison is not None:
        print_answer(None, False, with_values(comparison), title="side by side")
    for evaluation in made if details else ():
        if evaluation.failure is not None:
            continue
        name = f"{evaluation.feature_set}:{evaluation.recipe} {evaluation.asked.text}"
        print_answer(None, False, details_frame(evaluation), title=name)


def print_board(board: "Board") -> None:
    """Print a leaderboard for people, and its notes below."""
    print_answer(None, False, _marked(board, "[bold]", "[/bold]"))
    for note in board.notes:
        print_answer(None, False, note)


def markdown_of(board: "Board") -> str:
    """Write a leaderboard as a table in Markdown."""
    table = _marked(board, "**", "**")
    rows = [table.columns, ["---"] * table.width, *table.rows()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _marked(board: "Board", before: str, after: str) -> "pl.DataFrame":
    """Write the scores as texts: the best between two marks, † behind stale ones, ‡ where chance does as well."""
    import polars as pl

    def text(row: int, column: str, value: object) -> str:
        if not isinstance(value, float):
            return "" if value is None else str(value)
        place = row, column
        shown = f"{value:.3f}" + "†" * (place in board.stale) + "‡" * (place in board.below)
        return f"{before}{shown}{after}" if place in board.best else shown

    return pl.DataFrame(
        {
            name: pl.Series([text(row, name, value) for row, value in enumerate(column)], dtype=pl.String)
            for name, column in board.table.to_dict(as_series=False).items()
        }
    )
