"""Taking a file of profiles in as a job says."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from warehouse import importers, places
from warehouse.formats.model import LEVELS, Level
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.nights.jobs import Job, ProfilesJob
from warehouse.nights.take import Progress, file_key
from warehouse.quarantine import Key
from warehouse.runs import Run
from warehouse.screens import read_layout

#: Settings that name files; what is on S3 is fetched before it is read.
_FILES = ("path", "layout", "annotations", "features", "metadata")


def take_profiles(
    lake: Lake, job: ProfilesJob, run: Run, arrivals: Mapping[Key, str], progress: Progress | None = None
) -> Sequence[Any]:
    """Take a file, or a folder, of profiles in: see `warehouse.nights.take.Taker`. Labels are a step of their own."""
    source, batch = _gallery(job.path)
    with here(job) as local:
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
        layout = None
        if local.layout is not None:
            layout = read_layout(Path(local.layout), compound_column=local.compound_column)
        return importers.import_profiles(
            lake, [Path(local.path)], local.feature_set, layout=layout,
            settings=settings, replace=local.replace, progress=progress, format_name=local.format,
            run=run, arrival=arrivals.get(file_key(job.path)), only=local.plates,
        )  # fmt: skip


@contextmanager
def here(job: Job, names: Sequence[str] = _FILES) -> Iterator[Job]:
    """Give the job with local files in place of those on S3, which are fetched and removed afterwards."""
    remote = {
        name: str(getattr(job, name)) for name in names if places.is_remote(getattr(job, name, None) or "")
    }
    with tempfile.TemporaryDirectory(prefix="wellhouse-") as folder:
        fetched = places.fetch(remote.values(), Path(folder)) if remote else {}
        yield replace(job, **{name: str(fetched[place]) for name, place in remote.items()})  # type: ignore[arg-type]


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
