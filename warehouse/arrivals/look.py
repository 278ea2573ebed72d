"""What an arrival is, and what one discovery sees of folders and of the clock."""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from warehouse import places
from warehouse.places import Entry

Key = tuple[str, str, str]
KEY_COLUMNS = ("source", "batch", "plate")
#: Entries of folders kept in memory; plates often share a folder of images.
_KEPT = 2_000_000


@dataclass(frozen=True)
class Arrival:
    """One plate of images, or one file or folder of profiles, that is there to be taken in.

    Attributes:
        origin: location of the manifest, or of the file or folder of profiles.
        key: source, batch, plate; None where only reading the file tells.
        arrival: hash of the names, sizes and times of its files, and of the settings' text.
        files: that it consists of and that are there; 0 where they were not looked at again (`recheck="manifest"`).
        bytes: of them.
        waits_for: None for one that is ready; else what is missing or still changing, as a sentence.
        fault: None; else why it cannot be read, as a sentence: it is to be quarantined.
    """

    origin: str
    key: Key | None
    arrival: str
    files: int
    bytes: int
    waits_for: str | None = None
    fault: str | None = None


class Look:
    """What one discovery sees: the clock, and the folders it has listed."""

    def __init__(self, settle_seconds: float, now: float) -> None:
        self.settle_seconds, self.now = settle_seconds, now
        self._folders = dict[str, dict[str, Entry]]()
        self._layouts = dict[str, list[Entry]]()
        self._count = 0

    def folder(self, folder: str) -> dict[str, Entry]:
        """Give the files of a folder by name; none where it is not there."""
        if folder not in self._folders:
            if self._count > _KEPT:
                self._folders, self._count = {}, 0
            entries = places.listing(folder, recursive=False, missing_ok=True)
            self._folders[folder] = {entry.location.rpartition("/")[2]: entry for entry in entries}
            self._count += len(entries)
        return self._folders[folder]

    def layout(self, layout: str | Path) -> list[Entry]:
        """Give the files of a layout, a file or a folder."""
        place = places.located(layout)
        if place not in self._layouts:
            single = places.entry(place)
            self._layouts[place] = places.listing(place) if single is None else [single]
        return self._layouts[place]

    def unsettled(self, entries: Iterable[Entry]) -> str | None:
        """Say which file is empty or still changing, if any is."""
        last: Entry | None = None
        for entry in entries:
            if entry.size == 0:
                return f"{entry.location} is empty"
            if last is None or entry.modified > last.modified:
                last = entry
        if last is None or self.now - last.modified >= self.settle_seconds:
            return None
        if last.modified > self.now + self.settle_seconds:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(last.modified))
            return f"{last.location} is dated {when} UTC, which is still to come: touch it, or set the clock"
        age = max(0, round(self.now - last.modified))
        return f"{last.location} was changed {age} s ago, and must rest for {self.settle_seconds:g} s"


def lines(entries: Iterable[Entry]) -> list[str]:
    """Write what is known of files from outside, one line each."""
    return [f"{location}\0{size}\0{modified!r}" for location, size, modified in entries]


def digest(texts: Iterable[str]) -> str:
    """Hash texts in their order: 32 hexadecimal digits."""
    hasher = hashlib.blake2b(digest_size=16)
    for text in texts:
        # With its length before it, no two lists of texts make the same bytes.
        data = text.encode("utf-8", "surrogateescape")
        hasher.update(b"%d:" % len(data) + data)
    return hasher.hexdigest()
