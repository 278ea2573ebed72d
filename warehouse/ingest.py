"""Taking a plate in: one transaction per plate and feature set, all of it or nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import replace as with_changes
from typing import Literal

import duckdb
import polars as pl

from warehouse import feature_sets, layouts, quarantine
from warehouse.errors import ProfileError, ScreenError
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake, now
from warehouse.runs import Run
from warehouse.sqltext import relation

Outcome = Literal["added", "replaced", "relabelled", "unchanged", "failed"]

_LOAD = f"feature_set = ? AND {layouts.PLATE}"


@dataclass(frozen=True)
class PlateData:
    """Everything of one plate that one feature set holds.

    Attributes:
        key: source, batch, plate.
        content_hash: of what the plate was made from; the same hash again is a no-op.
        layout: the plate's wells, or None where none was given.
        images: rows of `main.fields`, or None where the profiles came without images.
        cells: frames of rows of `<feature set>.cells`, in any number (a plate of millions of cells comes in parts).
        fields: rows of `<feature set>.fields`.
        wells: rows of `<feature set>.wells`.
        rejections: rows of `main.rejections` less the feature set and the plate: well, field, cell, reason.
        images_seen: images (whole fields, or crops) named for the plate; the rejected ones are in `rejections`.
        images_rejected: of them.
        cells_seen: cells found in the images that could be used.
        cells_rejected: of them.
        profiles_seen: rows of an imported table of wells or fields; 0 where cells or images came.
        profiles_rejected: of them.
        arrival: names, sizes and times of the files it came from, as a hash; None where nobody looks at them.
        quality: rows of `main.field_quality`, or None where no image was measured.
    """

    key: tuple[str, str, str]
    content_hash: str
    layout: pl.DataFrame | None
    images: pl.DataFrame | None
    cells: Iterable[pl.DataFrame]
    fields: pl.DataFrame
    wells: pl.DataFrame
    rejections: pl.DataFrame
    images_seen: int = 0
    images_rejected: int = 0
    cells_seen: int = 0
    cells_rejected: int = 0
    profiles_seen: int = 0
    profiles_rejected: int = 0
    arrival: str | None = None
    quality: pl.DataFrame | None = None


def loads(lake: Lake, feature_set: str) -> dict[tuple[str, str, str], str]:
    """Read which plates of a feature set are in: key to content hash."""
    rows = lake.connection.execute(
        "SELECT source, batch, plate, content_hash FROM main.plate_loads WHERE feature_set = ?", [feature_set]
    ).fetchall()
    return {(source, batch, plate): content for source, batch, plate, content in rows}


def commit_plate(
    lake: Lake, run: Run, feature_set: FeatureSet, plate: PlateData, *, replace: bool = False
) -> Outcome:
    """Commit one plate: its wells, images, profiles at every level, rejections and counts, in one transaction.

    Args:
        lake: open for writing.
        run: that this belongs to.
        feature_set: is made, with its tables and views, where the lake lacks it.
        plate: the plate's rows.
        replace: let wells go that are in and that the new content lacks (they stay reachable by time travel).

    Returns:
        `added`; `replaced` where other content of the same plate was in; `unchanged` where the same was.

    Raises:
        ScreenError: the plate is in the lake in another batch, or would lose wells and `replace` is not given.
        ProfileError: the feature set's name is taken by another method, version or list of features.
    """

    def work(connection: duckdb.DuckDBPyConnection) -> Outcome:
        feature_sets.ensure(lake, feature_set, run)
        is_new = plate.key[::2] not in lake.remembered("plates", lambda: layouts.plates(lake))
        relabelled = layouts.put_plate(lake, run, plate.key, plate.layout)
        known = lake.remembered(f"loads of {feature_set.name}", lambda: loads(lake, feature_set.name))
        present = known.get(plate.key)
        if present == plate.content_hash:
            return _unchanged(lake, run, feature_set.name, plate.key, plate.arrival, relabelled)
        run.record(lake)
        if present is not None:
            if not replace:
                _refuse_loss(connection, feature_set.name, plate)
            _delete(lake, feature_set.name, plate.key)
        images = plate.images
        if not is_new and images is not None:
            images = images if replace else _with_other_channels(connection, plate.key, images)
            _delete_images(connection, plate.key, images)
        if not is_new and plate.quality is not None:
            _delete_quality(connection, plate.key, plate.quality)
        # Of a plate that is new, the layout is known without reading it back.
        if is_new:
            in_layout = set() if plate.layout is None else set(plate.layout["well"])
        else:
            in_layout = _wells_of(connection, "main.wells", plate.key)
        _write(connection, run, feature_set.name, with_changes(plate, images=images), in_layout)
        known[plate.key] = plate.content_hash
        outcome: Outcome = "added" if present is None else "replaced"
        quarantine.release(lake, feature_set.name, plate.key)
        _remember(lake, run, feature_set.name, plate.key, outcome, plate.content_hash, present)
        return outcome

    return lake.transaction(work)


def refuse_useless(plate: PlateData) -> None:
    """Refuse a plate of which nothing can be used: it belongs into quarantine, and not into the lake as an empty one.

    A plate whose images were read and hold no cell is none of these.

    Raises:
        ProfileError: every image or row of it was rejected; with the first reason.
        ScreenError: its layout names other wells than those that have data.
    """
    name, wells = plate.key[2], set(plate.wells["well"])
    seen = plate.images_seen or plate.profiles_seen or plate.cells_seen
    if not wells and len(plate.rejections) and plate.images_rejected == plate.images_seen:
        well, reason = plate.rejections.select("well", "reason").row(0)
        message = f"plate {name!r}: nothing of {seen} can be used (first: well {well}: {reason})"
        raise ProfileError(message)
    if plate.layout is not None and len(plate.layout) and wells and not wells & set(plate.layout["well"]):
        there = sorted(plate.layout["well"])
        message = (
            f"plate {name!r}: its {len(wells)} wells ({', '.join(sorted(wells)[:2])}, …) are not among the "
            f"{len(there)} of its layout ({', '.join(there[:2])}, …): is it the layout of another plate?"
        )
        raise ScreenError(message)


def _refuse_loss(connection: duckdb.DuckDBPyConnection, feature_set: str, plate: PlateData) -> None:
    """Stop a replacement that would take wells out: part of a plate, or a disk that is not there, is no new plate."""
    held = _wells_of(connection, relation(feature_set, "wells"), plate.key)
    lost = sorted(held - set(plate.wells["well"]))
    if lost:
        message = (
            f"plate {plate.key[2]!r}: feature set {feature_set!r} has {len(held)} wells of it and this content lacks "
            f"{len(lost)} of them ({', '.join(lost[:3])}{', …' * (len(lost) > 3)}): bring the whole plate, or give "
            "--replace to let them go"
        )
        raise ScreenError(message)


def relabel_plate(
    lake: Lake,
    run: Run,
    feature_set: str,
    key: tuple[str, str, str],
    layout: pl.DataFrame | None,
    arrival: str | None = None,
) -> Outcome:
    """Bring a plate's layout, and what is known of its files, up to date where its profiles are in already."""

    def work(_: duckdb.DuckDBPyConnection) -> Outcome:
        relabelled = layouts.put_plate(lake, run, key, layout)
        return _unchanged(lake, run, feature_set, key, arrival, relabelled)

    return lake.transaction(work)


