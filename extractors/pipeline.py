"""From a screen's images to committed plates: read, segment, embed, aggregate, commit, one plate at a time."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from extractors.base import CELL_GEOMETRY, Extractor, FieldQuality, FieldSample
from extractors.images import read_field
from extractors.plate_images import (
    PlateImage,
    ahead,
    content_hash,
    digests_of,
    gathered,
    image_rows,
    refuse_unreachable,
    whole_fields,
)
from extractors.quality import measured, quality_rows
from extractors.segment import SegmentSettings, segment
from extractors.staging import Staged, staged
from warehouse import ingest, layouts
from warehouse.errors import ImageError, LakeUnavailableError, ScreenError, WellhouseError
from warehouse.feature_sets import FeatureSet
from warehouse.ingest import Outcome, PlateData
from warehouse.lake import Lake
from warehouse.levels import check_operators
from warehouse.names import suggestion
from warehouse.plate_builder import PlateBuilder
from warehouse.runs import Run, counts_of, outcome_of
from warehouse.screens.model import Screen

Key = tuple[str, str, str]
#: Called with the plate, the images done and the images of the plate.
Progress = Callable[[str, int, int], None]

_DNA_NAMES = ("DNA", "DAPI", "Hoechst")
_CELL_NAMES = ("RNA", "AGP", "Actin", "Tubulin")
_REJECTION = {"well": pl.String, "field": pl.String, "cell": pl.String, "reason": pl.String}


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
class PlateReport:
    """What became of one plate."""

    source: str
    batch: str
    plate: str
    outcome: Outcome
    images_in: int
    images_rejected: int
    cells_in: int
    cells_rejected: int
    wells_in: int
    reason: str | None = None


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


def ingest_screen(
    lake: Lake,
    screen: Screen,
    extractor: Extractor,
    *,
    feature_set: str | None = None,
    settings: PipelineSettings | None = None,
    progress: Progress | None = None,
    run: Run | None = None,
    arrivals: Mapping[Key, str] | None = None,
) -> list[PlateReport]:
    """Take the plates of a screen in, one transaction each; plates that are in with the same content are passed.

    Args:
        lake: open for writing.
        screen: read by `warehouse.screens.read_screen`.
        extractor: made by `extractors.registry.create`.
        feature_set: its name in the lake; default the extractor's.
        settings: of reading, segmentation and aggregation.
        progress: told after every image.
        run: that the plates belong to; None for one of their own.
        arrivals: names, sizes and times of the files of each plate, as a hash, to be kept with it.

    Returns:
        One report a plate, in the order of their keys. A plate that cannot be taken in has the outcome `failed`
        and its reason; nothing of it was written, what the lake held of it stays, and the others go on.

    Raises:
        ScreenError: crops and whole fields in one manifest, a channel that the manifest does not have, or a
            plate that the lake holds in another batch. Nothing was written.
        ProfileError: the feature set's name is taken by other settings. Nothing was written.
        LakeUnavailableError: the lake, or S3 with its images, cannot be reached. Plates before it are in.
    """
    settings = settings or PipelineSettings()
    check_operators(settings.field_operator, settings.well_operator)
    crops = screen.manifest["cell"].is_not_null()
    if crops.any() and not crops.all():
        message = (
            f"{screen.origin}: {int(crops.sum())} single-cell crops and {int((~crops).sum())} rows of whole "
            "fields in one manifest: ingest them as two feature sets"
        )
        raise ScreenError(message)
    is_crops = bool(crops.any())
    if not is_crops:
        settings = _resolve_channels(settings, extractor.channels, screen.origin)
    target = feature_set_of(feature_set or extractor.name, extractor, settings, is_crops)
    plates = layouts.per_plate(screen.manifest)
    known = layouts.plates(lake)
    for key in plates:
        layouts.check_batch(known, key)
    ingest.check_feature_set(lake, target)
    own = Run("ingest", {"manifest": screen.origin, "feature_set": target.name, "extractor": extractor.name})
    plate_layouts = layouts.per_plate(screen.layout)
    present = ingest.loads(lake, target.name)
    job = _Job(lake, run or own, target, extractor, settings, progress, arrivals or {})
    reports = [
        _ingest_or_report(job, key, rows, plate_layouts.get(key), present.get(key))
        for key, rows in plates.items()
    ]
    layouts.put_annotations(lake, job.run, screen.annotations)
    if run is None:
        own.finish(lake, counts_of(reports), outcome_of(reports))
    return reports


def _resolve_channels(settings: PipelineSettings, channels: tuple[str, ...], origin: str) -> PipelineSettings:
    """Fill in the channels that segmentation uses, or say which one is missing."""
    folded = {channel.casefold(): channel for channel in channels}
    dna = settings.dna_channel or next(
        (folded[n.casefold()] for n in _DNA_NAMES if n.casefold() in folded), None
    )
    cell = settings.cell_channel or next(
        (folded[n.casefold()] for n in _CELL_NAMES if n.casefold() in folded), None
    )
    if dna is None:
        message = f"{origin}: no channel named {', '.join(_DNA_NAMES)} among {', '.join(channels)}: give --dna-channel"
        raise ScreenError(message)
    for name in (dna, cell):
        if name is not None and name not in channels:
            message = (
                f"{origin}: no channel {name!r} among {', '.join(channels)}.{suggestion(name, channels)}"
            )
            raise ScreenError(message)
    return replace(settings, dna_channel=dna, cell_channel=cell)


def feature_set_of(name: str, extractor: Extractor, settings: PipelineSettings, is_crops: bool) -> FeatureSet:
    """Say what an extractor writes with these settings: two feature sets of one identity are comparable."""
    parameters = dict(extractor.parameters) | {"input": "crops" if is_crops else "fields"}
    if not is_crops:
        parameters["segmentation"] = asdict(settings.segmentation) | {
            "dna_channel": settings.dna_channel,
            "cell_channel": settings.cell_channel,
        }
    return FeatureSet(
        name,
        extractor.name,
        extractor.version,
        extractor.weights,
        json.loads(json.dumps(parameters)),
        extractor.channels,
        extractor.feature_names,
        "cell",
        settings.field_operator,
        settings.well_operator,
    )


@dataclass(frozen=True)
class _Job:
    """What all plates of one ingestion have in common."""

    lake: Lake
    run: Run
    target: FeatureSet
    extractor: Extractor
    settings: PipelineSettings
    progress: Progress | None
    arrivals: Mapping[Key, str]


def _ingest_or_report(
    job: _Job, key: Key, rows: pl.DataFrame, layout: pl.DataFrame | None, present: str | None
) -> PlateReport:
    """Take one plate in; what stops it (a disk, memory, its own content) stops no other plate."""
    try:
        with staged(rows, job.settings.staging) as manifest:
            return _ingest_plate(job, key, manifest, layout, present)
    except LakeUnavailableError:
        raise  # no fault of this plate, and the next would meet the same
    except (WellhouseError, OSError, MemoryError) as error:
        return PlateReport(
            *key, "failed", 0, 0, 0, 0, 0, " ".join(f"{error or type(error).__name__}".split())
        )


def _ingest_plate(
    job: _Job, key: Key, manifest: Staged, layout: pl.DataFrame | None, present: str | None
) -> PlateReport:
    """Take one plate in, unless it is in (`present`: under which hash) with the same content."""
    lake, run, target, extractor = job.lake, job.run, job.target, job.extractor
    images = gathered(manifest.rows)
    digests = digests_of(images, job.settings.workers)
    content = content_hash(target, images, digests)
    progress = _Progress(job.progress, key[2], len(images))
    if present == content:
        outcome = ingest.relabel_plate(lake, run, target.name, key, layout, job.arrivals.get(key))
        progress.advance(len(images))
        return PlateReport(*key, outcome, **ingest.loaded_counts(lake, target.name, key))
    if present is not None and not job.settings.replace:
        refuse_unreachable(lake, key, images, digests)
    with PlateBuilder(target, spool_bytes=job.settings.spool_bytes, allow_missing=False) as cells:
        counts = Counts()
        extract(images, extractor, job.settings, counts, cells, progress.advance)
        fields = cells.fields()
        listed = pl.DataFrame(counts.rejections, schema=_REJECTION, orient="row")
        plate = PlateData(
            key,
            content,
            layout,
            image_rows(images, digests, extractor.channels, manifest.original),
            cells.cells(),
            fields,
            cells.wells(fields),
            manifest.renamed(pl.concat([listed, cells.rejections()])),
            len(images),
            counts.images_rejected,
            cells.seen,
            cells.rejected,
            arrival=job.arrivals.get(key),
            quality=quality_rows(counts.quality, extractor.channels),
        )
        if not job.settings.replace:
            ingest.refuse_useless(plate)
        outcome = ingest.commit_plate(lake, run, target, plate, replace=job.settings.replace)
    return PlateReport(
        *key,
        outcome,
        len(images) - counts.images_rejected,
        counts.images_rejected,
        cells.seen - cells.rejected,
        cells.rejected,
        len(plate.wells),
    )


class _Progress:
    """Counts images for one plate and tells whoever listens."""

    def __init__(self, listener: Progress | None, plate: str, total: int) -> None:
        self.listener, self.plate, self.total, self.done = listener, plate, total, 0

    def advance(self, count: int) -> None:
        self.done += count
        if self.listener:
            self.listener(self.plate, self.done, self.total)


def extract(
    images: Sequence[PlateImage],
    extractor: Extractor,
    settings: PipelineSettings,
    counts: Counts,
    cells: PlateBuilder,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Read, segment and embed images in groups, and give their cells to the builder.

    Args:
        images: of one plate, in order.
        extractor: of them.
        settings: with its channels settled.
        counts: told which images were rejected, and why.
        cells: takes the cells.
        advance: told after each group how many images it had.
    """
    at_once = settings.images_at_once or (64 if any(image.cell is not None for image in images) else 4)
    with ThreadPoolExecutor(settings.workers) as executor:
        loaded = ahead(
            executor, lambda image: _load(image, extractor.channels, settings), images, 2 * at_once
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


def _load(image: PlateImage, channels: tuple[str, ...], settings: PipelineSettings) -> FieldSample | str:
    """Read and segment one image; the reason, as text, where it cannot be used."""
    try:
        pixels = read_field(image.files, channels)
        if image.cell is not None:
            row = pl.DataFrame([{"cell": image.cell}], schema=dict(CELL_GEOMETRY))  # the rest is NULL
            return FieldSample(pixels, channels, row, None, is_crop=True)
        dna = pixels[channels.index(str(settings.dna_channel))]
        body = None if settings.cell_channel is None else pixels[channels.index(settings.cell_channel)]
        table, masks = segment(dna, body, settings.segmentation)
    except ImageError as error:
        return str(error)
    return measured(FieldSample(pixels, channels, table, masks, is_crop=False))


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
