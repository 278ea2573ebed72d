"""Taking in profiles that were made elsewhere: wells, fields or single cells, in any of `warehouse.formats`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from warehouse import formats, ingest, layouts
from warehouse.errors import LakeUnavailableError, ProfileError, ScreenError, WellhouseError
from warehouse.feature_alignment import Aligned, align, dropped
from warehouse.formats.keys import KEY_COLUMNS
from warehouse.formats.model import ImportSettings, Part, Plate
from warehouse.formats.tables import read_feature_list
from warehouse.ingest import Outcome
from warehouse.lake import Lake
from warehouse.levels import check_operators
from warehouse.names import unknown
from warehouse.plate_builder import PlateBuilder
from warehouse.runs import Run, counts_of, outcome_of
from warehouse.screens.identity import DEFAULT

__all__ = ["KEY_COLUMNS", "ImportReport", "ImportSettings", "import_profiles", "read_feature_list"]

Key = tuple[str, str, str]


@dataclass(frozen=True)
class ImportReport:
    """What became of one plate.

    Attributes:
        source: of the plate.
        batch: of the plate.
        plate: its name.
        outcome: `failed` with its `reason`, or what the commit did.
        wells_in: wells that have a profile.
        wells_rejected: rows of a table of wells that were left out, with a reason each.
        wells_without_layout: wells that have a profile and no layout.
        reason: why it failed.
        feature_set: where it went.
        level: of the input's rows: `cell`, `field` or `well`.
        rows_in: rows of that level that went in.
        rows_rejected: rows that were left out, with a reason each in `main.rejections`.
        images_rejected: of these, images of an input of cells that were left out whole, one row each.
        features_dropped: features of the input that `--align intersect` left out.
        notes: what else the input has and the lake lacks, in sentences.
        path: of the input.
    """

    source: str
    batch: str
    plate: str
    outcome: Outcome
    wells_in: int = 0
    wells_rejected: int = 0
    wells_without_layout: int = 0
    reason: str | None = None
    feature_set: str = ""
    level: str = ""
    rows_in: int = 0
    rows_rejected: int = 0
    images_rejected: int = 0
    features_dropped: int = 0
    notes: tuple[str, ...] = ()
    path: str = ""


@dataclass(frozen=True)
class _Job:
    """What all plates of one import have in common."""

    lake: Lake
    run: Run
    replace: bool
    arrival: str | None


def import_profiles(
    lake: Lake,
    files: Sequence[Path],
    feature_set: str,
    *,
    layout: pl.DataFrame | None = None,
    annotations: pl.DataFrame | None = None,
    settings: ImportSettings | None = None,
    replace: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    format_name: str | None = None,
    arrival: str | None = None,
    keep_going: bool = False,
    run: Run | None = None,
    only: Sequence[str] = (),
) -> list[ImportReport]:
    """Take profiles in, one transaction a plate.

    Args:
        lake: open for writing.
        files: files and folders, of one level.
        feature_set: its name in the lake.
        layout: wells of the plates (`warehouse.screens.read_layout`), joined by plate; wells that it lacks are
            kept and counted.
        annotations: labels (`warehouse.screens.read_annotations`).
        settings: what columns mean, and what to do where features differ.
        replace: let wells go that are in and that the new content of their plate lacks.
        progress: told the plate, plates done and plates in all.
        format_name: of `warehouse.formats.ALL`; None to recognise each input.
        arrival: names, sizes and times of the files, as a hash; kept with each plate as `<hash>/<plates in all>`,
            which tells later whether every plate of the files is in.
        keep_going: report an input that cannot be opened as a failed plate of its name, and go on with the others.
        run: that the plates belong to; None for one of their own.
        only: names of the plates to take in; empty for all.

    Returns:
        One report a plate; one that cannot be taken in has the outcome `failed` and its reason.

    Raises:
        ProfileError: an input cannot be read, lacks a key, repeats a row, or has other features. Nothing was
            written of any plate.
        ScreenError: a plate is in two batches.
    """
    settings = settings or ImportSettings()
    check_operators(settings.field_operator, settings.well_operator)
    plates, reports = [], []
    for opened in formats.open_plates(files, settings, format_name):
        if isinstance(opened, list):
            plates += opened
        elif keep_going:
            reports.append(_unopened(opened[0], opened[1], feature_set, settings))
        else:
            raise opened[1]
    if not plates and not reports:
        message = "no file of profiles was given: name at least one file or folder"
        raise ProfileError(message)
    work = _work(lake, feature_set, plates, layout, settings) if plates else {}
    named = [str(path) for path in files]
    settled: dict[str, object] = {"files": named, "feature_set": feature_set, "align": settings.align}
    own = Run("import-profiles", settled)
    arrival = None if arrival is None else f"{arrival}/{len(work)}"
    job = _Job(lake, run or own, replace, arrival)
    for name in only:
        if name not in {key[2] for key in work}:
            raise unknown(name, "plate of the input", {key[2] for key in work})
    work = {key: found for key, found in work.items() if not only or key[2] in only}
    for done, (key, (aligned, wells)) in enumerate(sorted(work.items(), key=lambda item: item[0])):
        reports.append(_import_or_report(job, key, aligned, wells))
        if progress:
            progress(key[2], done + 1, len(work))
    if annotations is not None:
        layouts.put_annotations(lake, job.run, annotations)
    if run is None:
        own.finish(lake, counts_of(reports), outcome_of(reports))
    return reports


def _unopened(path: Path, error: ProfileError, feature_set: str, settings: ImportSettings) -> ImportReport:
    key = (settings.source or DEFAULT, settings.batch or DEFAULT, settings.plate or path.name.split(".")[0])
    return ImportReport(*key, "failed", reason=str(error), feature_set=feature_set, path=str(path))


def _work(
    lake: Lake, name: str, plates: list[Plate], layout: pl.DataFrame | None, settings: ImportSettings
) -> dict[Key, tuple[Aligned, pl.DataFrame | None]]:
    """Settle each plate's key, layout and feature set, and check them all before anything is written."""
    keyed = _keyed(plates, layout, settings)
    aligned = align(lake, name, plates, settings)
    known = layouts.plates(lake)
    for key in keyed:
        layouts.check_batch(known, key)
    for target in {each.target.name: each.target for each in aligned}.values():
        ingest.check_feature_set(lake, target)
    of_plate = {id(each.plate): each for each in aligned}
    return {key: (of_plate[id(plate)], wells) for key, (plate, wells) in keyed.items()}


