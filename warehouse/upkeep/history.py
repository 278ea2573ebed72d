"""What happened to a lake, snapshot by snapshot: when, by which run, and what changed."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice

import polars as pl

from warehouse.lake import Lake
from warehouse.upkeep.files import CATALOG

#: Tables of which every write has a line elsewhere, or says nothing to a reader.
_SILENT = {"write_gate", "runs", "plate_loads", "plate_history", "schema_version"}
#: Names of plates, and of tables, written out in one line.
_SHOWN = 3

# DuckLake tells of each row by which snapshot it came, through merged files too.
_ACTS = (
    "SELECT snapshot_id, run, feature_set || ': ' || outcome AS act, plate AS item FROM main.plate_history "
    "UNION ALL SELECT snapshot_id, run, feature_set || ': fitted', recipe FROM main.recipes "
    "UNION ALL SELECT DISTINCT snapshot_id, run, 'evaluated', feature_set || ' (' || recipe || ')' "
    "FROM main.evaluations "
    "UNION ALL SELECT snapshot_id, run, 'run', outcome FROM main.runs WHERE outcome IS NOT NULL "
    "ORDER BY ALL"
)
#: What DuckLake notes of a commit, in the words of `compact` and of a lake's making.
_WORDS = {
    "merge_adjacent": "merged files of",
    "rewrite_delete": "rewrote files of",
    "flushed_inlined": "moved into files",
    "schemas_created": "made",
    "tables_created": "made",
    "views_created": "made",
    "tables_inserted_into": "wrote",
    "inlined_insert": "wrote",
    "tables_deleted_from": "wrote",
    "inlined_delete": "wrote",
    "tables_altered": "altered",
    "tables_dropped": "dropped",
    "views_dropped": "dropped",
    "schemas_dropped": "dropped",
}


@dataclass
class _Acts:
    """What is known of one snapshot: acts with the plates or recipes they are of, and the runs they belong to."""

    items: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    runs: set[str] = field(default_factory=set)
    plates: set[str] = field(default_factory=set)


def history(lake: Lake, *, plate: str | None = None, limit: int = 20) -> pl.DataFrame:
    """List what happened, newest first: one row a snapshot.

    Args:
        lake: an open lake.
        plate: only snapshots that changed this plate.
        limit: how many.

    Returns:
        snapshot, time (UTC), command, username, run, changed (`tiny: added p1, p2`, or the tables written).
    """
    acts = _acts(lake)
    runs = {
        run: (command, username, before, after)
        for run, command, username, before, after in lake.connection.execute(
            "SELECT run, command, username, snapshot_before, snapshot_after FROM main.runs"
        ).fetchall()
    }
    names = _names(lake)
    commits = lake.connection.execute(
        "SELECT snapshot_id, make_timestamp(epoch_us(snapshot_time)), changes FROM ducklake_snapshots('lake') "
        "ORDER BY snapshot_id DESC"
    ).fetchall()
    chosen = (row for row in commits if plate is None or plate in acts[row[0]].plates)
    rows = []
    for number, moment, changes in islice(chosen, limit):
        run = _run_of(number, acts[number].runs, runs)
        command, username = (None, None) if run is None else runs[run][:2]
        said = [f"{act} {_listed(items)}" for act, items in acts[number].items.items()]
        rows.append(
            (number, moment, command, username, run, "; ".join(said) or _tables(changes or {}, names))
        )
    kinds: dict[str, pl.DataType | type[pl.DataType]] = {
        "snapshot": pl.Int64,
        "time": pl.Datetime("us"),
        **dict.fromkeys(("command", "username", "run", "changed"), pl.String),
    }
    return pl.DataFrame(rows, schema=kinds, orient="row")


def _acts(lake: Lake) -> dict[int, _Acts]:
    found: dict[int, _Acts] = defaultdict(_Acts)
    for number, run, act, item in lake.connection.execute(_ACTS).fetchall():
        found[number].items[act].append(item)
        found[number].runs.add(run)
    plates = "SELECT DISTINCT snapshot_id, plate FROM main.plate_history"
    for number, name in lake.connection.execute(plates).fetchall():
        found[number].plates.add(name)
    return found


def _run_of(
    number: int, named: set[str], runs: dict[str, tuple[str, str | None, int | None, int | None]]
) -> str | None:
    """Find the run that made a snapshot: named by what it wrote, or the only one under way at the time."""
    known = {run for run in named if run in runs}
    if not known:
        known = {
            run for run, (_, _, before, after) in runs.items() if (before or 0) < number <= (after or -1)
        }
    return known.pop() if len(known) == 1 else None


def _listed(items: list[str]) -> str:
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _names(lake: Lake) -> dict[str, str]:
    """Read the names of tables by their number, as `ducklake_snapshots` gives it."""
    rows = lake.connection.execute(
        "SELECT tables.table_id, schemas.schema_name, tables.table_name "
        f"FROM {CATALOG}.ducklake_table AS tables JOIN {CATALOG}.ducklake_schema AS schemas "
        "ON tables.schema_id = schemas.schema_id"
    ).fetchall()
    return {str(number): name if schema == "main" else f"{schema}.{name}" for number, schema, name in rows}


def _tables(changes: dict[str, list[str]], names: dict[str, str]) -> str:
    """Write what a commit changed where no ledger tells: `wrote annotations`."""
    found: dict[str, list[str]] = defaultdict(list)
    for kind, items in changes.items():
        for item in items:
            name = names.get(item, item).removeprefix("main.")
            word = _WORDS.get(kind, kind.replace("_", " "))
            if name not in found[word] and not (name in _SILENT and word == "wrote"):
                found[word].append(name)
    return "; ".join(f"{word} {_listed(items)}" for word, items in found.items() if items)
