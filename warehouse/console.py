"""How answers look: tables and bars for people, one JSON document for machines. Nothing heavy at import."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from warehouse.errors import WellhouseError

if TYPE_CHECKING:
    import polars as pl

    from warehouse.nights.config import NightConfig
    from warehouse.nights.night import Night
    from warehouse.nights.plan import Plan
    from warehouse.status import Status


@contextmanager
def progress_bars(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr: the plate at hand, what is done of it, and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def report(name: str, done: int, total: int) -> None:
        bar.start()  # only now: what is refused before any work is one line on stderr, without an empty bar
        key = name if unit == "images" else unit
        if key not in tasks:
            tasks[key] = bar.add_task(name, total=total)
        bar.update(tasks[key], completed=done, description=name)

    try:
        yield report
    finally:
        if tasks:
            bar.stop()


def print_records(records: list[Any], as_json: bool) -> None:
    """Print dataclasses of one kind as a table, or as a JSON list."""
    from dataclasses import asdict

    import polars as pl

    rows = [asdict(record) for record in records]
    shown = [
        {key: value for key, value in row.items() if not isinstance(value, tuple | list) and key != "reason"}
        for row in rows
    ]
    print_answer(rows, as_json, pl.DataFrame(shown))


def print_plates(reports: list[Any], as_json: bool) -> None:
    """Print one row a plate; those that failed also as an error line each, and the command then ends with 1.

    Raises:
        SystemExit: a plate failed.
    """
    failed = [report for report in reports if report.outcome == "failed"]
    if len(failed) < len(reports) or as_json:
        print_records(reports, as_json)
    for report in failed:
        print(f"error: {report.reason}", file=sys.stderr)
    if failed:
        print(
            f"note: {len(failed)} in quarantine: mend what is wrong, then `wellhouse retry PLATE`",
            file=sys.stderr,
        )
        sys.exit(1)


def print_answer(
    document: object, as_json: bool, table: "pl.DataFrame | str", title: str | None = None
) -> None:
    """Print a JSON document for machines, or a table (or text) for people."""
    if as_json:
        print(json.dumps(_plain(document), default=str, allow_nan=False))
        return
    if isinstance(table, str):
        print(table)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:  # in a pipe or a file nothing may be cut to a width that is not there
        console = Console(width=max(200, 24 * table.width))
    grid = Table(title=title, title_justify="left", header_style="bold")
    for name, kind in table.schema.items():
        grid.add_column(name, justify="right" if kind.is_numeric() else "left", overflow="fold")
    for row in table.iter_rows():
        grid.add_row(*map(_cell, row))
    console.print(grid)


def print_step(text: str, table: "pl.DataFrame | None" = None) -> None:
    """Print a step of a walk-through, and its table where it has one."""
    print(text)
    if table is not None:
        print_answer(None, False, table)


def print_status(state: "Status", as_json: bool) -> None:
    """Print the state of a lake: counts, then a table each for feature sets, recipes, rejections and faults."""
    names = ("feature_sets", "recipes", "rejections", "quarantine", "runs")
    frames = {name: getattr(state, name) for name in names}
    if as_json:
        faults = {name: rows.to_dicts() for name, rows in state.faults.items()}
        tables = {name: frame.to_dicts() for name, frame in frames.items()}
        document = {
            "lake": state.lake,
            "snapshot": state.snapshot,
            **state.shared,
            **tables,
            "faults": faults,
        }
        print_answer(document, True, "")
        return
    counts = ", ".join(f"{count} {name}" for name, count in state.shared.items())
    print(f"{state.lake}, snapshot {state.snapshot}: {counts}")
    for name, frame in frames.items():
        if frame.height:
            print_answer(None, False, frame, title=name.replace("_", " "))
    print("checks: " + ("all pass" if not state.faults else f"FAULTS in {', '.join(state.faults)}"))
    for name, rows in state.faults.items():
        print_answer(None, False, rows, title=name)


def print_plan(plan: "Plan", config: "NightConfig", as_json: bool) -> None:
    """Print what a night would do: plates to take in and plates that wait, then the steps that follow."""
    import polars as pl

    table = plan.frame()
    rows = [
        (step, after.feature_set, ", ".join(recipes))
        for after in config.after
        for step, recipes in (
            ("correct", after.recipes),
            ("index", after.index),
            ("evaluate", after.evaluate),
        )
        if recipes
    ]
    steps = pl.DataFrame(rows, schema=("step", "feature_set", "recipes"), orient="row")
    document = {"plan": table.to_dicts(), "done": plan.done, "held": plan.held, "steps": steps.to_dicts()}
    print_answer(document, as_json, table)
    if not as_json:
        print(f"{plan.done} are in already, {plan.held} are in quarantine and have not changed")
        print_answer(None, False, steps, title="then, where anything changed")


def print_night(night: "Night", path: str, as_json: bool) -> None:
    """Print how a night went; where a part of it failed the command then ends with 1.

    Raises:
        SystemExit: a plate went into quarantine, a step failed, or a check found a fault.
    """
    import polars as pl

    from warehouse.nights.report import document, headline

    rows = [
        (result.step, result.item, result.outcome, result.detail, result.seconds)
        for result in night.results
        if result.outcome != "unchanged"
    ]
    names = ("step", "item", "outcome", "detail", "seconds")
    print_answer({**document(night), "report": path}, as_json, pl.DataFrame(rows, schema=names, orient="row"))
    if not as_json:
        print(f"{headline(night)}\nreport {path}")
    if not night.is_good:
        sys.exit(1)


def with_values(table: "pl.DataFrame") -> "pl.DataFrame":
    """Leave out columns that say nothing in any row, where there are rows."""
    return table.select(
        name
        for name in table.columns
        if not table.height or any(value not in (None, "") for value in table[name].to_list())
    )


def pair(text: str) -> tuple[str, str]:
    """Split NAME=VALUE.

    Raises:
        WellhouseError: it is none.
    """
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        message = f"{text!r} is no NAME=VALUE: write it as in --set size=128"
        raise WellhouseError(message)
    return name, value


def json_pair(text: str) -> tuple[str, object]:
    """Split NAME=VALUE; a value that is a JSON number, list or truth value becomes one, all else is text."""
    name, value = pair(text)
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _plain(value: object) -> object:
    """Bring a document into JSON's types: a number that is none (NaN, infinite) has no other form than null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: object) -> str:
    """Write a value for people: nothing for NULL, four digits of a fraction, a list in short."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.6g}"
    if isinstance(value, list):
        shown = ", ".join(_cell(item) for item in value[:6])
        return shown + (f", … ({len(value)} in all)" if len(value) > 6 else "")
    return str(value)
