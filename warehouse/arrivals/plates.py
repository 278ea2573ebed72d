"""Plates of images that are there to be taken in: the gallery's folders, or a manifest."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from warehouse import places
from warehouse.arrivals.look import KEY_COLUMNS, Arrival, Key, Look, digest, lines
from warehouse.errors import LakeUnavailableError, PlaceError, ScreenError, WellhouseError
from warehouse.names import unknown
from warehouse.places import Entry
from warehouse.screens import Format, read_screen

#: Text that stands for the settings a plate is taken in with; for one plate, where it depends on the plate.
Salt = str | Callable[[Key], str]
_MANIFESTS = ("load_data.csv", "load_data.csv.gz")
#: More folders than these are no projects and sources, and to ask each for its manifests would take long.
_SOURCES = 1000
_BARCODES = "barcode_platemap.csv"


def images(
    place: str | Path,
    *,
    layout: str | Path | None = None,
    images: str | Path | None = None,
    source: str | None = None,
    batch: str | None = None,
    format: Format = "auto",
    channels: Sequence[str] | None = None,
    settle_seconds: float = 60,
    now: float | None = None,
    salt: Salt = "",
    recheck: Literal["files", "manifest"] = "files",
    known: Mapping[str, Key] | None = None,
) -> Iterator[Arrival]:
    """Find plates of images below a folder or prefix, or in a manifest.

    Below a folder, manifests are `load_data.csv` or `.csv.gz`: those in `workspace/load_data_csv` where the folder,
    or one at most two folders below it, has the gallery's layout, else all. A plate is ready when every file that its
    rows name is there, is not empty, and neither it nor the manifest or layout was changed within `settle_seconds`.

    The manifest counts by its size and time where it has one plate, and by the plate's own rows where it has
    several, so that a plate added to it is no news of the others.

    Args:
        place: a folder, a manifest in any format of `read_screen`, or either on S3.
        layout: file or folder of the wells, for sources and batches that only it tells; None for the gallery's own.
            While it is being written plates wait; its content does not count.
        images: as in `read_screen`, like source, batch, format and channels.
        source: where the manifest has none.
        batch: likewise.
        format: of the manifest.
        channels: whose files must be there; None for those that `read_screen` reads.
        settle_seconds: how long a file must have been left alone.
        now: seconds since 1970; None for the clock's.
        salt: goes into the hash.
        recheck: `"manifest"` hashes only the manifest, by size and time: images that change under the
            same names then go unnoticed, and a plate that is in costs next to nothing.
        known: arrivals that are in the lake, with their plates. With `recheck="manifest"` a manifest all of whose
            plates are among them is not opened.

    Yields:
        One arrival a plate, in the order of the manifests' locations, then of the plates; one with a fault for a
        manifest that cannot be read.

    Raises:
        PlaceError: the place is not there or cannot be read.
        UnknownNameError: there is no such `recheck`.
        LakeUnavailableError: S3 cannot be reached.
    """
    if recheck not in ("files", "manifest"):
        raise unknown(recheck, "recheck", ("files", "manifest"))
    if images is not None and not places.is_folder(images):
        # No fault of any manifest: quarantined for it, they would stay there when the folder is back.
        message = f"images folder {images}: there is no such folder. Correct the path, or is it not mounted?"
        raise PlaceError(message)
    look = Look(settle_seconds, time.time() if now is None else now)
    reading = {"images": images, "source": source, "batch": batch, "format": format, "channels": channels}
    held = dict[str, list[tuple[str, Key]]]()
    for arrival, key in (known or {}).items():
        held.setdefault(arrival.partition("-")[0], []).append((arrival, key))
    for manifest in _manifests(places.located(place)):
        plan = layout if layout is not None else gallery_layout(manifest.location)
        beside = [manifest, *(() if plan is None else look.layout(plan))]
        # A layout is shared by plates, and read anew each night: another well in it is no news of their images.
        stem = digest(lines([manifest]))
        if recheck == "manifest" and (whole := _all_known(stem, held.get(stem, []), manifest.location, salt)):
            yield from whole
            continue
        stem_or_none = stem if recheck == "manifest" else None
        yield from _plates(manifest, beside, stem_or_none, look, salt, {**reading, "layout": plan})


def gallery_layout(manifest: str) -> str | None:
    """Find the folder of platemaps that belongs to a manifest of the gallery, for `read_screen`'s `layout`.

    Args:
        manifest: location `…/workspace/load_data_csv/<batch>/<plate>/load_data.csv`.

    Returns:
        The location of `…/workspace/metadata/platemaps/<batch>`; None where there is none, or the manifest is
        somewhere else.
    """
    head, _, rest = manifest.rpartition("/workspace/load_data_csv/")
    parts = rest.split("/")
    if not head or len(parts) != 3:
        return None
    folder = f"{head}/workspace/metadata/platemaps/{parts[0]}"
    return folder if places.entry(f"{folder}/{_BARCODES}") is not None else None


def _manifests(root: str) -> list[Entry]:
    """Find the manifests below a folder; of `load_data.csv` and its gzipped twin in one folder, the first counts."""
    single = places.entry(root)
    if single is not None:
        return [single]
    found = dict[str, Entry]()
    for place in _galleries(root) or [root]:
        for entry in places.listing(place):
            folder, _, name = entry.location.rpartition("/")
            if name in _MANIFESTS:
                found.setdefault(folder, entry)
    return [found[folder] for folder in sorted(found)]


def _galleries(root: str) -> list[str]:
    """Find the manifests' folders of the gallery's layout, of one source, one project or the whole gallery."""
    if root.endswith("/workspace"):
        return [tree for tree in (f"{root}/load_data_csv",) if places.is_folder(tree)]
    heads = [root]
    for depth in range(3):
        found = [tree for head in heads if places.is_folder(tree := f"{head}/workspace/load_data_csv")]
        if found or depth == 2:
            return found
        heads = [folder for head in heads for folder in places.folders(head)]
        if len(heads) > _SOURCES:
            break
    return []


def _all_known(stem: str, held: Sequence[tuple[str, Key]], origin: str, salt: Salt) -> list[Arrival]:
    """Give the plates of a manifest without opening it, where all of them are known; else nothing."""
    same = [(arrival, key) for arrival, key in held if arrival == _short(stem, len(held), key, salt)]
    if len(same) < len(held):
        return []
    return [Arrival(origin, key, arrival, 0, 0) for arrival, key in sorted(same, key=lambda pair: pair[1])]


def _short(stem: str, plates: int, key: Key, salt: Salt) -> str:
    """Name a plate by its manifest alone: hash of the manifest, how many plates it has, and which one this is."""
    return f"{stem}-{plates}-{digest([repr((key, _text(salt, key)))])}"


def _plates(
    manifest: Entry,
    beside: Sequence[Entry],
    stem: str | None,
    look: Look,
    salt: Salt,
    reading: Mapping[str, Any],
) -> Iterator[Arrival]:
    origin = manifest.location
    blocked = None
    try:
        try:
            table = _table(origin, reading)
        except ScreenError as error:
            # A layout that cannot be read yet is no fault of the manifest: its plates wait for it.
            if reading["layout"] is None:
                raise
            table = _table(origin, {**reading, "layout": None})
            blocked = f"its layout, which cannot be read: {error}"
    except LakeUnavailableError:
        raise
    except WellhouseError as error:
        arrival = digest([*lines(beside), _text(salt, (origin, "", ""))])
        yield Arrival(origin, None, arrival, 1, manifest.size, look.unsettled(beside), str(error))
        return
    parts = table.partition_by(*KEY_COLUMNS, as_dict=True)
    for key in sorted((str(a), str(b), str(c)) for a, b, c in parts):
        rows = parts[key]
        short = None if stem is None else _short(stem, len(parts), key, salt)
        try:
            plate = _plate(
                origin, key, rows, beside, [manifest] if len(parts) == 1 else [], short, look, salt
            )
            yield plate if blocked is None else replace(plate, waits_for=blocked)
        except PlaceError as error:
            arrival = short or digest([*lines([manifest]), repr(key), _text(salt, key)])
            yield Arrival(origin, key, arrival, 0, 0, None, str(error))


def _table(origin: str, reading: Mapping[str, Any]) -> pl.DataFrame:
    place = origin if places.is_remote(origin) else Path(origin)
    return read_screen(place, must_exist=False, **reading).manifest


def _plate(
    origin: str,
    key: Key,
    rows: pl.DataFrame,
    beside: Sequence[Entry],
    counted: Sequence[Entry],
    short: str | None,
    look: Look,
    salt: Salt,
) -> Arrival:
    there, missing = list[Entry](), list[str]()
    paths = rows["path"].unique(maintain_order=True).to_list()
    for path in paths:
        folder, _, name = path.rpartition("/")
        entry = look.folder(folder or "/").get(name)
        missing.append(path) if entry is None else there.append(entry)
    waits_for = look.unsettled([*beside, *there])
    if missing:
        waits_for = f"{len(missing)} of {len(paths)} image files are not there, the first {missing[0]}"
    if short is None:
        texts = [*lines(counted), *lines(there), *missing, rows.drop(KEY_COLUMNS).write_csv(), repr(key)]
        short = digest([*texts, _text(salt, key)])
    return Arrival(origin, key, short, len(there), sum(entry.size for entry in there), waits_for)


def _text(salt: Salt, key: Key) -> str:
    return salt(key) if callable(salt) else salt
