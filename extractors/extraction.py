"""Embedding the images that a lake knows already: which extractor, which plates, which cells; a transaction a plate.

`ingest` begins with a manifest, `extract` with `main.fields`. Both give a plate the same identity and the same content
hash, so that what one took in is nothing new to the other.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from os import cpu_count
from pathlib import Path

import polars as pl

from extractors import pipeline, registry
from extractors.base import CELL_GEOMETRY, Extractor, SettingError
from extractors.embedding import Known, PipelineSettings
from extractors.known_images import at_hand, images_and_digests
from extractors.pipeline import Job, Key, PlateReport, Progress
from extractors.plate_images import content_hash
from extractors.remake import extraction_of, remade
from extractors.training.model_folder import is_trained, models_folder, read_model
from warehouse import feature_sets, ingest, layouts, quarantine
from warehouse.errors import ScreenError, TrainingError, UnknownNameError
from warehouse.feature_sets import FeatureSet
from warehouse.known_cells import cells_feature_set, how_found, images_of, knows_cells, plates_with
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.runs import Run, counts_of, outcome_of
from warehouse.sqltext import relation

#: The most threads that read ahead, where nobody says how many.
_THREADS = 16


@dataclass(frozen=True)
class Asked:
    """What is to be extracted.

    Attributes:
        feature_set: its name; one that the lake has is gone on with, by the extractor that it was made with.
        extractor: of the registry, for a new one; default the method of the model of this name.
        model: folder of a trained model; default the one of the feature set's name among the models.
        models: folder of models; default the lake's.
        cells: feature set whose cells are embedded; default any whose cells were found in the same way.
        channels: of a new feature set that is not of a model; default those of the cells' feature set.
        settings: of the extractor.
        sources: only plates of these; empty for all. So too `batches` and `plates`.
        batches: likewise.
        plates: likewise.
        workers: threads that read; 0 for as many as there are cores, at most 16.
    """

    feature_set: str
    extractor: str | None = None
    model: str | None = None
    models: str | None = None
    cells: str | None = None
    channels: tuple[str, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    plates: tuple[str, ...] = ()
    workers: int = 0


@dataclass(frozen=True)
class Extraction:
    """What became of the plates, and what should be known of them."""

    reports: list[PlateReport]
    notes: tuple[str, ...]


def extract(lake: Lake, asked: Asked, progress: Progress | None = None) -> Extraction:
    """Embed the images that the lake knows; plates that are in with the same content are passed unread.

    Args:
        lake: open for writing.
        asked: what is wanted.
        progress: told after every image.

    Returns:
        One report a plate, as `extractors.pipeline.ingest_screen`: one that fails stops no other.

    Raises:
        UnknownNameError: no such extractor, feature set, channel, source, batch or plate.
        SearchError: the feature set's extractor cannot be had as it was; what differs.
        ProfileError: the name is taken by another feature set, or can be none.
        TrainingError: the folder of a model is missing or damaged.
        LakeUnavailableError: the lake, or S3 with its images, cannot be reached. Plates before it are in.
    """
    feature_sets.check_name(asked.feature_set)
    target, extractor, settings = _made(lake, asked)
    ingest.check_feature_set(lake, target)
    keys, notes = _plates(lake, asked, target)
    ways = _known_ways(lake, asked, target, extractor)
    run = Run("extract", {key: value for key, value in asdict(asked).items() if value})
    job = Job(lake, run, target, extractor, settings, progress)
    present = ingest.loads(lake, target.name)
    held = {key for name, key in quarantine.keys(lake) if name == target.name}
    reports = [
        pipeline.reported(key, partial(_extract_plate, job, ways, key, present.get(key), key in held))
        for key in keys
    ]
    run.finish(lake, counts_of(reports), outcome_of(reports))
    return Extraction(reports, notes)


# ------------------------------------------------------------------------------------------ which extractor


def _made(lake: Lake, asked: Asked) -> tuple[FeatureSet, Extractor, PipelineSettings]:
    """Make the extractor: the very one of a feature set that is there, else what was asked for."""
    workers = asked.workers or min(cpu_count() or 1, _THREADS)
    models = models_folder(lake, asked.models)
    given = asked.settings | ({} if asked.model is None else {"model": asked.model})
    present = feature_sets.read(lake, asked.feature_set)
    if present is not None:
        if asked.extractor not in (None, present.extractor):
            message = (
                f"feature set {present.name!r} was made by {present.extractor}, not by {asked.extractor}: leave "
                "--extractor out to go on with it, or name another feature set"
            )
            raise SettingError(message)
        extractor, settings = remade(present, given, workers, models)
        return present, extractor, settings
    name, channels, trained_on = asked.extractor, asked.channels, None
    if name is None or (registry.entry(name).trains and "model" not in given):
        folder = Path(str(given.get("model", models / asked.feature_set)))
        if name is None and "model" not in given and not folder.exists():
            raise _nothing_of_this_name(lake, asked.feature_set, models)
        given["model"] = str(folder)
    if "model" in given and (name is None or registry.entry(name).trains):
        card = read_model(Path(str(given["model"]))).card
        if name not in (None, card.method):
            message = f"{given['model']} is a model of {card.method}, not of {name}: leave --extractor out"
            raise SettingError(message)
        name, channels, trained_on = card.method, channels or card.channels, card.data.get("cells_of")
    preferred = None if trained_on is None else str(trained_on)
    cells = cells_feature_set(lake, asked.cells, preferred=preferred, channels=channels or None)
    is_crops = cells.parameters["input"] == "crops"
    extractor = registry.create(str(name), tuple(channels) or cells.channels, given)
    settings = PipelineSettings() if is_crops else extraction_of(cells, workers)
    settings = replace(settings, field_operator="median", well_operator="mean", workers=workers)
    if not is_crops:
        settings = pipeline.resolve_channels(settings, extractor.channels, f"feature set {cells.name!r}")
    return (
        pipeline.feature_set_of(asked.feature_set, extractor, settings, is_crops),
        extractor,
        settings,
    )


def _nothing_of_this_name(lake: Lake, name: str, models: Path) -> UnknownNameError:
    trained = [path.name for path in models.glob("*") if is_trained(path)]
    error = unknown(name, "feature set or model", {*feature_sets.names(lake), *trained})
    return UnknownNameError(
        f"{error} To make a new one give --extractor NAME, or --model FOLDER (looked for in {models})."
    )


# ------------------------------------------------------------------------------------------ which plates


def _plates(lake: Lake, asked: Asked, target: FeatureSet) -> tuple[list[Key], tuple[str, ...]]:
    """List the plates with images of these channels and this kind, of those asked for; and those that lack them."""
    is_crops = target.parameters["input"] == "crops"
    having = {(str(a), str(b), str(c)) for a, b, c in plates_with(lake, target.channels, is_crops)}
    every = {(str(a), str(b), str(c)) for a, b, c in plates_with(lake, (), is_crops)}
    wanted = sorted(every)
    for place, (what, names) in enumerate(
        (("source", asked.sources), ("batch", asked.batches), ("plate", asked.plates))
    ):
        known = {key[place] for key in every}
        for name in names:
            if name not in known:
                raise unknown(name, f"{what} with images", known)
        wanted = [key for key in wanted if not names or key[place] in names]
    lacking = [key for key in wanted if key not in having]
    kind = "single-cell images" if is_crops else "whole fields"
    if len(lacking) == len(wanted):
        message = (
            f"none of {len(wanted)} plates has {kind} with channels {', '.join(target.channels)}: "
            "name other plates or --channels, or ingest images that have them"
        )
        raise ScreenError(message)
    told = (
        f"{len(lacking)} of {len(wanted)} plates left out (first: {'/'.join(lacking[0])}): "
        if lacking
        else ""
    )
    notes = (f"{told}they have no {kind} with channels {', '.join(target.channels)}",) if lacking else ()
    return [key for key in wanted if key in having], notes


# ------------------------------------------------------------------------------------------ which cells


def _known_ways(
    lake: Lake, asked: Asked, target: FeatureSet, extractor: Extractor
) -> Sequence[tuple[FeatureSet, dict[Key, str]]]:
    """List the feature sets whose cells were found as the target's would be, each with its plates' content hashes.

    Raises:
        TrainingError: the cells asked for were found in another way.
    """
    names = feature_sets.names(lake) if asked.cells is None else [asked.cells]
    sets = [each for each in (feature_sets.find(lake, name) for name in names) if knows_cells(each)]
    same = [each for each in sets if how_found(each) == how_found(target)]
    if asked.cells is not None and not same:
        message = (
            f"the cells of {asked.cells!r} were found otherwise than those of {target.name!r}: leave --cells out, or "
            "extract into another feature set"
        )
        raise TrainingError(message)
    if target.parameters["input"] == "crops" or getattr(extractor, "needs_masks", True):
        return ()
    return [(each, ingest.loads(lake, each.name)) for each in same]


def _known_cells(
    lake: Lake, ways: Sequence[tuple[FeatureSet, dict[Key, str]]], key: Key, rows: pl.DataFrame
) -> dict[tuple[str, str], pl.DataFrame]:
    """Read the cells of a plate's fields where a feature set found them in these very images.

    Fields of which anything was rejected are not among them: only segmenting tells which cells they have.
    """
    for found, loaded in ways:
        images, digests = images_and_digests(rows, found.channels)
        if loaded.get(key) != content_hash(found, images, digests):
            continue
        table = lake.frame(
            f"SELECT * EXCLUDE (source, batch, plate, embedding) FROM {relation(found.name, 'cells')} "
            f"WHERE {layouts.PLATE} ORDER BY well, field, try_cast(cell AS INTEGER)",
            list(key),
        )
        parts = table.partition_by("well", "field", as_dict=True, include_key=False)
        unsure = lake.frame(
            f"SELECT DISTINCT well, field FROM main.rejections WHERE feature_set = ? AND {layouts.PLATE}",
            [found.name, *key],
        )
        names = {(image.well, image.field) for image in images} - set(unsure.iter_rows())
        none = pl.DataFrame(schema=dict(CELL_GEOMETRY))
        return {name: parts.get(name, none).select(*CELL_GEOMETRY) for name in names}
    return {}


# ------------------------------------------------------------------------------------------ one plate


def _extract_plate(
    job: Job,
    ways: Sequence[tuple[FeatureSet, dict[Key, str]]],
    key: Key,
    present: str | None,
    is_held: bool,
) -> PlateReport:
    """Embed one plate, unless it is in (`present`: under which hash) with the same content."""
    lake, target = job.lake, job.target
    is_crops = target.parameters["input"] == "crops"
    rows = images_of(lake, key, is_crops=is_crops)
    images, digests = images_and_digests(rows, target.channels)
    content = content_hash(target, images, digests)
    if present == content:
        if is_held:
            ingest.relabel_plate(lake, job.run, target.name, key, None)
        if job.progress:
            job.progress(key[2], len(images), len(images))
        return PlateReport(*key, "unchanged", **ingest.loaded_counts(lake, target.name, key))
    query = f"SELECT count(*) FROM main.field_quality WHERE {layouts.PLATE}"
    is_measured = is_crops or bool(lake.value(query, list(key)))
    cells = _known_cells(lake, ways, key, rows)
    with at_hand(rows, target.channels, job.settings.staging) as (manifest, images, digests):
        known = Known(cells, digests, is_measured)
        return pipeline.take_plate(job, key, manifest, images, content, known=known)
