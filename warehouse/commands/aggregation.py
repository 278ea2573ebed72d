"""The command that shows by which operators a feature set is aggregated, and chooses those of the views."""

from typing import Annotated

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath
from warehouse.console import print_answer


def operators(
    feature_set: Annotated[str, typer.Argument(help="Feature set to look at, or to choose for.")],
    treatment: Annotated[
        str | None,
        typer.Option(
            "--treatment", help="Wells to treatment, compound, batch, source: mean, median, trimmed_mean."
        ),
    ] = None,
    consensus: Annotated[
        str | None,
        typer.Option("--consensus", help="To consensus: mean_of_sources, mean, median, trimmed_mean, modz."),
    ] = None,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Show how each level of a feature set is aggregated, and choose it for the levels above wells.

    Nothing that is stored changes: views compute what they hold whenever they are asked.

    Example: `wellhouse operators transfer --treatment median --consensus modz`
    """
    import polars as pl

    from warehouse import feature_sets
    from warehouse.lake import Lake

    is_change = treatment is not None or consensus is not None
    with Lake.open(lake, read_only=not is_change) as opened:
        if is_change:
            feature_sets.set_operators(opened, feature_set, treatment=treatment, consensus=consensus)
        found = feature_sets.operators_of_levels(opened, feature_set)
    rows = [{"level": level, "operator": operator} for level, operator in found.items()]
    print_answer({"feature_set": feature_set, "operators": rows}, as_json, pl.DataFrame(rows))
