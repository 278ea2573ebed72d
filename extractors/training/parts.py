"""The crops of one plate: cut, and put beside those of other plates all at once, or not at all."""

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl

from extractors.base import CELL_GEOMETRY, FieldSample
from extractors.images import digest, read_field
from extractors.plate_images import PlateImage, ahead, gathered
from extractors.staging import staged
from extractors.training.crops import CropSettings, prepare
from extractors.training.illumination import evenly, fields_for_illumination, illumination_of
from extractors.training.masks import as_known
from warehouse.errors import ImageError, TrainingError
from warehouse.known_cells import Key, KnownCells

#: Another number where `prepare` gives other pixels than before: what was cut then is not taken for the same.
_VERSION = 1
_YOUNG_SECONDS = 60
_PIXELS, _ABOUT = "pixels.npy", "part.json"
_IMAGE = ("well", "field", "cell")
_CHANGED = "is not the file that came in: ingest the plate again"


@dataclass(frozen=True)
class Left:
    """An image whose cells have no crops.

    Attributes:
        well: of it.
        field: of it.
        cell: None for a whole field.
        cells: how many it had.
        reason: why.
        is_gone: True where a file was not there, or not the one that came in: it may be there another time.
    """

    well: str
    field: str
    cell: str | None
    cells: int
    reason: str
    is_gone: bool


@dataclass(frozen=True)
class Part:
    """What was cut of one plate; tuples run over the channels.

    Attributes:
        folder: that holds it.
        crops: how many.
        lowest: smallest value in all crops.
        highest: largest value.
        constant: crops of one value.
        left: images left out.
    """

    folder: Path
    crops: int
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    constant: tuple[int, ...]
    left: tuple[Left, ...]

    @property
    def pixels(self) -> Path:
        """The file of crops, (n, C, size, size)."""
        return self.folder / _PIXELS


@dataclass(frozen=True)
class Job:
    """One plate whose crops are wanted.

    Attributes:
        key: source, batch and plate.
        cells: rows of `KnownCells.rows` of this plate.
        images: rows of `main.fields` that these cells are in, in their order.
        light: rows of `main.fields` that the plate's illumination function is made of; none for single-cell pictures.
        known: what the cells are of.
        settings: of the crops.
    """

    key: Key
    cells: pl.DataFrame
    images: pl.DataFrame
    light: pl.DataFrame
    known: KnownCells
    settings: CropSettings

    @property
    def name(self) -> str:
        """Hash of all that decides the crops: settings, channels, pixels by the digests of their files, and cells."""
        segmentation = self.known.feature_set.parameters.get("segmentation") if self.settings.masked else None
        decides = (
            _VERSION,
            asdict(self.settings),
            self.known.channels,
            self.known.is_crops,
            segmentation,
            self.key,
        )
        hasher = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=16)
        for frame in (self.images, self.light):
            hasher.update(repr(frame.select(*_IMAGE, "channels", "planes", "digests").rows()).encode())
        hasher.update(self.cells.select(*_IMAGE, "x_px", "y_px").write_csv().encode())
        return hasher.hexdigest()


def job_of(
    key: Key, cells: pl.DataFrame, images: pl.DataFrame, known: KnownCells, settings: CropSettings
) -> Job:
    """Say what is to be cut of a plate.

    Args:
        key: source, batch and plate.
        cells: rows of `KnownCells.rows` of this plate, each in one of the images.
        images: all of the plate that have the channels, as `known_cells.images_of` gives them.
        known: what the cells are of.
        settings: of the crops.
    """
    on = list(_IMAGE if known.is_crops else _IMAGE[:2])
    with_cells = images.join(cells.select(on).unique(), on=on, how="semi", maintain_order="left")
    is_lit = settings.illumination and not known.is_crops
    light = images[evenly(range(len(images)))] if is_lit else images.clear()
    return Job(key, cells, with_cells, light, known, settings)


def read_part(folder: Path) -> Part | None:
    """Read what is said of a part; None where there is none."""
    try:
        said: dict[str, Any] = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except OSError:
        return None
    tuples = {name: tuple(said[name]) for name in ("lowest", "highest", "constant")}
    return Part(folder, said["crops"], **tuples, left=tuple(Left(**image) for image in said["left"]))


def is_back(job: Job, part: Part) -> bool:
    """Tell whether a file that was not there when the part was cut is there by now."""
    gone = {(left.well, left.field, left.cell) for left in part.left if left.is_gone}
    if not gone:
        return False
    for row in job.images.select(*_IMAGE, "paths", "digests").iter_rows():
        if row[:3] in gone and all(map(_is_same, row[3], row[4])):
            return True
    return False


def _is_same(path: str, recorded: str | None) -> bool:
    try:
        return digest(Path(path)) == recorded
    except ImageError:
        return False


def cut(
    folder: Path, job: Job, *, workers: int = 2, advance: Callable[[int], None] = lambda count: None
) -> Part:
    """Cut the crops of a plate into `folder / job.name`; whatever stops this, there is a whole part or none.

    Args:
        folder: of all parts.
        job: what is wanted.
        workers: threads that read and prepare.
        advance: told of images that are done.

    Raises:
        TrainingError: no image of the plate can be used, the disk is full, or, with `masked`, the cells found anew in
            a field are not those of the lake.
    """
    own = folder / f".{job.name}-{uuid.uuid4().hex}"
    target = folder / job.name
    try:
        own.mkdir(parents=True)
        _tidy(folder, job.name)
        part = _write(own, job, workers, advance)
        present = read_part(target)
        if present is not None and present.left == part.left:
            return present  # another process was first
        if present is not None:
            target.rename(own / "former")  # whoever reads it keeps it open
        own.rename(target)
        shutil.rmtree(target / "former", ignore_errors=True)
    except OSError as error:
        message = f"crops of plate {job.key[2]!r} cannot be written to {folder}: {error.strerror or error}"
        raise TrainingError(message) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return Part(target, part.crops, part.lowest, part.highest, part.constant, part.left)


