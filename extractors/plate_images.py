"""The images of one plate: gathered from the manifest, hashed, described for the lake, and read ahead in groups."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import polars as pl

from extractors.images import digest
from warehouse import ingest
from warehouse.errors import ImageError, ScreenError
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake

T = TypeVar("T")
R = TypeVar("R")
#: Called with the plate, the images done and the images of the plate.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PlateImage:
    """One field or crop of the manifest; per channel the file, and the plane in it."""

    well: str
    field: str
    cell: str | None
    files: dict[str, tuple[Path, int | None]]


def gathered(rows: pl.DataFrame) -> list[PlateImage]:
    """Gather the rows of a plate's manifest, one a channel, into images in a fixed order."""
    by = ["well", "field", "cell"]
    images = []
    for (well, name, cell), part in rows.sort([*by, "channel"], nulls_last=True).group_by(
        by, maintain_order=True
    ):
        files = {
            channel: (Path(path), plane)
            for channel, path, plane in part.select("channel", "path", "plane").iter_rows()
        }
        images.append(PlateImage(str(well), str(name), None if cell is None else str(cell), files))
    return images


def digests_of(images: Sequence[PlateImage], workers: int) -> dict[Path, str | None]:
    """Hash every file once; None where there is none."""
    paths = sorted({path for image in images for path, _ in image.files.values()})
    with ThreadPoolExecutor(workers) as executor:
        return dict(zip(paths, executor.map(_digest_or_none, paths), strict=True))


def _digest_or_none(path: Path) -> str | None:
    try:
        return digest(path)
    except (OSError, ImageError):
        return None  # the field is rejected with its reason when it is read


def content_hash(target: FeatureSet, images: Sequence[PlateImage], digests: dict[Path, str | None]) -> str:
    """Hash what decides a plate's embeddings: the feature set's identity, and which pixels stand for which field."""
    hasher = hashlib.blake2b(target.identity().encode(), digest_size=16)
    for image in images:
        files = [(channel, plane, digests[path]) for channel, (path, plane) in sorted(image.files.items())]
        hasher.update(repr((image.well, image.field, image.cell, files)).encode())
    return hasher.hexdigest()


def image_rows(
    images: Sequence[PlateImage],
    digests: dict[Path, str | None],
    channels: tuple[str, ...],
    original: Callable[[str], str] = str,
) -> pl.DataFrame:
    """Describe the images as rows of `main.fields`, less the plate's key; lists run over the channels there are.

    Args:
        images: of one plate.
        digests: of their files.
        channels: in the order wanted.
        original: names a file by where it came from (`extractors.staging`).
    """
    ordered = [(image, [c for c in channels if c in image.files]) for image in images]
    return pl.DataFrame(
        {
            "well": [image.well for image in images],
            "field": [image.field for image in images],
            "cell": [image.cell for image in images],
            "channels": [names for _, names in ordered],
            "paths": [[original(str(image.files[c][0])) for c in names] for image, names in ordered],
            "planes": [[image.files[c][1] for c in names] for image, names in ordered],
            "digests": [[digests[image.files[c][0]] for c in names] for image, names in ordered],
        },
        schema_overrides={
            "cell": pl.String,
            "channels": pl.List(pl.String),
            "paths": pl.List(pl.String),
            "planes": pl.List(pl.Int32),
            "digests": pl.List(pl.String),
        },
    )


def refuse_unreachable(
    lake: Lake, key: tuple[str, str, str], images: Sequence[PlateImage], digests: dict[Path, str | None]
) -> None:
    """Stop where images that came in are not on disk now: a folder that is not mounted is no new content.

    Raises:
        ScreenError: naming the plate, how many files, and the first.
    """
    held = ingest.images_held(lake, key)
    gone = [
        path
        for image in images
        if (image.well, image.field, image.cell) in held
        for path, _ in image.files.values()
        if digests[path] is None
    ]
    if gone:
        message = (
            f"plate {key[2]!r}: {len(gone)} files of images that are in the lake are not there now (first: {gone[0]}): "
            "is the folder mounted? Give --replace to let the images go"
        )
        raise ScreenError(message)


def ahead(
    executor: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], window: int
) -> Iterator[R]:
    """Map in the background, in order, never more than `window` results ahead: memory does not grow with the plate."""
    remaining = iter(items)
    waiting: list[Future[R]] = [executor.submit(function, item) for item in islice(remaining, window)]
    while waiting:
        result = waiting.pop(0).result()
        waiting.extend(executor.submit(function, item) for item in islice(remaining, 1))
        yield result


def whole_fields(
    pairs: Iterable[tuple[PlateImage, R]], at_least: int
) -> Iterator[list[tuple[PlateImage, R]]]:
    """Group images so that the crops of one field stay together, `at_least` a group but for the last."""
    group: list[tuple[PlateImage, R]] = []
    for pair in pairs:
        image = pair[0]
        if len(group) >= at_least and (group[-1][0].well, group[-1][0].field) != (image.well, image.field):
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


class Told:
    """Counts the images of one plate that are done, and tells whoever listens."""

    def __init__(self, listener: Progress | None, plate: str, total: int) -> None:
        self.listener, self.plate, self.total, self.done = listener, plate, total, 0

    def advance(self, count: int) -> None:
        """Count some more."""
        self.done += count
        if self.listener:
            self.listener(self.plate, self.done, self.total)
