"""Who did what, when, with which settings: the run that every commit belongs to."""

import getpass
import json
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import duckdb

from warehouse import __version__
from warehouse.lake import Lake, now


def _username() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return None


@dataclass(frozen=True)
class Run:
    """One call of a command that writes.

    Attributes:
        command: the verb (`ingest`, `correct`).
        settings: what it was called with; anything JSON can hold.
    """

    command: str
    settings: dict[str, object]
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    started_at: datetime = field(default_factory=now)

    def record(self, lake: Lake) -> None:
        """Write this run inside the transaction of its first commit: a run that changes nothing leaves none."""
        recorded = lake.remembered("runs", set)
        if self.run in recorded:
            return
        lake.connection.execute(
            "INSERT INTO main.runs (run, command, settings, code_version, username, started_at, snapshot_before) "
            "SELECT ?, ?, ?, ?, ?, ?, (SELECT id FROM ducklake_current_snapshot('lake')) "
            "WHERE NOT EXISTS (SELECT 1 FROM main.runs WHERE run = ?)",
            [
                self.run,
                self.command,
                json.dumps(self.settings, default=str, sort_keys=True),
                __version__,
                _username(),
                self.started_at,
                self.run,
            ],
        )
        recorded.add(self.run)

    def finish(self, lake: Lake, counts: dict[str, int], outcome: str = "done") -> None:
        """Complete the row of this run; a run that changed nothing has none, and gets none.

        Args:
            lake: open for writing.
            counts: what went in, and what was rejected.
            outcome: `done`, or `failed` where something is left undone.
        """

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            row = connection.execute(
                "SELECT count(*), (SELECT id FROM ducklake_current_snapshot('lake')) FROM main.runs WHERE run = ?",
                [self.run],
            ).fetchone()
            if row is None or not row[0]:
                lake.change_nothing()
                return
            finished = now()
            connection.execute(
                "UPDATE main.runs SET finished_at = ?, outcome = ?, seconds = ?, snapshot_after = ?, counts = ? "
                "WHERE run = ?",
                [
                    finished,
                    outcome,
                    (finished - self.started_at).total_seconds(),
                    row[1],
                    json.dumps(counts, sort_keys=True),
                    self.run,
                ],
            )

        lake.transaction(work)


def counts_of(reports: Iterable[object]) -> dict[str, int]:
    """Sum the reports of plates: how many of each outcome, and every count that they carry."""
    total: Counter[str] = Counter()
    for report in reports:
        values = vars(report)
        total[f"plates_{values['outcome']}"] += 1
        total.update({name: value for name, value in values.items() if isinstance(value, int)})
    return dict(total)


def outcome_of(reports: Iterable[object]) -> str:
    """Say whether a run left a plate undone."""
    return "failed" if any(vars(report)["outcome"] == "failed" for report in reports) else "done"
