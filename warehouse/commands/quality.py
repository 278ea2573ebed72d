"""The command that shows what is flagged for its quality, and sets the limits."""

from typing import Annotated

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath
from warehouse.console import print_answer


def quality(
    feature_set: Annotated[
        str | None, typer.Argument(help="Feature set to look at; none: show the limits.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Limit to change: focus.lower=-2.5, or =none for no limit."),
    ] = None,
    worst: Annotated[int, typer.Option("--worst", min=0, help="How many flagged wells to list.")] = 10,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Show flagged fields, wells and plates of a feature set, and set the limits that decide; nothing is left out.

    Example: `wellhouse quality transfer --set focus.lower=-2.3`
    """
    from warehouse import quality as measures
    from warehouse.lake import Lake

    changes = [measures.parse_limit(text) for text in setting or []]
    with Lake.open(lake, read_only=not changes) as opened:
        if changes:
            measures.set_limits(opened, changes)
        tables = {"limits": measures.limits(opened)}
        if feature_set is not None:
            tables |= vars(measures.report(opened, feature_set, worst))
    if as_json:
        print_answer({name: table.to_dicts() for name, table in tables.items()}, True, "")
        return
    for name, table in tables.items():
        if table.height and (name != "limits" or feature_set is None or changes):
            print_answer(None, False, table, title=name.replace("_", " "))
