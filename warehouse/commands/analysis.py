"""Commands that correct profiles and score them."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath, RecipeName, Where
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
