"""Commands that correct profiles, search among them, and score them."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, AsOf, LakePath, RecipeName, Where
from warehouse.console import print_answer, print_records
from warehouse.errors import WellhouseError


def correct(
    feature_set: Annotated[str, typer.Argument(help="Feature set to correct.")],
    recipe: RecipeName = "standardize",
    refit: Annotated[bool, typer.Option("--refit", help="Fit again on everything.")] = False,
    memory_mb: Annotated[
        int, typer.Option("--memory-mb", help="Profiles that take more are worked on in a temporary file.")
    ] = 4096,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Correct wells with a recipe; its fit is stored, and later plates are corrected with it.

    `wellhouse recipes` lists the recipes that have a name, and the steps that others are made of.

    Example: `wellhouse correct transfer --recipe "mad_robustize+sphering(lambda=0.01)"`
    """
    from warehouse.correct import correct as run
    from warehouse.lake import Lake

    with Lake.open(lake) as opened:
        report = run(opened, feature_set, recipe, refit=refit, memory_mb=memory_mb)
    for what, names in (
        ("constant in the fit", report.constant_features),
        ("dropped", report.features_dropped),
    ):
        if names:
            typer.echo(
                f"note: {len(names)} features {what}: {', '.join(names[:5])}{', …' * (len(names) > 5)}",
                err=True,
            )
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    for plate in report.plates_left_out:
        typer.echo(f"note: plate left out: {plate}", err=True)
    print_records([report], as_json)


def recipes(as_json: AsJson = False) -> None:
    """List the recipes that have a name, and the steps that recipes are made of with their parameters.

    Example: `wellhouse recipes`
    """
    from warehouse.recipes import NAMED
    from warehouse.steps import STEPS

    named = [asdict(recipe) for recipe in NAMED]
    steps = [
        {
            "step": f"{step.name}({', '.join(f'{key}={value}' for key, value in step().parameters.items())})",
            "does": (step.__doc__ or "").split("\n")[0],
            "paper": step.paper,
        }
        for step in STEPS
    ]
    lines = [f"{one['name']}: {one['description']} ({one['paper']})\n    {one['text']}" for one in named]
    lines += ["", "Steps, with their parameters at their defaults:"]
    lines += [f"  {one['step']}\n    {one['does']}" for one in steps]
    print_answer({"recipes": named, "steps": steps}, as_json, "\n".join(lines))


def index(
    feature_set: Annotated[str, typer.Argument(help="Feature set to index.")],
    recipe: RecipeName = "none",
    level: Annotated[str, typer.Option("--level", help="treatment or consensus.")] = "treatment",
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Build the similarity index that `nearest` asks.

    Example: `wellhouse index transfer --recipe standardize`
    """
    from warehouse import nearest as search
    from warehouse.lake import Lake

    with Lake.open(lake, read_only=True) as opened:
        report = search.build(opened, feature_set, recipe=recipe, level=level)
    print_records([report], as_json)


def nearest(
    treatment: Annotated[str, typer.Argument(help="Treatment, as compound@concentration.")],
    feature_set: Annotated[str, typer.Option("--feature-set", help="Feature set to search.")],
    recipe: RecipeName = "none",
    k: Annotated[int, typer.Option("-k", help="How many neighbours.")] = 20,
    not_same_compound: Annotated[
        bool, typer.Option("--not-same-compound", help="Leave its own compound out.")
    ] = False,
    not_same_batch: Annotated[
        bool, typer.Option("--not-same-batch", help="Leave its own batches out.")
    ] = False,
    where: Where = None,
    level: Annotated[str, typer.Option("--level", help="treatment or consensus.")] = "treatment",
    as_of: AsOf = None,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Find the treatments that look most like one; exclusions apply before ranking.

    Example: `wellhouse nearest taxol@0.3uM --feature-set transfer --recipe standardize --not-same-compound`
    """
    from warehouse import nearest as search
    from warehouse.upkeep.moments import open_at

    with open_at(lake, as_of) as opened:
        answer = search.nearest(
            opened, treatment, feature_set, recipe=recipe, level=level, k=k, where=where,
            not_same_compound=not_same_compound, not_same_batch=not_same_batch,
        )  # fmt: skip
    if answer.note:
        typer.echo(f"note: {answer.note}", err=True)
    if answer.neighbours.height < k:
        typer.echo(f"note: {k} were asked for, {answer.allowed} are there to choose from", err=True)
    document = {"query": answer.query, "allowed": answer.allowed, "neighbours": answer.neighbours.to_dicts()}
    print_answer(document, as_json, search.for_people(answer.neighbours))


def evaluate(
    feature_sets: Annotated[list[str], typer.Argument(help="One feature set or more.")],
    recipe: RecipeName = "none",
    metrics: Annotated[
        str, typer.Option("--metrics", help="nsc, nsb, map, map_vs_controls.")
    ] = "nsc,nsb,map",
    labels: Annotated[str, typer.Option("--labels", help="moa, target, pathway or gene_family.")] = "moa",
    where: Where = None,
    details: Annotated[
        bool, typer.Option("--details", help="Also print one row a treatment or label.")
    ] = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Score feature sets and store the scores with the snapshot that they were computed on.

    Example: `wellhouse evaluate transfer --recipe standardize --metrics nsc,nsb --labels moa`
    """
    from warehouse.evaluate import as_frame, details_frame
    from warehouse.evaluate import evaluate as run
    from warehouse.lake import Lake

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names:
        message = f"--metrics {metrics!r} names no metric: give some, such as nsc,map"
        raise WellhouseError(message)
    with Lake.open(lake) as opened:
        made = run(opened, feature_sets, names, recipe=recipe, labels=labels, where=where)
    table = as_frame(made)
    document: dict[str, Any] = {"evaluations": table.to_dicts()}
    if details:
        document["details"] = [details_frame(evaluation).to_dicts() for evaluation in made]
    print_answer(document, as_json, table)
    if details and not as_json:
        for evaluation in made:
            print_answer(None, False, details_frame(evaluation))
