"""The pictures that a question brings: which file, and which plane of it, is which channel of which field."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from extractors.images import read_field
from extractors.plate_images import PlateImage
from warehouse.errors import ImageError
from warehouse.feature_sets import FeatureSet
from warehouse.fits import Plate
from warehouse.lake import Lake
from warehouse.names import unknown

Files: TypeAlias = dict[str, tuple[Path, int | None]]
Given: TypeAlias = tuple[str | None, Path, int | None]  # channel, file, plane
#: The well that a picture stands for while its profile is made.
_WELL = "A01"
_PLANE = re.compile(r"(.+):([0-9]+)")


def gathered(
    lake: Lake,
    target: FeatureSet,
    images: Sequence[Path | str],
    field_names: Sequence[str] | None,
    plate: Plate | None,
) -> list[PlateImage]:
    """Read which files are which channel of which picture; arguments as `extractors.image_query.profile_of_images`.

    Returns:
        Pictures of one well in the order of their fields, as ingestion gathers those of a plate.

    Raises:
        ImageError: a file that is not there or cannot be read, a channel that is missing; and what to give.
        UnknownNameError: a channel that the feature set does not have.
    """
    given = [_named(image, target.channels) for image in images]
    if not given:
        message = f"no picture: {_how(target)}"
        raise ImageError(message)
    for _, path, _ in given:
        _check_file(path)
    apart = [name is not None for name, _, _ in given]
    if any(apart) and not all(apart):
        path = given[apart.index(False)][1]
        message = f"{path} comes without a channel, and others with one: {_how(target)}"
        raise ImageError(message)
    sets = _by_channel(given, target) if all(apart) else _by_file(lake, target, given, plate)
    _refuse_twice(sets)
    is_crops = target.parameters.get("input") == "crops"
    default = ["1"] * len(sets) if is_crops else [str(i + 1) for i in range(len(sets))]
    names = list(default if field_names is None else field_names)
    if len(names) != len(sets) or not (is_crops or len(set(names)) == len(names)):
        what = "picture its" if is_crops else "field another"
        message = (
            f"{len(sets)} pictures have {len(names)} names of fields ({', '.join(names)}): give each {what}"
        )
        raise ImageError(message)
    named = zip(names, sets, strict=True)
    made = [
        PlateImage(_WELL, name, str(number) if is_crops else None, files)
        for number, (name, files) in enumerate(named)
    ]
    return sorted(made, key=lambda picture: picture.field)  # crops of one field together, in their order


def _refuse_twice(sets: Sequence[Files]) -> None:
    seen: dict[tuple[Path, int | None], str] = {}
    for files in sets:
        for channel, place in files.items():
            if place in seen:
                message = (
                    f"{place[0]}: is given twice, for {seen[place]} and for {channel}: give each file once"
                )
                raise ImageError(message)
            seen[place] = channel


def _how(target: FeatureSet) -> str:
    files = " ".join(f"{channel}=FILE" for channel in target.channels)
    return f"give each channel of feature set {target.name!r} a file, {files}, or one file that holds all of them"


def _named(image: Path | str, channels: Sequence[str]) -> Given:
    """Read `CHANNEL=FILE`, `CHANNEL=FILE:PLANE` or `FILE`."""
    text = str(image)
    if isinstance(image, Path) or "=" not in text or Path(text).exists():
        return None, Path(text), None
    name, _, path = text.partition("=")
    folded = {channel.casefold(): channel for channel in channels}
    channel = folded.get(name.strip().casefold())
    if channel is None:
        raise unknown(name, "channel", channels)
    found = None if Path(path).exists() else _PLANE.fullmatch(path)
    return (channel, Path(path), None) if found is None else (channel, Path(found[1]), int(found[2]))


def _check_file(path: Path) -> None:
    if str(path).startswith("s3:/"):
        message = f"{path}: a picture to search with must be on this machine: copy it here first"
    elif path.is_dir():
        message = f"{path}: is a folder: name its image files one by one"
    elif not path.exists():
        message = f"{path}: no such file: correct the path of the picture"
    elif path.stat().st_size == 0:
        message = f"{path}: is empty (0 bytes): copy the picture again"
    else:
        return
    raise ImageError(message)


def _by_channel(given: Sequence[Given], target: FeatureSet) -> list[Files]:
    """The n-th file of each channel is of the n-th picture."""
    files: dict[str, list[tuple[Path, int | None]]] = {channel: [] for channel in target.channels}
    for channel, path, plane in given:
        files[str(channel)].append((path, plane))
    missing = [channel for channel, found in files.items() if not found]
    if missing:
        message = f"channel {missing[0]!r} is missing: {_how(target)}"
        raise ImageError(message)
    counts = {channel: len(found) for channel, found in files.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{channel} {count}" for channel, count in counts.items())
        message = f"channels have different numbers of files ({listed}): give each channel one file a picture"
        raise ImageError(message)
    return [dict(zip(files, together, strict=True)) for together in zip(*files.values(), strict=True)]


def _by_file(lake: Lake, target: FeatureSet, given: Sequence[Given], plate: Plate | None) -> list[Files]:
    """Each file holds all channels, in the planes in which the files of the feature set have them."""
    count = len(target.channels)
    held = _planes_held(lake, target, plate)
    planes = held or (dict.fromkeys(target.channels) if count == 1 else _in_order(target.channels))
    for _, path, _ in given:
        read_field({"any": (path, 0)}, ["any"])  # a file that cannot be read says so
        if count > 1 and not _has_plane(path, max(plane or 0 for plane in planes.values())):
            message = f"{path}: does not hold {count} channels: {_how(target)}"
            raise ImageError(message)
        if held is None and _has_plane(path, count):
            wanted = " ".join(f"{channel}={path}:{plane or 0}" for channel, plane in planes.items())
            message = f"{path}: holds more planes than {', '.join(target.channels)}: say which they are, as in {wanted}"
            raise ImageError(message)
    return [{channel: (path, plane) for channel, plane in planes.items()} for _, path, _ in given]


def _in_order(channels: Sequence[str]) -> dict[str, int | None]:
    return {channel: number for number, channel in enumerate(channels)}


def _has_plane(path: Path, plane: int) -> bool:
    try:
        read_field({"any": (path, plane)}, ["any"])
    except ImageError:
        return False
    return True


def _planes_held(lake: Lake, target: FeatureSet, plate: Plate | None) -> dict[str, int | None] | None:
    """Find in which planes the files of a plate of this feature set hold its channels; None where each has a file."""
    is_crops = target.parameters.get("input") == "crops"
    if plate is None:
        plate = lake.connection.execute(
            "SELECT source, batch, plate FROM main.plate_loads WHERE feature_set = ? ORDER BY ALL LIMIT 1",
            [target.name],
        ).fetchone()
    rows = lake.connection.execute(
        "SELECT DISTINCT unnest(channels), unnest(planes) FROM main.fields "
        "WHERE source = ? AND batch = ? AND plate = ? AND (cell IS NOT NULL) = ?",
        [*(plate or ("", "", "")), is_crops],
    ).fetchall()
    held = {channel: plane for channel, plane in rows if channel in target.channels and plane is not None}
    is_settled = len(held) == len(rows) and set(held) == set(target.channels)
    return {channel: held[channel] for channel in target.channels} if is_settled else None