def _unchanged(
    lake: Lake, run: Run, feature_set: str, key: tuple[str, str, str], arrival: str | None, relabelled: bool
) -> Outcome:
    """Note what is new about a plate whose profiles are the same: its layout, the times of its files, or nothing."""
    query = f"SELECT arrival, content_hash FROM main.plate_loads WHERE {_LOAD}"
    row = lake.connection.execute(query, [feature_set, *key]).fetchone()
    touched = row is not None and arrival is not None and row[0] != arrival
    held = (feature_set, key) in lake.remembered("quarantine", lambda: quarantine.keys(lake))
    if not (relabelled or touched or held):
        lake.change_nothing()
        return "unchanged"
    run.record(lake)
    quarantine.release(lake, feature_set, key)
    if touched:
        lake.connection.execute(
            f"UPDATE main.plate_loads SET arrival = ? WHERE {_LOAD}", [arrival, feature_set, *key]
        )
    if relabelled and row is not None:
        _remember(lake, run, feature_set, key, "relabelled", row[1], row[1])
    return "relabelled" if relabelled else "unchanged"


def _remember(
    lake: Lake,
    run: Run,
    feature_set: str,
    key: tuple[str, str, str],
    outcome: str,
    content_hash: str | None,
    former_hash: str | None,
) -> None:
    """Write what was done to a plate into its history; former content stays in the snapshot named there."""
    former = None if former_hash is None else lake.snapshot()
    lake.connection.execute(
        "INSERT INTO main.plate_history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [feature_set, *key, outcome, content_hash, former_hash, former, run.run, now()],
    )