def _tidy(folder: Path, name: str) -> None:
    """Remove what killed processes left of a part: nobody holds its lock."""
    for left in folder.glob(f".{name}-*/{_PIXELS}"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A process that has only just made its file may not hold the lock yet.
            if time.time() - left.stat().st_mtime > _YOUNG_SECONDS:
                shutil.rmtree(left.parent, ignore_errors=True)


def _write(own: Path, job: Job, workers: int, advance: Callable[[int], None]) -> Part:
    channels, side = len(job.known.channels), job.settings.side
    ends = np.array([[np.iinfo(job.settings.dtype).max] * channels, [0] * channels])
    constant, count, left = np.zeros(channels, np.int64), 0, []
    with (own / _PIXELS).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        start = _header(file, len(job.cells), channels, side, job.settings.dtype)
        for crops in _crops(job, workers):
            advance(1)
            if isinstance(crops, Left):
                left.append(crops)
                continue
            lowest, highest = crops.min(axis=(2, 3)), crops.max(axis=(2, 3))
            ends = np.array([np.minimum(ends[0], lowest.min(0)), np.maximum(ends[1], highest.max(0))])
            constant += (lowest == highest).sum(0)
            count += len(crops)
            file.write(crops.data)
        if count == 0:
            is_away = any(image.is_gone and _CHANGED not in image.reason for image in left)
            remedy = "is the folder mounted? Leave" if is_away else "leave"
            message = (
                f"plate {job.key[2]!r}: none of its {len(job.images)} images can be used (first: {left[0].reason}): "
                f"{remedy} the plate out with --where"
            )
            raise TrainingError(message)
        file.seek(0)
        # NumPy leaves room in a header for any number of rows.
        assert _header(file, count, channels, side, job.settings.dtype) == start
        file.flush()
        os.fsync(file.fileno())
    part = Part(own, count, *(tuple(map(int, values)) for values in (*ends, constant)), left=tuple(left))
    said = {
        "plate": list(job.key),
        "channels": list(job.known.channels),
        "settings": asdict(job.settings),
        **{name: getattr(part, name) for name in ("crops", "lowest", "highest", "constant")},
        "left": [asdict(image) for image in left],
    }
    (own / _ABOUT).write_text(json.dumps(said, indent=1), encoding="utf-8")
    return part


def _header(file: BinaryIO, count: int, channels: int, side: int, dtype: str) -> int:
    shape = (count, channels, side, side)
    said = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, said)
    return file.tell()


def _crops(job: Job, workers: int) -> Iterator[np.ndarray | Left]:
    """Give the crops of each image with cells, (n, C, size, size), in order, or why there are none."""
    files = ["channels", "paths", "planes", "digests"]
    both = pl.concat([job.images, job.light]).unique(list(_IMAGE), keep="first")
    rows = both.select(*_IMAGE, *files).explode(files)
    rows = rows.rename(dict(zip(files, ("channel", "path", "plane", "digest"), strict=True)))
    with staged(rows.filter(pl.col("channel").is_in(job.known.channels))) as manifest:
        by_image = {(image.well, image.field, image.cell): image for image in gathered(manifest.rows)}
        recorded = dict(manifest.rows.select("path", "digest").iter_rows())
        lit = [by_image[row] for row in job.light.select(_IMAGE).iter_rows()]
        light = illumination_of(fields_for_illumination(lit, job.known.channels, workers)) if lit else None
        images = [by_image[row] for row in job.images.select(_IMAGE).iter_rows()]
        on = list(_IMAGE if job.known.is_crops else _IMAGE[:2])
        cells = [part for _, part in job.cells.group_by(on, maintain_order=True)]

        def crops_of(pair: tuple[PlateImage, pl.DataFrame]) -> np.ndarray | Left:
            return _crops_of(*pair, job, light, recorded)

        with ThreadPoolExecutor(workers) as executor:
            for made in ahead(executor, crops_of, zip(images, cells, strict=True), 4 * workers):
                is_left = isinstance(made, Left)
                yield replace(made, reason=manifest.original(made.reason)) if is_left else made


def _crops_of(
    image: PlateImage, cells: pl.DataFrame, job: Job, light: np.ndarray | None, recorded: dict[str, str]
) -> np.ndarray | Left:
    is_gone = False
    try:
        for path in dict.fromkeys(path for path, _ in image.files.values()):
            is_gone = True
            if digest(path) != recorded[str(path)]:
                message = f"{path}: {_CHANGED}"
                raise ImageError(message)
            is_gone = False
        pixels = read_field(image.files, job.known.channels)
        if job.known.is_crops:
            row = pl.DataFrame([{"cell": image.cell}], schema=dict(CELL_GEOMETRY))
            sample = FieldSample(pixels, job.known.channels, row, None, is_crop=True)
        else:
            masks = as_known(pixels, cells, job.known) if job.settings.masked else None
            sample = FieldSample(pixels, job.known.channels, cells, masks, is_crop=False)
        return prepare(sample, job.settings, light)
    except ImageError as error:
        return Left(image.well, image.field, image.cell, len(cells), str(error), is_gone)
