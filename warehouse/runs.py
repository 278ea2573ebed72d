"""Who did what, when, with which settings: the run that every commit belongs to."""

import getpass
import json
import uuid
from dataclasses import dataclass, field
from datetime import datetime

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
            "INSERT INTO main.runs (run, command, settings, code_version, username, started_at) SELECT ?, ?, ?, ?, ?, ? "
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
