"""From a screen's images to committed plates: what is new is embedded, aggregated, committed, a plate at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import polars as pl

from extractors.base import Extractor
from extractors.embedding import Counts, Known, PipelineSettings, extract, for_plate
from extractors.plate_images import (
    PlateImage,
    Progress,
    Told,
    content_hash,
    digests_of,
    gathered,
    image_rows,
    refuse_unreachable,
)
from extractors.quality import quality_rows
from extractors.segment import CELL_NAMES, DNA_NAMES, channel_of
from extractors.staging import Staged, staged
from warehouse import ingest, layouts
from warehouse.errors import LakeUnavailableError, ScreenError, WellhouseError
from warehouse.feature_sets import FeatureSet
from warehouse.ingest import Outcome, PlateData
from warehouse.lake import Lake
from warehouse.levels import check_operators
from warehouse.names import suggestion
from warehouse.plate_builder import PlateBuilder
from warehouse.runs import Run, counts_of, outcome_of
from warehouse.screens.model import Screen

Key = tuple[str, str, str]

_REJECTION = {"well": pl.String, "field": pl.String, "cell": pl.String, "reason": pl.String}


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
        settings = resolve_channels(settings, extractor.channels, screen.origin)
    target = feature_set_of(feature_set or extractor.name, extractor, settings, is_crops)
    plates = layouts.per_plate(screen.manifest)
    known = layouts.plates(lake)
    for key in plates:
        layouts.check_batch(known, key)
    ingest.check_feature_set(lake, target)
    own = Run("ingest", {"manifest": screen.origin, "feature_set": target.name, "extractor": extractor.name})
    plate_layouts = layouts.per_plate(screen.layout)
    present = ingest.loads(lake, target.name)
    job = Job(lake, run or own, target, extractor, settings, progress)
    reports = [
        reported(
            key,
            partial(
                _ingest_plate,
                job,
                key,
                rows,
                plate_layouts.get(key),
                (arrivals or {}).get(key),
                present.get(key),
            ),
        )
        for key, rows in plates.items()
    ]
    layouts.put_annotations(lake, job.run, screen.annotations)
    if run is None:
        own.finish(lake, counts_of(reports), outcome_of(reports))
    return reports


def resolve_channels(settings: PipelineSettings, channels: tuple[str, ...], origin: str) -> PipelineSettings:
    """Fill in the channels that segmentation uses, or say which one is missing."""
    dna = settings.dna_channel or channel_of(DNA_NAMES, channels)
    cell = settings.cell_channel or channel_of(CELL_NAMES, channels)
    if dna is None:
        message = f"{origin}: no channel named {', '.join(DNA_NAMES)} among {', '.join(channels)}: give --dna-channel"
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
class Job:
    """What all plates of one ingestion, or of one extraction, have in common."""

    lake: Lake
    run: Run
    target: FeatureSet
    extractor: Extractor
    settings: PipelineSettings
    progress: Progress | None


def reported(key: Key, work: Callable[[], PlateReport]) -> PlateReport:
    """Take one plate in; what stops it (a disk, memory, its own content) stops no other plate.

    Raises:
        LakeUnavailableError: no fault of this plate, and the next would meet the same.
    """
    try:
        return work()
    except LakeUnavailableError:
        raise
    except (WellhouseError, OSError, MemoryError) as error:
        reason = " ".join(f"{error or type(error).__name__}".split())
        return PlateReport(*key, "failed", 0, 0, 0, 0, 0, reason)


def _ingest_plate(
    job: Job,
    key: Key,
    rows: pl.DataFrame,
    layout: pl.DataFrame | None,
    arrival: str | None,
    present: str | None,
) -> PlateReport:
    """Take one plate in, unless it is in (`present`: under which hash) with the same content."""
    with staged(rows, job.settings.staging) as manifest:
        images = gathered(manifest.rows)
        used = of_channels(images, job.extractor.channels)
        digests = digests_of(used, job.settings.workers)
        content = content_hash(job.target, used, digests)
        if present == content:
            outcome = ingest.relabel_plate(job.lake, job.run, job.target.name, key, layout, arrival)
            if job.progress:
                job.progress(key[2], len(images), len(images))
            return PlateReport(*key, outcome, **ingest.loaded_counts(job.lake, job.target.name, key))
        if present is not None and not job.settings.replace:
            refuse_unreachable(job.lake, key, used, digests)
        described = image_rows(used, digests, job.extractor.channels, manifest.original)
        return take_plate(
            job, key, manifest, images, content, layout=layout, described=described, arrival=arrival
        )


def of_channels(images: Sequence[PlateImage], channels: Sequence[str]) -> list[PlateImage]:
    """Keep the files of some channels: what else a manifest names decides nothing about embeddings."""
    return [
        replace(
            image, files={channel: image.files[channel] for channel in channels if channel in image.files}
        )
        for image in images
    ]


def take_plate(
    job: Job,
    key: Key,
    manifest: Staged,
    images: Sequence[PlateImage],
    content: str,
    *,
    layout: pl.DataFrame | None = None,
    described: pl.DataFrame | None = None,
    arrival: str | None = None,
    known: Known | None = None,
) -> PlateReport:
    """Read, embed and aggregate the images of one plate, and commit it.

    Args:
        job: that it is part of.
        key: source, batch, plate.
        manifest: tells where a file came from.
        images: in order, with at least the files of the extractor's channels.
        content: hash of what its embeddings are made from.
        layout: as given with the images.
        described: rows of `main.fields`; None where the lake has them.
        arrival: hash of the names, sizes and times of its files.
        known: what the lake knows of the images, so that it need not be found out again.

    Raises:
        ScreenError: nothing of it can be used, wells would be lost, or a file is another than the one that is known.
    """
    target, progress = job.target, Told(job.progress, key[2], len(images))
    extractor = for_plate(job.extractor, images, job.settings.workers)
    with PlateBuilder(target, spool_bytes=job.settings.spool_bytes, allow_missing=False) as cells:
        counts = Counts()
        extract(images, extractor, job.settings, counts, cells, progress.advance, known)
        fields = cells.fields()
        listed = pl.DataFrame(counts.rejections, schema=_REJECTION, orient="row")
        is_measured = known is not None and known.is_measured
        plate = PlateData(
            key,
            content,
            layout,
            described,
            cells.cells(),
            fields,
            cells.wells(fields),
            manifest.renamed(pl.concat([listed, cells.rejections()])),
            len(images),
            counts.images_rejected,
            cells.seen,
            cells.rejected,
            arrival=arrival,
            quality=None if is_measured else quality_rows(counts.quality, extractor.channels),
        )
        if not job.settings.replace:
            ingest.refuse_useless(plate)
        outcome = ingest.commit_plate(job.lake, job.run, target, plate, replace=job.settings.replace)
    return PlateReport(
        *key,
        outcome,
        len(images) - counts.images_rejected,
        counts.images_rejected,
        cells.seen - cells.rejected,
        cells.rejected,
        len(plate.wells),
    )