def _delete(lake: Lake, feature_set: str, key: tuple[str, str, str]) -> None:
    """Take the former content of a plate out; time travel still reaches it."""
    for table in ("cells", "fields", "wells"):
        lake.connection.execute(
            f"DELETE FROM {relation(feature_set, table)} WHERE {layouts.PLATE}", list(key)
        )
    for table in ("rejections", "plate_loads"):
        lake.connection.execute(f"DELETE FROM main.{table} WHERE {_LOAD}", [feature_set, *key])
    layouts.forget_corrections(lake, key, feature_set)


def _write(
    connection: duckdb.DuckDBPyConnection, run: Run, feature_set: str, plate: PlateData, in_layout: set[str]
) -> None:
    source, batch, name = plate.key
    keys = [
        pl.lit(value).alias(column)
        for column, value in zip(("source", "batch", "plate"), plate.key, strict=True)
    ]
    parts = (cells.with_columns(keys) for cells in plate.cells)
    layouts.insert_parts(connection, relation(feature_set, "cells"), parts)
    for table, rows in (("fields", plate.fields), ("wells", plate.wells)):
        if len(rows):
            layouts.insert(connection, relation(feature_set, table), rows.with_columns(keys))
    if len(plate.rejections):
        rows = plate.rejections.with_columns(pl.lit(feature_set).alias("feature_set"), *keys)
        layouts.insert(connection, "main.rejections", rows)
    if plate.images is not None:
        layouts.insert(connection, "main.fields", plate.images.with_columns(keys))
    if plate.quality is not None and len(plate.quality):
        layouts.insert(connection, "main.field_quality", plate.quality.with_columns(keys))
    with_data = set(plate.wells["well"])
    connection.execute(
        "INSERT INTO main.plate_loads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            feature_set,
            source,
            batch,
            name,
            plate.content_hash,
            plate.images_seen,
            plate.images_seen - plate.images_rejected,
            plate.images_rejected,
            plate.cells_seen,
            plate.cells_seen - plate.cells_rejected,
            plate.cells_rejected,
            len(in_layout),
            len(with_data),
            len(in_layout - with_data),
            len(with_data - in_layout),
            run.run,
            now(),
            plate.arrival,
            plate.profiles_seen,
            plate.profiles_rejected,
        ],
    )


def check_feature_set(lake: Lake, feature_set: FeatureSet) -> None:
    """Refuse a feature set whose name is taken by another, before any work is done for it.

    Raises:
        ProfileError: as `commit_plate` would.
    """
    feature_sets.check_name(feature_set.name)
    present = feature_sets.read(lake, feature_set.name)
    if present is not None:
        feature_sets.refuse_other(present, feature_set)


