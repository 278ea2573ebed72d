"""Plates that could not be taken in: kept with their reason and the way to try again, until they are in."""

import json
from dataclasses import dataclass

import duckdb

from warehouse.errors import UnknownNameError
from warehouse.lake import Lake, now
from warehouse.layouts import PLATE
from warehouse.names import unknown
from warehouse.runs import Run

Key = tuple[str, str, str]

_COLUMNS = "feature_set, source, batch, plate, reason, job, arrival, tries, run, first_at, last_at"


@dataclass(frozen=True)
class Quarantined:
    """A plate in quarantine.

    Attributes:
        feature_set: that it was to go into.
        key: source, batch, plate.
        reason: of the last try.
        job: how to take it in again, as `warehouse.nights.jobs` reads it; `{}` where nothing is known.
        arrival: of the files that failed, or None.
        tries: how often it was tried.
    """

    feature_set: str
    key: Key
    reason: str
    job: dict[str, object]
    arrival: str | None
    tries: int


def put(
    lake: Lake,
    run: Run,
    feature_set: str,
    key: Key,
    reason: str,
    *,
    job: dict[str, object] | None = None,
    arrival: str | None = None,
) -> None:
    """Put a plate into quarantine, or note one more try of it, in a transaction of its own.

    Args:
        lake: open for writing.
        run: in which it failed.
        feature_set: that it was to go into; need not exist.
        key: source, batch, plate.
        reason: one sentence.
        job: how to try again.
        arrival: of its files: while they stay the same, no night tries again by itself.
    """

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        run.record(lake)
        row = connection.execute(
            f"SELECT tries, first_at FROM main.quarantine WHERE feature_set = ? AND {PLATE}",
            [feature_set, *key],
        ).fetchone()
        moment = now()
        tries, first = (row[0] + 1, row[1]) if row else (1, moment)
        release(lake, feature_set, key)
        text = json.dumps(job or {}, sort_keys=True)
        connection.execute(
            f"INSERT INTO main.quarantine ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [feature_set, *key, reason, text, arrival, tries, run.run, first, moment],
        )
        connection.execute(
            "INSERT INTO main.plate_history VALUES (?, ?, ?, ?, 'quarantined', NULL, NULL, NULL, ?, ?)",
            [feature_set, *key, run.run, moment],
        )
        lake.remembered("quarantine", lambda: keys(lake)).add((feature_set, key))

    lake.transaction(work)


def release(lake: Lake, feature_set: str, key: Key) -> None:
    """Take a plate out of quarantine, inside the transaction that took it in; others are left as they are."""
    waiting = lake.remembered("quarantine", lambda: keys(lake))
    if (feature_set, key) in waiting:
        lake.connection.execute(
            f"DELETE FROM main.quarantine WHERE feature_set = ? AND {PLATE}", [feature_set, *key]
        )
        waiting.discard((feature_set, key))


def keys(lake: Lake) -> set[tuple[str, Key]]:
    """Read which plates are in quarantine, and for which feature set."""
    rows = lake.connection.execute("SELECT feature_set, source, batch, plate FROM main.quarantine").fetchall()
    return {(feature_set, (source, batch, plate)) for feature_set, source, batch, plate in rows}


def read(lake: Lake, plate: str | None = None) -> list[Quarantined]:
    """Read the plates in quarantine, or those of one name.

    Raises:
        UnknownNameError: no plate of this name is in quarantine.
    """
    rows = lake.connection.execute(f"SELECT {_COLUMNS} FROM main.quarantine ORDER BY ALL").fetchall()
    found = [
        Quarantined(row[0], (row[1], row[2], row[3]), row[4], json.loads(row[5]), row[6], row[7])
        for row in rows
    ]
    if plate is None:
        return found
    named = [item for item in found if item.key[2] == plate]
    if not named:
        error: UnknownNameError = unknown(plate, "plate in quarantine", {item.key[2] for item in found})
        raise error
    return named


def let_go(lake: Lake, feature_set: str, key: Key) -> None:
    """Take a plate out of quarantine in a transaction of its own, where it is in it."""
    if (feature_set, key) not in keys(lake):
        return
    lake.transaction(lambda _: release(lake, feature_set, key))
