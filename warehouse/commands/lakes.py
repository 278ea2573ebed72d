"""Commands on the lake as a whole: make it, query it, look at it."""

from typing import Annotated

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath
from warehouse.console import print_answer, print_status


def init(
    lake: Annotated[str, typer.Argument(help="Folder of the new lake.")] = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Make a lake, with templates of the CSV files that describe a screen.

    Example: `wellhouse init screens.lake`
    """
    from warehouse.lake import Lake
    from warehouse.screens import write_templates

    with Lake.create(lake) as made:
        templates = made.path / "templates"
        if not templates.exists():
            write_templates(templates)
        answer = {"lake": str(made.path), "snapshot": made.snapshot(), "templates": str(templates)}
    print_answer(answer, as_json, f"lake      {answer['lake']}\ntemplates {answer['templates']}")


def sql(
    query: Annotated[
        str, typer.Argument(help="One query; feature sets are schemas, shared tables are in main.")
    ],
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Ask the lake in SQL; it is opened read-only.

    Example: `wellhouse sql "SELECT treatment, well_count FROM transfer.treatments"`
    """
    from warehouse.lake import Lake
    from warehouse.query import sql as run

    with Lake.open(lake, read_only=True) as opened:
        table = run(opened, query)
    print_answer(table.to_dicts() if as_json else None, as_json, table)


def status(lake: LakePath = DEFAULT_LAKE, as_json: AsJson = False) -> None:
    """Show what the lake holds, what was rejected and why, and whether its checks pass.

    Example: `wellhouse status --lake screens.lake`
    """
    from warehouse.lake import Lake
    from warehouse.status import status as run

    with Lake.open(lake, read_only=True) as opened:
        state = run(opened)
    print_status(state, as_json)
    if state.faults:
        raise typer.Exit(1)