def images_held(lake: Lake, key: tuple[str, str, str]) -> set[tuple[str, str, str | None]]:
    """Name the images of a plate that were there when it came in: (well, field, cell), all files of each found."""
    rows = lake.connection.execute(
        f"SELECT well, field, cell FROM main.fields WHERE {layouts.PLATE} "
        "AND len(list_filter(digests, lambda digest: digest IS NULL)) = 0",
        list(key),
    ).fetchall()
    return {(well, name, cell) for well, name, cell in rows}


def loaded_counts(lake: Lake, feature_set: str, key: tuple[str, str, str]) -> dict[str, int]:
    """Return the counts of a plate that is in: images_in, images_rejected, cells_in, cells_rejected, wells_in."""
    columns = "images_in, images_rejected, cells_in, cells_rejected, wells_in"
    query = f"SELECT {columns} FROM main.plate_loads WHERE {_LOAD}"
    return dict(lake.frame(query, [feature_set, *key]).row(0, named=True))


def wells_without_layout(lake: Lake, feature_set: str, key: tuple[str, str, str]) -> int:
    """Return how many wells of a plate that is in have a profile and no layout, given now or before."""
    query = f"SELECT wells_without_layout FROM main.plate_loads WHERE {_LOAD}"
    return int(str(lake.value(query, [feature_set, *key])))


def _wells_of(connection: duckdb.DuckDBPyConnection, table: str, key: tuple[str, str, str]) -> set[str]:
    """Return the wells of a plate that a table holds: `main.wells` for its layout, or those of a feature set."""
    rows = connection.execute(f"SELECT well FROM {table} WHERE {layouts.PLATE}", list(key)).fetchall()
    return {well for (well,) in rows}


def _with_other_channels(
    connection: duckdb.DuckDBPyConnection, key: tuple[str, str, str], images: pl.DataFrame
) -> pl.DataFrame:
    """Keep the channels that the lake knows of these images and that this extractor does not look at."""
    lists, names = ["channels", "paths", "planes", "digests"], ["well", "field", "cell"]
    held = connection.execute(
        f"SELECT well, field, cell, channels, paths, planes, digests FROM main.fields WHERE {layouts.PLATE}",
        list(key),
    ).pl()
    new, old = (each.select(*names, *lists).explode(lists) for each in (images, held))
    others = old.join(new, on=[*names, "channels"], how="anti", nulls_equal=True)
    others = others.join(images, on=names, how="semi", nulls_equal=True)
    if others.is_empty():
        return images
    return pl.concat([new, others]).group_by(names, maintain_order=True).agg(lists)


def _delete_images(
    connection: duckdb.DuckDBPyConnection, key: tuple[str, str, str], images: pl.DataFrame
) -> None:
    """Take out what is known of these images of a plate: another extractor may have brought the same ones."""
    names = images.select("well", "field", "cell")
    connection.register("images", names)
    try:
        connection.execute(
            f"DELETE FROM main.fields WHERE {layouts.PLATE} AND (well, field, coalesce(cell, '')) IN "
            "(SELECT (well, field, coalesce(cell, '')) FROM images)",
            list(key),
        )
    finally:
        connection.unregister("images")


def _delete_quality(
    connection: duckdb.DuckDBPyConnection, key: tuple[str, str, str], quality: pl.DataFrame
) -> None:
    """Take out what was measured on these fields; on the whole plate, where no other feature set read its images."""
    others = f"SELECT count(*) FROM main.plate_loads WHERE {layouts.PLATE} AND images_seen > 0"
    row = connection.execute(others, list(key)).fetchone()
    connection.register("measured", quality.select("well", "field"))
    try:
        connection.execute(
            f"DELETE FROM main.field_quality WHERE {layouts.PLATE} AND (? = 0 OR (well, field) IN "
            "(SELECT (well, field) FROM measured))",
            [*key, 0 if row is None else row[0]],
        )
    finally:
        connection.unregister("measured")
