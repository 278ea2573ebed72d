"""Profiles of negative controls as null: how alike profiles are where nothing was done to the cells."""

import numpy as np
import polars as pl

from warehouse import feature_sets
from warehouse.aggregate import aggregate
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.nearest.level_rows import parts
from warehouse.profiles import IDS, FittedRecipe
from warehouse.sqltext import relation

#: Embeddings of controls that are held at a time, and in all: of groups of very many wells, fewer are made.
BYTES = 128 << 20
_DRAWN = "drawn_controls"


def control_profiles(
    lake: Lake, target: FeatureSet, fitted: FittedRecipe, wells: int, limit: int = 1000
) -> np.ndarray:
    """Make profiles of negative controls as they are at levels above wells; the same ones every time.

    Each is made of as many control wells as a treated row has, by the treatment operator of the feature set; no well is
    in two of them. Wells are drawn by the MD5 of their key; those with a missing element, or nothing but zeros, are
    passed over.

    Args:
        lake: an open lake.
        target: the feature set.
        fitted: a recipe of it, or `none`.
        wells: that a profile is made of, at least 1.
        limit: how many profiles at most; fewer where controls are fewer, or would take more memory than `BYTES`.

    Returns:
        (c, d) float32; c is 0 where there are fewer than 2.
    """
    d, size = len(fitted.feature_names), max(1, wells)
    groups = min(limit, max(2, BYTES // (4 * max(1, d) * size)))
    drawn = _usable(lake, target, fitted, groups * size)
    groups = len(drawn) // size
    if groups < 2:
        return np.empty((0, d), np.float32)
    operator = feature_sets.operators(lake.connection, target.name)["treatment_operator"]
    codes = np.repeat(np.arange(groups), size)
    _, made = aggregate(codes, drawn[: groups * size], operator)
    # Controls can cancel each other, and what has no direction has no cosine.
    return made[made.any(axis=1)]


def control_rows(
    lake: Lake, rows: pl.DataFrame, level: str, alive: np.ndarray, limit: int = 1000
) -> np.ndarray:
    """Draw rows of negative controls among cells, fields or wells that are at hand; the same ones every time.

    Args:
        lake: an open lake.
        rows: n rows with the ids of the level and control_type.
        level: cell, field or well.
        alive: (n,) booleans, rows that may be drawn.
        limit: how many at most.

    Returns:
        Row numbers, in the order of the MD5 of their keys; none where there are fewer than 2.
    """
    is_control = rows["control_type"].eq_missing("negative").to_numpy() & alive
    there = np.flatnonzero(is_control)
    lake.connection.register(_DRAWN, rows[there].select(IDS[level]).with_columns(number=there))
    try:
        keys = ", ".join(IDS[level])
        drawn = lake.connection.execute(
            f"SELECT number FROM {_DRAWN} ORDER BY md5_number_lower(concat_ws('/', {keys})), {keys} LIMIT ?",
            [limit],
        ).fetchnumpy()["number"]
    finally:
        lake.connection.unregister(_DRAWN)
    found = np.asarray(drawn, dtype=np.int64)
    return found if len(found) > 1 else found[:0]


def _usable(lake: Lake, target: FeatureSet, fitted: FittedRecipe, count: int) -> np.ndarray:
    """Draw rows of controls that have a cosine, in the order in which they are drawn: (at most count, d) float32."""
    found = [np.empty((0, len(fitted.feature_names)), np.float32)]
    have = offset = 0
    while have < count:
        # Where rows were passed over, the next try takes more than are missing still: each is a pass over the keys.
        asked = count if offset == 0 else max(count - have, count // 8)
        keys = _drawn(lake, target, fitted, asked, offset)
        offset += asked
        matrix = _read(lake, target, fitted, keys)
        usable = ~np.isnan(matrix).any(axis=1) & matrix.any(axis=1)
        found.append(matrix if usable.all() else matrix[usable])
        have += len(found[-1])
        if len(keys) < asked:
            break
    return found[-1] if len(found) == 2 and have <= count else np.concatenate(found)[:count]


def _drawn(lake: Lake, target: FeatureSet, fitted: FittedRecipe, count: int, offset: int) -> pl.DataFrame:
    """Draw keys of controls without reading an embedding, in the order of their MD5."""
    table = relation(target.name, "wells", fitted.name)
    keys = ", ".join(f"profiles.{key}" for key in IDS["well"])
    return lake.frame(
        f"SELECT {keys} FROM {table} AS profiles INNER JOIN main.wells AS layout "
        "ON profiles.source = layout.source AND profiles.batch = layout.batch "
        "AND profiles.plate = layout.plate AND profiles.well = layout.well "
        "WHERE layout.control_type = 'negative' "
        f"ORDER BY md5_number_lower(concat_ws('/', {keys})), {keys} LIMIT ? OFFSET ?",
        [count, offset],
    )


def _read(lake: Lake, target: FeatureSet, fitted: FittedRecipe, keys: pl.DataFrame) -> np.ndarray:
    """Read the embeddings of rows, in their order: (n, d) float32, NaN where an element is missing."""
    d = len(fitted.feature_names)
    matrix = np.empty((len(keys), d), np.float32)
    table = relation(target.name, "wells", fitted.name)
    same = " AND ".join(f"profiles.{key} = drawn.{key}" for key in IDS["well"])
    lake.connection.register(_DRAWN, keys.with_row_index("number"))
    try:
        query = (
            f"SELECT drawn.number, profiles.embedding::FLOAT[{d:d}] AS embedding "
            f"FROM {table} AS profiles INNER JOIN {_DRAWN} AS drawn ON {same}"
        )
        for numbers, values in parts(lake, query, (), d, max(1, (16 << 20) // (4 * max(1, d)))):
            matrix[numbers["number"].to_numpy()] = values
    finally:
        lake.connection.unregister(_DRAWN)
    return matrix
