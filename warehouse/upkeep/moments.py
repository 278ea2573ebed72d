"""Moments of a lake's history: what a person types for one, and the snapshot that it names."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from warehouse.errors import LakeError
from warehouse.lake import Lake

#: What is typed for a moment, for help texts and messages.
FORMS = "a snapshot (17), one before the newest (-1), a date (2026-11-20, its end), or a time (2026-11-20T18:30); UTC"


@dataclass(frozen=True)
class Snapshot:
    """A state of the lake: its number, and when it was committed (UTC)."""

    number: int
    time: datetime

    def __str__(self) -> str:
        return f"{self.number} of {self.time:%Y-%m-%d %H:%M:%S}"


def parse(text: str) -> int | datetime:
    """Read a moment as a person types it.

    Args:
        text: of `FORMS`. A date means its last microsecond; a time with an offset (`+02:00`, `Z`) is brought to UTC.

    Returns:
        A snapshot's number (negative: counted back from the newest), or a time in UTC, without a zone.

    Raises:
        LakeError: it is none of these.
    """
    stripped = text.strip()
    # Python takes digits alone for a date, and other writings of digits for numbers.
    if re.fullmatch(r"-?[0-9]{1,18}", stripped):
        return int(stripped)
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", stripped):
            return datetime.combine(date.fromisoformat(stripped), time.max)
        if re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]", stripped):
            moment = datetime.fromisoformat(stripped)
            return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError) as error:
        message = f"{text!r} is no moment ({error}): give {FORMS}"
        raise LakeError(message) from error
    message = f"{text!r} is no moment: give {FORMS}"
    raise LakeError(message)


def snapshots(lake: Lake) -> list[Snapshot]:
    """List the snapshots that can be asked, oldest first."""
    rows = lake.connection.execute(
        "SELECT snapshot_id, make_timestamp(epoch_us(snapshot_time)) FROM ducklake_snapshots('lake') "
        "ORDER BY snapshot_id"
    ).fetchall()
    return [Snapshot(number, moment) for number, moment in rows]


def find(lake: Lake, moment: str | int | datetime) -> Snapshot:
    """Find the snapshot that a moment names: the number itself, or the newest that is not later than a time.

    Raises:
        LakeError: there is none, or it has expired; the message names the oldest and the newest there.
    """
    wanted = parse(moment) if isinstance(moment, str) else moment
    there = snapshots(lake)
    if isinstance(wanted, int):
        if wanted < 0:
            found = there[wanted - 1] if len(there) > -wanted else None
        else:
            found = next((one for one in there if one.number == wanted), None)
    else:
        found = next((one for one in reversed(there) if one.time <= wanted), None)
    if found is None:
        gone = isinstance(wanted, int) and there[0].number <= wanted <= there[-1].number
        message = (
            f"no snapshot {_written(wanted)}{' any more: it has expired' * gone}: the oldest is {there[0]}, the newest "
            f"{there[-1]} (UTC); `wellhouse history` lists them"
        )
        raise LakeError(message)
    return found


def _written(wanted: int | datetime) -> str:
    return str(wanted) if isinstance(wanted, int) else f"at {wanted:%Y-%m-%d %H:%M:%S}"


def open_at(address: str, moment: str | None) -> Lake:
    """Open a lake read-only: as it is, or as it was at a moment.

    Raises:
        LakeError: no lake is there, or it has no such moment.
    """
    if moment is None:
        return Lake.open(address, read_only=True)
    parse(moment)  # a slip of the hand is told before anything is opened
    with Lake.open(address, read_only=True) as newest:
        number = find(newest, moment).number
    return Lake.open(address, read_only=True, as_of=number)
