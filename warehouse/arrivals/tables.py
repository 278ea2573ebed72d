"""Tables of profiles that are there to be taken in: files or folders by their names, or a list of them."""

import csv
import io
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from warehouse import places
from warehouse.arrivals.look import KEY_COLUMNS, Arrival, Key, Look, digest, lines
from warehouse.errors import PlaceError
from warehouse.names import unknown
from warehouse.places import Entry

#: Files on their way: what browsers, rsync, FTP clients and editors call them.
_UNFINISHED = re.compile(
    r"^[.~]|(\.tmp|\.part|\.partial|\.filepart|\.crdownload|\.unfinished|~)$", re.IGNORECASE
)
#: A larger CSV is a table of profiles, no list of them.
_MANIFEST_BYTES = 16 * 2**20


def profiles(
    place: str | Path,
    pattern: str = "*.parquet|*.csv|*.csv.gz|*.sqlite|*.h5ad|*.npz|*.npy",
    *,
    units: Literal["files", "folders"] = "files",
    layout: str | Path | None = None,
    settle_seconds: float = 60,
    now: float | None = None,
    salt: str = "",
) -> Iterator[Arrival]:
    """Find tables of profiles below a folder or prefix, or in a manifest of them.

    Names of files on their way (`.tmp`, `.part`, a leading dot, …) are passed over, and folders so named.

    Args:
        place: a folder; a file; a CSV with the column path and perhaps source, batch and plate, and no other; or one
            of them on S3. Relative paths start from the CSV's folder.
        pattern: of the names, parted by `|`; `*`, `?` and `[…]` as in a shell. With a `/` in it, one is held against
            the path below `place`, where `**/` stands for any folders; without, against the name alone.
        units: `"folders"` holds the pattern against folders, and takes each with everything below it as one: for the
            exports of CellProfiler that have one folder a site. A folder inside one is part of it.
        layout: file or folder of the wells, whose size and time count too.
        settle_seconds: how long every file must have been left alone.
        now: seconds since 1970; None for the clock's.
        salt: text of the settings, goes into the hash.

    Yields:
        One arrival a file or folder, in order of their locations.

    Raises:
        PlaceError: the place is not there or cannot be read.
        UnknownNameError: there are no such `units`.
        LakeUnavailableError: S3 cannot be reached.
    """
    if units not in ("files", "folders"):
        raise unknown(units, "units", ("files", "folders"))
    root = places.located(place)
    look = Look(settle_seconds, time.time() if now is None else now)
    beside = [] if layout is None else look.layout(layout)
    single = places.entry(root)
    if single is not None:
        rows = _listed(single)
        if rows is None:
            yield _of_profiles(root, None, [single], beside, look, salt)
        else:
            yield from (_of_row(*row, beside, look, salt) for row in rows)
        return
    found = dict[str, list[Entry]]()
    fits = re.compile(
        "|".join(_expression(one.strip()) for one in pattern.split("|") if one.strip()) or "(?!)"
    )
    for entry in places.listing(root):
        parts = entry.location.removeprefix(root).strip("/").split("/")
        if any(_UNFINISHED.search(part) for part in parts):
            continue
        if units == "files" and fits.fullmatch("/".join(parts)):
            found[entry.location] = [entry]
        elif units == "folders":
            unit = next((n for n in range(1, len(parts)) if fits.fullmatch("/".join(parts[:n]))), None)
            if unit is not None:
                found.setdefault("/".join([root.rstrip("/"), *parts[:unit]]), []).append(entry)
    for location, entries in sorted(found.items()):
        yield _of_profiles(location, None, entries, beside, look, salt)


def _of_profiles(
    origin: str, key: Key | None, entries: Sequence[Entry], beside: Sequence[Entry], look: Look, salt: str
) -> Arrival:
    fault = None
    try:
        for entry in entries:
            places.located(entry.location)
    except PlaceError as error:  # a key that no folder here can hold
        fault = str(error)
    arrival = digest([*lines(beside), *lines(entries), repr(key), salt])
    size = sum(entry.size for entry in entries)
    return Arrival(origin, key, arrival, len(entries), size, look.unsettled([*entries, *beside]), fault)


def _of_row(
    path: str, key: Key | None, fault: str | None, beside: Sequence[Entry], look: Look, salt: str
) -> Arrival:
    """Look at one file or folder that a manifest of profiles names."""
    there = list[Entry]()
    try:
        if fault is None:
            entry = look.folder(places.parent(path)).get(path.rpartition("/")[2])
            there = places.listing(path, missing_ok=True) if entry is None else [entry]
    except PlaceError as error:
        fault = str(error)
    if fault is not None or not there:
        waits_for = None if fault else f"{path} is not there"
        return Arrival(path, key, digest([path, repr(key), salt]), 0, 0, waits_for, fault)
    return _of_profiles(path, key, there, beside, look, salt)


def _listed(manifest: Entry) -> list[tuple[str, Key | None, str | None]] | None:
    """Read path, plate and fault of each row of a manifest of profiles; None for a table of profiles itself."""
    if not manifest.location.casefold().endswith(".csv") or manifest.size > _MANIFEST_BYTES:
        return None
    text = places.read_bytes(manifest.location).decode("utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names, found = reader.fieldnames or [], list(reader)
    except csv.Error as error:
        return [
            (
                manifest.location,
                None,
                f"{manifest.location}, line {reader.line_num}: {error}: correct the line",
            )
        ]
    if "path" not in names or not {*names} <= {"path", *KEY_COLUMNS}:
        return None
    folder, rows = places.parent(manifest.location), list[tuple[str, Key | None, str | None]]()
    for number, row in enumerate(found, start=2):
        path, key = (row["path"] or "").strip(), tuple((row.get(name) or "").strip() for name in KEY_COLUMNS)
        try:
            if not path or None in row:
                message = f"{manifest.location}, row {number}: no path, or more values than columns: correct the row"
                raise PlaceError(message)
            is_absolute = path.startswith(("/", places.SCHEME))
            where = places.located(path if is_absolute else places.join(folder, path))
            rows.append((where, (key[0], key[1], key[2]) if all(key) else None, None))
        except PlaceError as error:
            rows.append((manifest.location, None, str(error)))
    return rows


def _expression(pattern: str) -> str:
    """Write a shell's pattern as a regular expression for a path below a folder."""
    signs = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    made = "" if "/" in pattern else "(?:[^/]+/)*"
    for piece in re.split(r"(\*\*/|\*|\?|\[!?[^\]/]+\])", pattern):
        if len(piece) > 2 and piece.startswith("[") and piece.endswith("]"):
            not_, letters = ("^", piece[2:-1]) if piece[1] == "!" else ("", piece[1:-1])
            made += f"[{not_}{re.escape(letters).replace(chr(92) + '-', '-')}]"
        else:
            made += signs.get(piece, re.escape(piece))
    return made
