"""Taking in well profiles that were made elsewhere: CSV (.gz) or Parquet, one row a well, one column a feature."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from warehouse import ingest, layouts
from warehouse.embeddings import first_bad_feature, to_column
from warehouse.errors import ProfileError, ScreenError, WellhouseError
from warehouse.feature_sets import FeatureSet
from warehouse.ingest import Outcome, PlateData
from warehouse.lake import Lake
from warehouse.profile_tables import (
    KEY_COLUMNS,
    ImportSettings,
    ProfileTable,
    read_feature_list,
    read_profile_table,
)
from warehouse.runs import Run
from warehouse.screens.identity import DEFAULT

__all__ = ["KEY_COLUMNS", "ImportReport", "ImportSettings", "import_profiles", "read_feature_list"]


@dataclass(frozen=True)
class ImportReport:
    """What became of one plate; `wells_rejected` rows were left out with a reason each."""

    source: str
    batch: str
    plate: str
    outcome: Outcome
    wells_in: int
    wells_rejected: int
    wells_without_layout: int
    reason: str | None = None


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
) -> list[ImportReport]:
    """Take well profiles in, one transaction a plate.

    Args:
        lake: open for writing.
        files: with the same features in each, in the same order.
        feature_set: its name in the lake.
        layout: wells of the plates (`warehouse.screens.read_layout`), joined by plate; wells that it lacks are
            kept and counted.
        annotations: labels (`warehouse.screens.read_annotations`).
        settings: what columns mean.
        replace: let wells go that are in and that the new content of their plate lacks.
        progress: told the plate, plates done and plates in all.

    Returns:
        One report a plate; one that cannot be taken in has the outcome `failed` and its reason.

    Raises:
        ProfileError: a file cannot be read, lacks a key, repeats a well, or has other features. Nothing was
            written of any plate.
        ScreenError: a plate is in two batches.
    """
    settings = settings or ImportSettings()
    tables = [read_profile_table(path, settings) for path in files]
    if not tables:
        message = "no file of profiles was given: name at least one CSV or Parquet file"
        raise ProfileError(message)
    target = _feature_set(feature_set, tables)
    plates = _plates(tables, layout, settings)
    known = layouts.plates(lake)
    for key in plates:
        layouts.check_batch(known, key)
    ingest.check_feature_set(lake, target)
    run = Run("import-profiles", {"files": [str(path) for path in files], "feature_set": feature_set})
    reports = []
    for done, (key, (rows, wells)) in enumerate(sorted(plates.items(), key=lambda item: item[0])):
        try:
            report = _import_plate(lake, run, target, key, rows, wells, replace)
        except WellhouseError as error:  # what stops one plate stops no other
            report = ImportReport(*key, "failed", 0, 0, 0, str(error))
        reports.append(report)
        if progress:
            progress(key[2], done + 1, len(plates))
    if annotations is not None:
        layouts.put_annotations(lake, run, annotations)
    return reports


def _feature_set(name: str, tables: Sequence[ProfileTable]) -> FeatureSet:
    first = tables[0]
    for other in tables[1:]:
        if other.features != first.features:
            only = sorted(set(first.features) ^ set(other.features))
            message = (
                f"{other.path}: has {len(other.features)} features, {first.path} has {len(first.features)}; "
                f"{len(only)} are in one only (first: {only[:1] or 'none, the order differs'}): import them as "
                "two feature sets"
            )
            raise ProfileError(message)
    return FeatureSet(name, "import", "1", None, {}, (), first.features, "well")


def _plates(
    tables: Sequence[ProfileTable], layout: pl.DataFrame | None, settings: ImportSettings
) -> dict[tuple[str, str, str], tuple[ProfileTable, pl.DataFrame | None]]:
    """Split the files by plate, and find each plate's batch, source and wells: from the file, else the layout."""
    known = {} if layout is None else layouts.per_plate(layout)
    plates: dict[tuple[str, str, str], tuple[ProfileTable, pl.DataFrame | None]] = {}
    seen: dict[tuple[str, str], tuple[Path, str]] = {}
    for table in tables:
        by = [key for key in ("source", "batch", "plate") if key in table.keys.columns]
        for values, rows in table.keys.with_row_index("row").group_by(by, maintain_order=True):
            # An empty cell says nothing: the layout or the command line may.
            said = {str(key): str(value) for key, value in zip(by, values, strict=True) if value is not None}
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
            key = _key(said, matches[0] if matches else None, settings, table.path)
            if key[::2] in seen:
                path, batch = seen[key[::2]]
                message = (
                    f"plate {key[2]!r} is in {path} (batch {batch!r}) and in {table.path} (batch {key[1]!r}): a "
                    "plate belongs to one batch and one file"
                )
                raise ScreenError(message)
            seen[key[::2]] = (table.path, key[1])
            index = rows["row"].to_numpy()
            part = ProfileTable(table.path, rows.drop("row"), table.matrix[index], table.features)
            plates[key] = (part, known[matches[0]] if matches else None)
    return plates


def _key(
    said: dict[str, str], match: tuple[str, str, str] | None, settings: ImportSettings, path: Path
) -> tuple[str, str, str]:
    """Settle source and batch: the file's own column, else the argument, else the layout."""
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


def _import_plate(
    lake: Lake,
    run: Run,
    target: FeatureSet,
    key: tuple[str, str, str],
    table: ProfileTable,
    layout: pl.DataFrame | None,
    replace: bool,
) -> ImportReport:
    order = table.keys.select(pl.col("well").arg_sort()).to_series().to_numpy()
    keys, matrix = table.keys[order], table.matrix[order]
    hasher = hashlib.blake2b(target.identity().encode(), digest_size=16)
    hasher.update(repr(keys.rows()).encode())
    hasher.update(np.ascontiguousarray(matrix).tobytes())
    infinite, empty = np.isinf(matrix).any(axis=1), np.isnan(matrix).all(axis=1)
    reasons = []
    for row in np.flatnonzero(infinite | empty):
        bad = np.where(
            np.isnan(matrix[row]), 0, matrix[row]
        )  # a missing element is no fault, an infinite one is
        why = (
            "no feature has a value"
            if empty[row]
            else f"feature {first_bad_feature(bad, target.feature_names)}"
        )
        reasons.append((keys["well"][int(row)], why))
    good = ~(infinite | empty)
    kept = keys.filter(pl.Series(good))
    absent = pl.lit(None, dtype=pl.Int32)
    wells = kept.select(
        "well",
        pl.col("field_count") if "field_count" in kept.columns else absent.alias("field_count"),
        pl.col("cell_count") if "cell_count" in kept.columns else absent.alias("cell_count"),
    ).with_columns(to_column(matrix[good]))
    none = pl.lit(None, dtype=pl.String)
    rejections = pl.DataFrame(reasons, schema={"well": pl.String, "reason": pl.String}, orient="row").select(
        "well", none.alias("field"), none.alias("cell"), "reason"
    )
    if layout is not None:
        layout = layout.with_columns(pl.lit(key[0]).alias("source"), pl.lit(key[1]).alias("batch"))
    plate = PlateData(key, hasher.hexdigest(), layout, None, (), pl.DataFrame(), wells, rejections)
    outcome = ingest.commit_plate(lake, run, target, plate, replace=replace)
    outside = ingest.wells_without_layout(lake, target.name, key)
    return ImportReport(*key, outcome, len(wells), len(rejections), outside)
