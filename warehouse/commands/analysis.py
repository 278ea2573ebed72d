"""Commands that correct profiles."""

from dataclasses import asdict
from typing import Annotated

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath, RecipeName
from warehouse.console import print_answer, print_records


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
