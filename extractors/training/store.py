"""The crops of many plates on disk: cut once, taken up again, read a batch at a time."""

import hashlib
import math
import mmap
import os
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from extractors.plate_images import Progress, Told
from extractors.training.crops import LARGEST, CropSettings
from extractors.training.illumination import evenly
from extractors.training.parts import Job, Part, cut, is_back, job_of, read_part
from warehouse.errors import TrainingError
from warehouse.known_cells import KnownCells, images_of_plates
from warehouse.lake import Lake

_PLATE = ("source", "batch", "plate")
#: The most crops that means and standard deviations are taken from.
_MOST_FOR_STATISTICS = 8192
#: The most files that are mapped at once: each map holds a descriptor, and a process has 1,024 of these as a rule.
_MOST_MAPS = 256


class CropStore:
    """Crops of known cells, a file a plate, mapped into memory: only what is asked for is read.

    Made by `open_or_cut`.

    Attributes:
        rows: one row a crop, as `KnownCells.rows`.
        channels: of each crop, in order.
        settings: of the crops.
        left_out: cells that have no crop, and why.
        constant: of each channel, crops in which it has one value.
        digest: hash of which crops these are, in which order.
    """

    def __init__(
        self, known: KnownCells, settings: CropSettings, parts: list[Part], lengths: list[int]
    ) -> None:
        self.channels, self.settings = known.channels, settings
        self.rows, self.left_out = _kept(known, parts, lengths)
        ends = np.cumsum([part.crops for part in parts])
        if len(self.rows) != ends[-1]:
            message = (
                f"{parts[0].folder.parent} holds {ends[-1]} crops of {len(self.rows)} cells: another process changed "
                "it meanwhile: try again"
            )
            raise TrainingError(message)
        counts = np.sum([part.constant for part in parts], axis=0)
        self.constant = dict(zip(self.channels, map(int, counts), strict=True))
        names = [
            (part.folder.name, [(left.well, left.field, left.cell) for left in part.left]) for part in parts
        ]
        self.digest = hashlib.blake2b(repr(names).encode(), digest_size=16).hexdigest()
        self._starts = np.concatenate([[0], ends])
        self._files = [part.pixels for part in parts]
        self._stamps = [_stamp(file.stat()) for file in self._files]
        self._open()

    @classmethod
    def open_or_cut(
        cls,
        folder: Path,
        lake: Lake,
        known: KnownCells,
        settings: CropSettings,
        *,
        workers: int = 2,
        progress: Progress | None = None,
    ) -> Self:
        """Open the crops of known cells, after cutting those of plates that are not there yet.

        A part is named by a hash of what decides its pixels, and is there as a whole or not at all: after a kill the
        next call goes on with the plate it was at. Several processes may do this at once.

        Args:
            folder: of all crops; made where it is not there.
            lake: that the cells are known of.
            known: which cells.
            settings: of the crops.
            workers: threads that read and prepare.
            progress: told after every image.

        Raises:
            TrainingError: there is no room, no image of a plate can be used, a channel has one value in all crops, or,
                with `masked`, a field's cells are not found again.
            LakeUnavailableError: S3 with the images cannot be reached.
        """
        jobs, lengths = _jobs(lake, known, settings)
        parts = [read_part(folder / job.name) for job in jobs]
        parts = [
            part if part and not is_back(job, part) else None for job, part in zip(jobs, parts, strict=True)
        ]
        _refuse_full(folder, [job for job, part in zip(jobs, parts, strict=True) if part is None])
        whole = []
        for job, part in zip(jobs, parts, strict=True):
            told = Told(progress, job.key[2], len(job.images))
            if part is None:
                part = cut(folder, job, workers=workers, advance=told.advance)
            else:
                told.advance(len(job.images))
            whole.append(part)
        _refuse_constant(known.channels, whole)
        return cls(known, settings, whole, lengths)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Read crops.

        Args:
            rows: (b,) integers, places in `rows`, in any order, repeated or not.

        Returns:
            (b, C, size, size) in the dtype of the settings.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            message = f"rows {rows.min()} to {rows.max()} of a store of {len(self)} crops"
            raise IndexError(message)
        side = self.settings.side
        out = np.empty((len(rows), len(self.channels), side, side), self.settings.dtype)
        order = np.argsort(rows, kind="stable")
        parts = np.searchsorted(self._starts, rows[order], side="right") - 1
        present, firsts = np.unique(parts, return_index=True)
        for part, places in zip(present, np.split(order, firsts[1:]), strict=False):
            pixels = self._pixels(part)
            out[places] = pixels[rows[places] - self._starts[part]]
        return out

    def _open(self) -> None:
        self._mapped = lru_cache(_MOST_MAPS)(_mapped)
        # What is mapped stays readable when another process cuts the plate anew.
        for part in range(min(len(self._files), _MOST_MAPS)):
            self._pixels(part)

    def _pixels(self, part: int) -> np.ndarray:
        side, count = self.settings.side, int(self._starts[part + 1] - self._starts[part])
        shape = (count, len(self.channels), side, side)
        return self._mapped(self._files[part], self._stamps[part], shape, self.settings.dtype)

    def statistics(self, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Give mean and standard deviation of each channel on the scale 0 to 1: two of (C,) float64.

        Args:
            rows: places in `rows`; None for all. Of more than 8,192 so many are taken, evenly spread.
        """
        chosen = np.arange(len(self)) if rows is None else np.sort(np.asarray(rows, dtype=np.int64))
        chosen = np.array(evenly(chosen, _MOST_FOR_STATISTICS))
        largest = LARGEST[self.settings.dtype]
        counts = np.zeros((len(self.channels), largest + 1), np.int64)
        for start in range(0, len(chosen), 256):
            crops = self.gather(chosen[start : start + 256])
            for channel in range(len(counts)):
                counts[channel] += np.bincount(crops[:, channel].ravel(), minlength=largest + 1)
        values = np.arange(largest + 1) / largest
        mean = counts @ values / counts.sum(1)
        spread = np.sqrt(((values - mean[:, None]) ** 2 * counts).sum(1) / counts.sum(1))
        return mean, spread

    def __getstate__(self) -> dict[str, Any]:
        # A process that reads ahead maps the files itself: the crops do not travel.
        return self.__dict__ | {"_mapped": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _stamp(found: os.stat_result) -> tuple[int, int]:
    """Tell a file from another one that took its place: its length, and when it was written."""
    return found.st_size, found.st_mtime_ns


def _mapped(file: Path, stamp: tuple[int, int], shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Map the crops of a plate: `np.load` without reading the header, which takes longer than a few crops."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    with file.open("rb") as opened:
        if _stamp(os.fstat(opened.fileno())) != stamp:
            # An image that could not be read is back, and another process has cut the plate anew.
            message = f"{file}: another process changed it meanwhile: try again"
            raise TrainingError(message)
        if stamp[0] <= size:
            message = (
                f"{file} is damaged, it is shorter than its crops: remove its folder, and they are cut again"
            )
            raise TrainingError(message)
        held = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(held, dtype, offset=stamp[0] - size).reshape(shape)


def _jobs(lake: Lake, known: KnownCells, settings: CropSettings) -> tuple[list[Job], list[int]]:
    """Say what is wanted of each plate, and how many rows of `known` it has."""
    plates = known.rows.group_by(_PLATE, maintain_order=True).len()
    lengths = plates["len"].to_list()
    keys = list(plates.select(_PLATE).iter_rows())
    images = images_of_plates(lake, keys, known.channels, known.is_crops)
    jobs, start = [], 0
    for (key, rows), length in zip(images, lengths, strict=True):
        jobs.append(job_of(key, known.rows.slice(start, length), rows, known, settings))
        start += length
    return jobs, lengths


def _kept(known: KnownCells, parts: list[Part], lengths: list[int]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Leave the cells of images out that could not be used, and count them."""
    on = ["well", "field", "cell"] if known.is_crops else ["well", "field"]
    reasons = [left.reason for part in parts for left in part.left]
    if not reasons:
        return known.rows, {}
    kept, start = [], 0
    for part, length in zip(parts, lengths, strict=True):
        cells = known.rows.slice(start, length)
        if part.left:
            gone = pl.DataFrame(
                [[getattr(left, name) for name in on] for left in part.left],
                schema=dict.fromkeys(on, pl.String),
                orient="row",
            )
            cells = cells.join(gone, on=on, how="anti", maintain_order="left")
        kept.append(cells)
        start += length
    rows = pl.concat(kept)
    said = f"image that cannot be used ({len(reasons)} images, first: {reasons[0]})"
    return rows, {said: len(known.rows) - len(rows)}


def _refuse_full(folder: Path, jobs: list[Job]) -> None:
    """Refuse to begin what cannot be ended for want of room."""
    wanted = sum(
        len(job.cells)
        * len(job.known.channels)
        * job.settings.side**2
        * np.dtype(job.settings.dtype).itemsize
        for job in jobs
    )
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        cells = sum(len(job.cells) for job in jobs)
        message = (
            f"crops of {cells} cells take {wanted / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB left: choose "
            "cells with --where, another folder with --models, or smaller crops"
        )
        raise TrainingError(message)


def _refuse_constant(channels: tuple[str, ...], parts: list[Part]) -> None:
    lowest, highest = (np.array([getattr(part, name) for part in parts]) for name in ("lowest", "highest"))
    for number, channel in enumerate(channels):
        if lowest[:, number].min() == highest[:, number].max():
            count = sum(part.crops for part in parts)
            message = (
                f"channel {channel!r} is constant in all {count} crops: a network cannot learn from it: leave it out "
                "with --channels, or look at its images"
            )
            raise TrainingError(message)
