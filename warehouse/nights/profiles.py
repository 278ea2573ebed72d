"""Taking a file of profiles in as a job says."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from warehouse import importers, places
from warehouse.errors import ProfileError
from warehouse.formats.model import LEVELS, Level
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.nights.jobs import ImagesJob, ProfilesJob
from warehouse.nights.labels import layout_of
from warehouse.nights.take import Progress, file_key
from warehouse.quarantine import Key
from warehouse.runs import Run

#: Settings that name files; what is on S3 is fetched before it is read.
_FILES = ("path", "features", "metadata")


def take_profiles(
    lake: Lake, job: ProfilesJob, run: Run, arrivals: Mapping[Key, str], progress: Progress | None = None
) -> Sequence[Any]:
    """Take a file, or a folder, of profiles in: see `warehouse.nights.take.Taker`. Labels are a step of their own."""
    source, batch = _gallery(job.path)
    with _here(job) as (local, named):
        assert isinstance(local, ProfilesJob)
        settings = importers.ImportSettings(
            columns=local.columns,
            features=None if local.features is None else importers.read_feature_list(Path(local.features)),
            source=local.source or source,
            batch=local.batch or batch,
            plate=local.plate,
            well=local.well,
            level=_level(local.level),
            metadata=None if local.metadata is None else Path(local.metadata),
            compartments=local.compartments,
            field_operator=local.field_operator,
            well_operator=local.well_operator,
            align=local.align,
        )
        layout = (
            None
            if job.layout is None
            else _layout(job.layout, job.source, job.batch, job.compound_column, run.run)
        )
        reports = importers.import_profiles(
            lake, [Path(local.path)], local.feature_set, layout=layout,
            settings=settings, replace=local.replace, progress=progress, format_name=local.format,
            run=run, arrival=arrivals.get(file_key(job.path)), only=local.plates,
        )  # fmt: skip
        return [replace(one, reason=None if one.reason is None else named(one.reason)) for one in reports]


@contextmanager
def _here(job: ProfilesJob) -> Iterator[tuple[ProfilesJob, Callable[[str], str]]]:
    """Give the job with local files in place of those on S3, and a function that names them as what they are."""
    remote = {name: str(getattr(job, name)) for name in _FILES if places.is_remote(getattr(job, name) or "")}
    if not remote:
        yield job, str
        return
    with tempfile.TemporaryDirectory(prefix="wellhouse-") as folder:

        def named(text: str) -> str:
            return text.replace(f"{folder}/", places.SCHEME)

        fetched = places.fetch(remote.values(), Path(folder))
        for place in remote.values():
            if place not in fetched:
                message = f"{place}: there is no such file"
                raise ProfileError(message)
        try:
            local = {name: str(fetched[place]) for name, place in remote.items()}
            yield replace(job, **local), named  # type: ignore[arg-type]
        except ProfileError as error:
            raise ProfileError(named(str(error))) from error


@lru_cache(maxsize=2)
def _layout(
    place: str, source: str | None, batch: str | None, compound_column: str | None, run: str
) -> pl.DataFrame:
    """Read a layout once a run, however many files it is of."""
    job = ImagesJob(place, layout=place, source=source, batch=batch, compound_column=compound_column)
    return layout_of(job)


def _gallery(path: str) -> tuple[str | None, str | None]:
    """Read source and batch off `<source>/workspace/profiles/<batch>/<plate>/<file>`; None each where it is no such."""
    parts = path.split("/")
    if len(parts) < 6 or parts[-4] != "profiles" or parts[-5] != "workspace":
        return None, None
    return parts[-6], parts[-3]


def _level(text: str | None) -> Level | None:
    for level in LEVELS:
        if text == level:
            return level
    if text is None:
        return None
    raise unknown(text, "level", LEVELS)
