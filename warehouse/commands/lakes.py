"""Commands on the lake as a whole: make it, query it, look at it."""

import sys
from typing import Annotated

import typer

from warehouse.commands.options import DEFAULT_LAKE, AsJson, AsOf, LakePath
from warehouse.console import print_answer, print_status


def init(
    lake: Annotated[
        str, typer.Argument(help="Folder of the new lake, or postgres:host=… dbname=… of a team's.")
    ] = DEFAULT_LAKE,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Data of a team lake: s3://bucket/prefix, or a shared folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a lake, with templates of the CSV files that describe a screen.

    Example: `wellhouse init screens.lake`
    """
    from warehouse.lake import Lake
    from warehouse.screens import write_templates

    with Lake.create(lake, data=data) as made:
        templates = made.folder / "templates"
        if not templates.exists():
            write_templates(templates)
        answer = {"lake": made.address, "snapshot": made.snapshot(), "templates": str(templates)}
    print_answer(answer, as_json, f"lake      {answer['lake']}\ntemplates {answer['templates']}")


def sql(
    query: Annotated[
        str,
        typer.Argument(
            help="One query, or - to read it: feature sets are schemas, shared tables are in main."
        ),
    ],
    as_of: AsOf = None,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Ask the lake in SQL; it is opened read-only.

    `wellhouse profile … --show-sql` prints the query of a level, from cells up if asked, to run or to change here.

    Example: `wellhouse sql "SELECT treatment, well_count FROM transfer.treatments"`
    """
    from warehouse.query import sql as run
    from warehouse.upkeep.moments import open_at

    text = sys.stdin.read() if query == "-" else query
    with open_at(lake, as_of) as opened:
        table = run(opened, text)
    print_answer(table.to_dicts() if as_json else None, as_json, table)


def status(as_of: AsOf = None, lake: LakePath = DEFAULT_LAKE, as_json: AsJson = False) -> None:
    """Show what the lake holds, what was rejected and why, and whether its checks pass.

    Example: `wellhouse status --lake screens.lake`
    """
    from warehouse.status import status as run
    from warehouse.upkeep.moments import open_at

    with open_at(lake, as_of) as opened:
        state = run(opened)
    print_status(state, as_json)
    if state.faults:
        raise typer.Exit(1)
