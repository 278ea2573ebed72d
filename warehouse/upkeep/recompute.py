"""Proof that committed fields and wells are what SQL computes from the cells and fields in the lake, plate by plate.

Two values agree where |a - b| <= 1e-6 * max(1, |a|, |b|); a missing element agrees with a missing element only.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import duckdb
import numpy as np
import polars as pl

from warehouse import feature_sets
from warehouse.embeddings import to_matrix
from warehouse.errors import LakeUnavailableError
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.level_queries import recomputed
from warehouse.sqltext import expand, relation

TOLERANCE = 1e-6
#: Embeddings of cells that one query takes, in bytes, or those of one well; DuckDB holds them several times over.
PART_BYTES = 64 << 20
#: Differences of one table and plate that are told one by one.
TOLD = 20

Key = tuple[str, str, str]
Progress = Callable[[str, int, int], None]
_PLATE = "source = ? AND batch = ? AND plate = ?"
_SPAN = f"{_PLATE} AND well BETWEEN ? AND ?"
_COUNTS = {"fields": ("cell_count",), "wells": ("field_count", "cell_count")}
_KEYS = {"fields": ("well", "field"), "wells": ("well",)}


@dataclass(frozen=True)
class Difference:
    """One thing that differs.

    Attributes:
        table: the feature set and its table, as `transfer.fields`.
        detail: plate, well, field, feature by number (from 1) and name, and both values.
    """

    table: str
    detail: str


@dataclass
class Recomputed:
    """What was computed anew, and what of it differs.

    Attributes:
        plates: of all feature sets.
        fields: rows, computed from cells.
        wells: rows, computed from fields.
        values: elements that were compared, missing ones too.
        seconds: taken.
        left_out: feature sets that begin with wells: the lake holds nothing to compute these from.
        differences: empty where all agrees.
    """

    plates: int = 0
    fields: int = 0
    wells: int = 0
    values: int = 0
    seconds: float = 0.0
    left_out: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


def recompute(lake: Lake, *, progress: Progress | None = None) -> Recomputed:
    """Compute fields and wells of every plate from the rows below them, and hold them against what was committed.

    Args:
        lake: an open lake; nothing is written.
        progress: told the plate at hand, plates done, and plates in all.

    Returns:
        What was found. Memory does not grow with the lake: a plate is taken in parts of whole wells.
    """
    found, began = Recomputed(), time.monotonic()
    work: list[tuple[FeatureSet, Key]] = []
    for name in feature_sets.names(lake):
        target = feature_sets.find(lake, name)
        if target.entry_level == "well":
            found.left_out.append(name)
        else:
            work += [(target, key) for key in _plates(lake, target)]
    for done, (target, key) in enumerate(work):
        if progress:
            progress(f"{target.name} {key[2]}", done, len(work))
        try:
            with lake.reading():
                _plate(lake, target, key, found)
        except (duckdb.Error, LakeUnavailableError) as error:
            detail = f"plate {'/'.join(key)} cannot be computed: {str(error).splitlines()[0]}"
            found.differences.append(Difference(target.name, detail))
        found.plates += 1
    found.seconds = time.monotonic() - began
    return found


def _tables(target: FeatureSet) -> tuple[str, ...]:
    return ("cells", "fields", "wells") if target.entry_level == "cell" else ("fields", "wells")


def _plates(lake: Lake, target: FeatureSet) -> list[Key]:
    """List the plates of which any table has a row."""
    plates: set[Key] = set()
    for table in _tables(target):
        query = f"SELECT DISTINCT source, batch, plate FROM {relation(target.name, table)}"
        plates |= set(lake.frame(query).rows())
    return sorted(plates)


def _plate(lake: Lake, target: FeatureSet, key: Key, found: Recomputed) -> None:
    told = dict.fromkeys(_COUNTS, 0)
    for span in _parts(lake, target, key):
        for table in _tables(target)[1:]:
            rows = relation(target.name, table)
            committed = lake.frame(f"SELECT * FROM {rows} WHERE {_SPAN}", [*key, *span])
            computed = lake.frame(_computing(target, table), [*key, *span])
            setattr(found, table, getattr(found, table) + len(computed))
            found.values += len(computed) * target.dim
            for detail in _differences(target, table, committed, computed):
                told[table] += 1
                if told[table] <= TOLD:
                    found.differences.append(_difference(target, table, key, detail))
    for table, count in told.items():
        if count > TOLD:
            found.differences.append(_difference(target, table, key, f"{count - TOLD} more"))


def _difference(target: FeatureSet, table: str, key: Key, detail: str) -> Difference:
    return Difference(f"{target.name}.{table}", f"plate {'/'.join(key)}, {detail}")


def _computing(target: FeatureSet, table: str) -> str:
    return f"SELECT * FROM ({expand(recomputed(target, table), target.name)}) WHERE {_SPAN}"


def _parts(lake: Lake, target: FeatureSet, key: Key) -> list[tuple[str, str]]:
    """Divide a plate into stretches of wells, first and last, each with about `PART_BYTES` of the finest level."""
    counts: dict[str, int] = {}
    for table in reversed(_tables(target)):  # a well that has no rows at the finest level is looked at, too
        rows = relation(target.name, table)
        counts |= dict(
            lake.frame(f"SELECT well, count(*) FROM {rows} WHERE {_PLATE} GROUP BY well", key).rows()
        )
    limit = max(1, PART_BYTES // (4 * target.dim))
    parts: list[tuple[str, str]] = []
    rows_in_part = limit
    for well, count in sorted(counts.items()):
        if rows_in_part + count > limit:
            parts.append((well, well))
            rows_in_part = count
        else:
            parts[-1] = (parts[-1][0], well)
            rows_in_part += count
    return parts


def _differences(
    target: FeatureSet, table: str, committed: pl.DataFrame, computed: pl.DataFrame
) -> Iterator[str]:
    """Tell what differs between two tables of the same rows: rows, then counts, then elements."""
    keys = list(_KEYS[table])
    below = "cells" if table == "fields" else "fields"
    twice = committed.group_by(keys).len().filter(pl.col("len") > 1).sort(keys)
    for *key, count in twice.iter_rows():
        yield f"{_named(keys, key)}: committed {count} times"
    committed = committed.unique(keys, keep="first")
    for row in committed.join(computed, on=keys, how="anti").select(keys).sort(keys).iter_rows():
        yield f"{_named(keys, row)}: committed, and there are no {below} to compute it from"
    for row in computed.join(committed, on=keys, how="anti").select(keys).sort(keys).iter_rows():
        yield f"{_named(keys, row)}: there are {below} of it, and it was not committed"
    committed = committed.join(computed, on=keys, how="semi").sort(keys)
    computed = computed.join(committed, on=keys, how="semi").sort(keys)
    for name in _COUNTS[table]:
        unequal = (~committed[name].eq_missing(computed[name])).arg_true()
        for place in unequal:
            there, here = committed[name][place], computed[name][place]
            yield f"{_named(keys, committed.select(keys).row(place))}: {name} {there} committed, {here} computed"
    yield from _elements(target, committed.select(keys), committed["embedding"], computed["embedding"])


def _elements(
    target: FeatureSet, rows: pl.DataFrame, committed: pl.Series, computed: pl.Series
) -> Iterator[str]:
    try:
        there = to_matrix(committed, target.dim).astype(np.float64)
    except ValueError as error:
        yield f"cannot be compared: {error}"
        return
    here = to_matrix(computed, target.dim).astype(np.float64)
    allowed = TOLERANCE * np.fmax(1.0, np.fmax(np.abs(there), np.abs(here)))
    agree = (np.abs(there - here) <= allowed) | (np.isnan(there) & np.isnan(here))
    for place, feature in np.argwhere(~agree):
        name = target.feature_names[feature]
        values = f"{_value(there[place, feature])} committed, {_value(here[place, feature])} computed"
        yield f"{_named(rows.columns, rows.row(place))}, feature {feature + 1} ({name}): {values}"


def _named(keys: Sequence[str], row: Sequence[object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in zip(keys, row, strict=True))


def _value(value: float) -> str:
    return "missing" if np.isnan(value) else f"{np.float32(value)}"
