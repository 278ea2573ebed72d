"""Taking a manifest of images in as a job says: for a night, a retry, or one command."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from extractors import pipeline, registry
from extractors.base import Extractor
from warehouse import arrivals as arriving
from warehouse.lake import Lake
from warehouse.nights.jobs import ImagesJob
from warehouse.nights.take import Progress
from warehouse.quarantine import Key
from warehouse.runs import Run
from warehouse.screens import Screen, read_screen


def take_images(
    lake: Lake, job: ImagesJob, run: Run, arrivals: Mapping[Key, str], progress: Progress | None = None
) -> Sequence[Any]:
    """Take a manifest of images in: see `warehouse.nights.take.Taker`."""
    return ingest_job(lake, job, screen_of(job), run, arrivals, progress)


def ingest_job(
    lake: Lake,
    job: ImagesJob,
    screen: Screen,
    run: Run,
    arrivals: Mapping[Key, str],
    progress: Progress | None = None,
) -> Sequence[Any]:
    """Take the screen of a job in, as `take_images` does with the one that it reads."""
    channels = job.channels or _channels_of_model(job)
    channels = channels or tuple(screen.manifest["channel"].unique(maintain_order=True).to_list())
    extractor = _extractor(job.extractor, channels, json.dumps(job.settings, sort_keys=True))
    settings = pipeline.PipelineSettings(
        dna_channel=job.dna_channel, cell_channel=job.cell_channel, field_operator=job.field_operator,
        well_operator=job.well_operator, replace=job.replace,
    )  # fmt: skip
    return pipeline.ingest_screen(
        lake, screen, extractor, feature_set=job.target, settings=settings, progress=progress, run=run,
        arrivals=arrivals,
    )  # fmt: skip


def whole_paths(settings: Mapping[str, object]) -> dict[str, object]:
    """Make paths of a model and of weights absolute: a job that is tried again may be tried from another folder."""
    return {
        name: str(Path(value).absolute())
        if name in ("model", "weights") and isinstance(value, str) and Path(value).exists()
        else value
        for name, value in settings.items()
    }


def screen_of(job: ImagesJob) -> Screen:
    """Read the screen of a job; in a gallery's folders the layout is found beside the manifest.

    Raises:
        ScreenError: as `warehouse.screens.read_screen`.
        UnknownNameError: a plate or well that the manifest lacks.
    """
    layout = arriving.gallery_layout(job.path) if job.layout is None else job.layout
    screen = read_screen(
        job.path, layout=layout, images=job.images, annotations=job.annotations, source=job.source,
        batch=job.batch, channels=job.channels or None, compound_column=job.compound_column,
    )  # fmt: skip
    return screen.only(job.plates, job.wells)


def _channels_of_model(job: ImagesJob) -> tuple[str, ...]:
    """Say which channels a trained model takes, in its order; none where the extractor is none."""
    if not registry.entry(job.extractor).trains or "model" not in job.settings:
        return ()
    from extractors.training.model_folder import read_model

    return read_model(Path(str(job.settings["model"]))).card.channels


@lru_cache(maxsize=2)
def _extractor(name: str, channels: tuple[str, ...], settings: str) -> Extractor:
    """Make an extractor once for all manifests of a night that use it: its weights are read once."""
    return registry.create(name, channels, json.loads(settings))