def _keyed(
    plates: list[Plate], layout: pl.DataFrame | None, settings: ImportSettings
) -> dict[Key, tuple[Plate, pl.DataFrame | None]]:
    """Find each plate's batch, source and wells: from the input, else the command line, else the layout."""
    known = {} if layout is None else layouts.per_plate(layout)
    keyed: dict[Key, tuple[Plate, pl.DataFrame | None]] = {}
    seen: dict[tuple[str, str], tuple[Path, str]] = {}
    for plate in plates:
        said = plate.said
        matches = [
            key
            for key in known
            if key[2] == said["plate"] and key[0] in (said.get("source", key[0]), DEFAULT)
        ]
        if len(matches) > 1:
            message = (
                f"plate {said['plate']!r} stands {len(matches)} times in the layout: {matches}: keep one"
            )
            raise ScreenError(message)
        key = _key(said, matches[0] if matches else None, settings, plate.path)
        if key[::2] in seen:
            path, batch = seen[key[::2]]
            message = (
                f"plate {key[2]!r} is in {path} (batch {batch!r}) and in {plate.path} (batch {key[1]!r}): a "
                "plate belongs to one batch and one file"
            )
            raise ScreenError(message)
        seen[key[::2]] = (plate.path, key[1])
        wells = known[matches[0]] if matches else None
        if wells is not None:
            wells = wells.with_columns(pl.lit(key[0]).alias("source"), pl.lit(key[1]).alias("batch"))
        keyed[key] = (plate, wells)
    return keyed


def _key(said: dict[str, str], match: Key | None, settings: ImportSettings, path: Path) -> Key:
    """Settle source and batch: the input's own word, else the argument, else the layout."""
    found = []
    for position, name in enumerate(("source", "batch")):
        layout = match[position] if match and match[position] != DEFAULT else None
        told = [("the file", said.get(name)), (f"--{name}", getattr(settings, name)), ("the layout", layout)]
        named = [(where, value) for where, value in told if value is not None]
        for where, value in named[1:]:
            if value != named[0][1]:
                message = (
                    f"{path}: plate {said['plate']!r} is of {name} {named[0][1]!r} by {named[0][0]} and {value!r} by "
                    f"{where}: mend one"
                )
                raise ScreenError(message)
        found.append(named[0][1] if named else DEFAULT)
    return found[0], found[1], said["plate"]


def _import_or_report(job: _Job, key: Key, aligned: Aligned, layout: pl.DataFrame | None) -> ImportReport:
    """Take one plate in; what stops it (its content, a disk, memory) stops no other plate."""
    plate, target = aligned.plate, aligned.target
    report = ImportReport(
        *key, "failed", feature_set=target.name, level=plate.level, notes=plate.notes, path=str(plate.path)
    )
    if aligned.reason is not None:
        return replace(report, reason=aligned.reason)
    try:
        return _import_plate(job, report, aligned, layout)
    except LakeUnavailableError:  # no fault of the plate
        raise
    except (WellhouseError, OSError, MemoryError) as error:
        return replace(report, reason=" ".join(f"{error or type(error).__name__}".split()))


def _import_plate(
    job: _Job, report: ImportReport, aligned: Aligned, layout: pl.DataFrame | None
) -> ImportReport:
    key, target = (report.source, report.batch, report.plate), aligned.target
    with PlateBuilder(target) as builder:
        for part in aligned.plate.parts():
            builder.reject(part.rejections)
            builder.add(part.keys, _taken(part, aligned.take))
        data = builder.finish(key, layout, job.arrival)
        ingest.refuse_useless(data)
        outcome = ingest.commit_plate(job.lake, job.run, target, data, replace=job.replace)
    left_out = dropped(aligned)
    notes = report.notes
    if left_out:
        names = ", ".join(left_out[:3]) + ", …" * (len(left_out) > 3)
        notes = (*notes, f"{len(left_out)} features are not in feature set {target.name!r}: {names}")
    return replace(
        report,
        outcome=outcome,
        wells_in=len(data.wells),
        wells_rejected=data.profiles_rejected if target.entry_level == "well" else 0,
        wells_without_layout=ingest.wells_without_layout(job.lake, target.name, key),
        rows_in=builder.seen - builder.rejected,
        rows_rejected=builder.rejected,
        images_rejected=builder.images_rejected,
        features_dropped=len(left_out),
        notes=notes,
    )


def _taken(part: Part, take: np.ndarray | None) -> np.ndarray:
    return part.matrix if take is None else part.matrix[:, take]
