"""From images to the embeddings of their cells: read, segment (or take the cells that are known), embed, in groups."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from extractors.base import CELL_GEOMETRY, Extractor, FieldQuality, FieldSample
from extractors.images import digest, read_field
from extractors.plate_images import PlateImage, ahead, whole_fields
from extractors.quality import measured
from extractors.segment import SegmentSettings, segment
from extractors.training.illumination import fields_for_illumination
from warehouse.errors import ImageError, ScreenError
from warehouse.plate_builder import PlateBuilder


@dataclass(frozen=True)
class PipelineSettings:
    """How a plate goes from files to embeddings.

    Args:
        dna_channel: where nuclei are found; default the channel named DNA, DAPI or Hoechst.
        cell_channel: where cells are found around them; default the first of RNA, AGP, Actin, Tubulin; without
            any, cells are grown from nuclei by a set distance.
        segmentation: of whole fields; single-cell crops are not segmented here.
        field_operator: cells to field.
        well_operator: fields to well.
        workers: threads that read and segment ahead of the extractor.
        images_at_once: images handed to the extractor together; 0 for 4 fields or 64 crops.
        spool_bytes: rows of cells kept in memory before they wait on disk.
        replace: let images and wells go that are in and that this manifest no longer reaches.
        staging: folder with room for the images of one plate that come from S3; None for TMPDIR.
    """

    dna_channel: str | None = None
    cell_channel: str | None = None
    segmentation: SegmentSettings = field(default_factory=SegmentSettings)
    field_operator: str = "median"
    well_operator: str = "mean"
    workers: int = 2
    images_at_once: int = 0
    spool_bytes: int = 512 * 2**20
    replace: bool = False
    staging: Path | None = None


@dataclass(frozen=True)
class Known:
    """What a lake knows of a plate's images before they are read.

    Attributes:
        cells: well and field to the table of cells (`extractors.base.CELL_GEOMETRY`) of whole fields that need not
            be segmented again; their samples have no masks.
        digests: file to the digest that it must have, None where there was no file; a file that is not named may
            have any.
        is_measured: the fields' quality is in the lake, and is not measured again.
    """

    cells: Mapping[tuple[str, str], pl.DataFrame] = field(default_factory=dict)
    digests: Mapping[Path, str | None] = field(default_factory=dict)
    is_measured: bool = False


@dataclass
class Counts:
    """What became of images, beside the cells that came out of them.

    Attributes:
        images_rejected: how many.
        rejections: well, field, cell and reason of each.
        quality: well, field and what was measured on each whole field.
    """

    images_rejected: int = 0
    rejections: list[tuple[str, str, str | None, str]] = field(default_factory=list)
    quality: list[tuple[str, str, FieldQuality | None]] = field(default_factory=list)


def extract(
    images: Sequence[PlateImage],
    extractor: Extractor,
    settings: PipelineSettings,
    counts: Counts,
    cells: PlateBuilder,
    advance: Callable[[int], None] = lambda count: None,
    known: Known | None = None,
) -> None:
    """Read, segment and embed images in groups, and give their cells to the builder.

    Args:
        images: of one plate, in order.
        extractor: of them.
        settings: with its channels settled.
        counts: told which images were rejected, and why.
        cells: takes the cells.
        advance: told after each group how many images it had.
        known: what need not be found out again.

    Raises:
        ScreenError: a file is not the one that is known.
    """
    known = known or Known()
    at_once = settings.images_at_once or (64 if any(image.cell is not None for image in images) else 4)
    with ThreadPoolExecutor(settings.workers) as executor:
        loaded = ahead(
            executor,
            lambda image: _prepared(extractor, load(image, extractor.channels, settings, known)),
            images,
            max(2 * at_once, settings.workers),
        )
        for group in whole_fields(zip(images, loaded, strict=True), at_once):
            usable, matrices = [], []
            for (image, sample), result in zip(group, _embedded(extractor, group), strict=True):
                if isinstance(sample, FieldSample) and isinstance(result, np.ndarray):
                    usable.append((image, sample))
                    matrices.append(result)
                else:
                    counts.images_rejected += 1
                    counts.rejections.append((image.well, image.field, image.cell, str(result)))
            if usable:
                _add(usable, matrices, counts, cells)
            advance(len(group))


def _prepared(extractor: Extractor, sample: FieldSample | str) -> FieldSample | str:
    prepared = getattr(extractor, "prepared", None)
    if prepared is None or isinstance(sample, str):
        return sample
    try:
        made: FieldSample = prepared(sample)
    except ImageError as error:
        return str(error)
    return made


def _embedded(
    extractor: Extractor, group: Sequence[tuple[PlateImage, FieldSample | str]]
) -> list[np.ndarray | str]:
    """Embed what could be read; the reason, as text, for an image that could not, or that the extractor refuses."""
    samples = [sample for _, sample in group if isinstance(sample, FieldSample)]
    found: Iterator[np.ndarray | str]
    try:
        found = iter(extractor.extract(samples))
    except ImageError:  # which one is it? The others are as good as before.
        found = iter([_embedded_alone(extractor, sample) for sample in samples])
    return [sample if isinstance(sample, str) else next(found) for _, sample in group]


def _embedded_alone(extractor: Extractor, sample: FieldSample) -> np.ndarray | str:
    try:
        return extractor.extract([sample])[0]
    except ImageError as error:
        return str(error)


def load(
    image: PlateImage, channels: tuple[str, ...], settings: PipelineSettings, known: Known
) -> FieldSample | str:
    """Read and segment one image; the reason, as text, where it cannot be used."""
    refuse_changed(image, known.digests)
    try:
        pixels = read_field(image.files, channels)
        if image.cell is not None:
            row = pl.DataFrame([{"cell": image.cell}], schema=dict(CELL_GEOMETRY))  # the rest is NULL
            return FieldSample(pixels, channels, row, None, is_crop=True)
        if (image.well, image.field) in known.cells:
            table = known.cells[image.well, image.field]
            return FieldSample(pixels, channels, table, None, is_crop=False)
        dna = pixels[channels.index(str(settings.dna_channel))]
        body = None if settings.cell_channel is None else pixels[channels.index(settings.cell_channel)]
        table, masks = segment(dna, body, settings.segmentation)
    except ImageError as error:
        return str(error)
    sample = FieldSample(pixels, channels, table, masks, is_crop=False)
    return sample if known.is_measured else measured(sample)


def refuse_changed(image: PlateImage, digests: Mapping[Path, str | None]) -> None:
    """Refuse a file that is another than the one that came in: its embedding would stand beside other pixels' cells.

    Raises:
        ScreenError: the file, and what to do.
    """
    for path, _ in image.files.values():
        if path not in digests:
            continue
        wanted = digests[path]
        if not path.is_file():
            if wanted is None:
                continue  # as it was when the plate came in: the image is rejected when it is read
            message = f"{path}: is in the lake and is not there now: is the folder mounted? Or ingest the plate again"
            raise ScreenError(message)
        found = digest(path)
        if found != wanted:
            was = "was not there" if wanted is None else f"had digest {wanted[:16]}…"
            message = (
                f"{path}: {was} when the plate came in, and has {found[:16]}… now: ingest the plate again"
            )
            raise ScreenError(message)


def _add(
    usable: Sequence[tuple[PlateImage, FieldSample]],
    matrices: Sequence[np.ndarray],
    counts: Counts,
    cells: PlateBuilder,
) -> None:
    """Give the cells of whole fields to the builder, which rejects those that are not finite."""
    tables = []
    for image, sample in usable:
        counts.quality.append((image.well, image.field, sample.quality))
        ids = (pl.lit(image.well).alias("well"), pl.lit(image.field).alias("field"))
        tables.append(sample.cells.select(*ids, pl.all()))
    cells.add(pl.concat(tables), np.concatenate(matrices))


def for_plate(extractor: Extractor, images: Sequence[PlateImage], workers: int) -> Extractor:
    """Give the extractor to use for one plate: one with `needs_plate` looks at some of its fields first.

    Args:
        extractor: any; one without `needs_plate` is given back as it is, and so is one that is to embed crops.
        images: of the plate, in order; the same fields are chosen as in training.
        workers: threads that read.
    """
    if not getattr(extractor, "needs_plate", False) or any(image.cell is not None for image in images):
        return extractor
    fields = fields_for_illumination(images, extractor.channels, workers)
    made: Extractor = extractor.for_plate(fields)  # type: ignore[attr-defined]
    return made
