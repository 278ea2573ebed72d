"""A level read out of the lake to be searched: metadata and embeddings, part by part; and marks of what it is made of.

What is read at once is bounded, whatever the lake holds. Of a screen that has grown, single plates can be read.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from warehouse import feature_sets
from warehouse.embeddings import apart
from warehouse.errors import SearchError
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.levels import ahead
from warehouse.names import unknown
from warehouse.profiles import IDS, LABEL_KINDS, LEVELS, FittedRecipe
from warehouse.sqltext import identifier, relation

Plate = tuple[str, str, str]

#: Levels whose rows are in a table, plate by plate; the others are made by views, of all wells at once.
STORED = {"cell": "cells", "field": "fields", "well": "wells"}
#: What the layout says of a well, in the columns that `well_profiles` has.
_LAYOUT = ("treatment", "compound", "concentration", "unit", "control_type")
#: Columns of the views that those of an older snapshot lack; they are NULL there.
_LATER = {"positions": "NULL::VARCHAR[] AS positions", "replicate_cosine": "NULL::DOUBLE AS replicate_cosine"}
#: Whose layouts are held at a time: few enough for memory, many enough for few queries.
_PLATES_AT_ONCE = 256
_RANGE = "source = ? AND batch BETWEEN ? AND ? AND plate BETWEEN ? AND ?"


@dataclass(frozen=True)
class Marks:
    """What the vectors of a feature set under a recipe are made of: equal marks mean equal vectors, at every level.

    Attributes:
        whole: hash of what makes all vectors anew: steps and time of the fit, operators of the views.
        plates: one hash a plate that was committed; another one where its rows are others, or where they went out of
            the corrected table or came into it. A plate without rows has a mark, too.
    """

    whole: str
    plates: dict[Plate, str]


def batches(
    lake: Lake,
    target: FeatureSet,
    fitted: FittedRecipe,
    level: str,
    *,
    plates: Sequence[Plate] | None = None,
    bytes_at_once: int = 64 << 20,
) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
    """Read a level, some rows at a time, in no order that is promised.

    Nothing else may be asked of `lake` between two parts: its connection is in the midst of an answer.

    Args:
        lake: an open lake.
        target: the feature set.
        fitted: a recipe of it, or `none`; of cells and fields only `none`.
        level: of `profiles.LEVELS`.
        plates: of cells, fields and wells: only rows of these (source, batch, plate), no other file being read.
        bytes_at_once: embeddings of one part.

    Yields:
        Metadata, n rows: every column of the level but the embedding and labels; cells and fields have those of the
        layout of their well, levels above wells `positions` and `replicate_cosine` (NULL where an older snapshot has
        none), last. And (n, d) float32, perhaps read-only; NaN where a cell or a field misses an element.

    Raises:
        SearchError: a row of another level misses an element; the level is empty; plates, or a recipe, of a level that
            has none.
        UnknownNameError: no such level, or no such plate.
    """
    if level not in LEVELS:
        raise unknown(level, "level", LEVELS)
    rows_at_once = max(1, bytes_at_once // (4 * max(1, len(fitted.feature_names))))
    if level in STORED:
        if level != "well" and fitted.name != "none":
            message = f"recipe {fitted.typed!r} corrects wells; {level}s are there as they came in: leave --recipe out"
            raise SearchError(message)
        found = _of_plates(lake, target, fitted, level, plates, rows_at_once)
    else:
        if plates is not None:
            message = (
                f"a {level} is made of wells of many plates: level {level!r} cannot be read plate by plate"
            )
            raise SearchError(message)
        found = _of_view(lake, target, fitted, level, rows_at_once)
    is_empty = True
    for rows, matrix in found:
        is_empty = False
        if level not in ("cell", "field"):
            refuse_missing(rows, matrix, level, fitted)
        yield rows, matrix
    if is_empty and plates is None:
        raise SearchError(_nothing(target, level))


def marks(lake: Lake, target: FeatureSet, fitted: FittedRecipe) -> Marks:
    """Mark what the vectors are made of, plate by plate; beside `profiles.fingerprint`, which tells equal or not.

    Under a recipe a plate is also marked with when it last changed. One that was changed and changed back is corrected
    again, and may then be another: by a new fit of its batch, where all plates of it changed; by a step that gives
    wells that come later something else than the wells of its fit (harmony).
    """
    loads = lake.connection.execute(
        "SELECT loads.source, loads.batch, loads.plate, loads.content_hash, plates.layout_hash, "
        "loads.loaded_at, plates.added_at "
        "FROM main.plate_loads AS loads "
        "LEFT JOIN main.plates AS plates "
        "ON loads.source = plates.source AND loads.batch = plates.batch AND loads.plate = plates.plate "
        "WHERE loads.feature_set = ?",
        [target.name],
    ).fetchall()
    operators = sorted(feature_sets.operators(lake.connection, target.name).items())
    if fitted.name == "none":
        return Marks(_hash("none", operators), {load[:3]: _hash(*load[3:5]) for load in loads})
    fits = lake.connection.execute(
        "SELECT steps, fitted_at FROM main.recipes WHERE feature_set = ? AND recipe = ?",
        [target.name, fitted.name],
    ).fetchall()
    corrected = lake.connection.execute(
        f"SELECT DISTINCT source, batch, plate FROM {relation(target.name, 'wells', fitted.name)}"
    ).fetchall()
    # A plate that is rolled back by itself has the times of then, and is corrected again.
    back = lake.connection.execute(
        "SELECT source, batch, plate, count(*) FROM main.plate_history "
        "WHERE feature_set = ? AND outcome = 'rolled back' GROUP BY source, batch, plate",
        [target.name],
    ).fetchall()
    stands, rolled_back = set(corrected), {row[:3]: row[3] for row in back}
    plates = {load[:3]: _hash(*load[3:], load[:3] in stands, rolled_back.get(load[:3], 0)) for load in loads}
    return Marks(_hash(fits, operators), plates)


def _hash(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


# ------------------------------------------------------------------------------------------ cells, fields, wells


def _of_plates(
    lake: Lake,
    target: FeatureSet,
    fitted: FittedRecipe,
    level: str,
    plates: Sequence[Plate] | None,
    rows_at_once: int,
) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
    """Read embeddings by themselves and join the layout here: DuckDB would gather embeddings for the join."""
    known = [
        (source, batch, plate)
        for source, batch, plate in lake.connection.execute(
            "SELECT source, batch, plate FROM main.plate_loads WHERE feature_set = ? ORDER BY ALL",
            [target.name],
        ).fetchall()
    ]
    wanted = set(known if plates is None else plates)
    for plate in sorted(wanted.difference(known))[:1]:
        raise unknown("/".join(plate), "plate", ("/".join(key) for key in known))
    keys, d = list(IDS["well"]), len(fitted.feature_names)
    table = relation(target.name, STORED[level], fitted.name)
    asked = f"SELECT * EXCLUDE (embedding), embedding::FLOAT[{d:d}] AS embedding FROM {table} WHERE {_RANGE}"
    described = (
        "SELECT source, batch, plate, well, treatment, compound, concentration, unit, control_type "
        f"FROM main.wells WHERE {_RANGE}"
    )
    for bounds in ranges(known, wanted):
        layout = apart(lake.frame(described, bounds))
        for ids, matrix in parts(lake, asked, bounds, d, rows_at_once):
            rows = ids.join(layout, on=keys, how="left", maintain_order="left", validate="m:1")
            others = [name for name in ids.columns if name not in IDS[level]]
            yield rows.select(*IDS[level], *_LAYOUT, *others), matrix


def ranges(known: Sequence[Plate], wanted: Collection[Plate]) -> Iterator[tuple[str, str, str, str, str]]:
    """Cover plates by ranges that hold no other plate: source, first and last batch, first and last plate.

    Args:
        known: all plates, ordered.
        wanted: some of them.
    """
    gathered: list[Plate] = []

    def bounds() -> Iterator[tuple[str, str, str, str, str]]:
        if gathered:
            names = sorted(plate for _, _, plate in gathered)
            yield gathered[0][0], gathered[0][1], gathered[-1][1], names[0], names[-1]
            gathered.clear()

    for _, of_source in itertools.groupby(known, key=lambda plate: plate[0]):
        for _, of_batch in itertools.groupby(of_source, key=lambda plate: plate[:2]):
            batch = list(of_batch)
            is_whole = all(plate in wanted for plate in batch)
            # Whole batches that follow each other go together; of others, plates that follow each other.
            if not is_whole or len(gathered) + len(batch) > _PLATES_AT_ONCE:
                yield from bounds()
            for plate in batch:
                if plate not in wanted or len(gathered) >= _PLATES_AT_ONCE:
                    yield from bounds()
                if plate in wanted:
                    gathered.append(plate)
            if not is_whole or len(batch) > _PLATES_AT_ONCE:
                yield from bounds()
        yield from bounds()


# ------------------------------------------------------------------------------------------ above wells


def _of_view(
    lake: Lake, target: FeatureSet, fitted: FittedRecipe, level: str, rows_at_once: int
) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
    view = relation(target.name, LEVELS[level], fitted.name)
    d = len(fitted.feature_names)
    there = [row[0] for row in lake.connection.execute(f"DESCRIBE {view}").fetchall()]
    columns = [identifier(name) for name in there if name not in (*LABEL_KINDS, *_LATER, "embedding")]
    columns += [name if name in there else missing for name, missing in _LATER.items()]
    yield from parts(
        lake,
        f"SELECT {', '.join(columns)}, embedding::FLOAT[{d:d}] AS embedding FROM {view}",
        (),
        d,
        rows_at_once,
    )


# ------------------------------------------------------------------------------------------ both


def parts(
    lake: Lake, query: str, parameters: Sequence[object], dim: int, rows_at_once: int
) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
    """Run a query whose column `embedding` is an array, and give its rows out as they come: the others, the matrix."""
    # An array is given out a third faster than a list, and cannot have another length.
    answer = lake.connection.execute(query, list(parameters)).to_arrow_reader(rows_at_once)
    for batch in ahead(answer):
        if len(batch):
            values = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)  # NULL is NaN here
            ids = pl.DataFrame(pa.Table.from_batches([batch]).drop_columns("embedding"))
            yield apart(ids), values.reshape(len(batch), dim)


def refuse_missing(rows: pl.DataFrame, matrix: np.ndarray, level: str, fitted: FittedRecipe) -> None:
    """Refuse rows that miss an element: over fewer features another similarity would come out.

    Args:
        rows: n rows with the ids of the level.
        matrix: (n, d); NaN is missing.
        level: of `profiles.LEVELS`.
        fitted: the recipe that they are under.

    Raises:
        SearchError: the first row and feature, and what to do.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isnan(matrix.sum()):  # several times faster than to look at each element
            return
    missing = np.isnan(matrix)
    if missing.any():
        row, feature = np.argwhere(missing)[0]
        name = "/".join(str(rows[key][int(row)]) for key in IDS[level])
        message = (
            f"{level} {name!r} has no value for feature {fitted.feature_names[feature]!r}: "
            "correct the feature set with a recipe that deals with missing values"
        )
        raise SearchError(message)


def _nothing(target: FeatureSet, level: str) -> str:
    message = f"feature set {target.name!r} has no {level} to search: "
    if level not in STORED:
        return message + "bring a layout with --layout"
    return message + f"it begins with {target.entry_level}s; ingest a plate, or name a level above"
