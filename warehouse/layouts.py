"""Plates, their wells and their annotations in the lake: written beside the first profiles, kept unique."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import duckdb
import polars as pl
import pyarrow as pa

from warehouse.errors import ScreenError
from warehouse.lake import Lake, now
from warehouse.runs import Run
from warehouse.sqltext import relation
from warehouse.wells import treatment_expression, with_positions

#: Rows of cells written by one statement, in bytes.
_STREAM_BYTES = 2**26
#: One plate, its key bound as parameters.
PLATE = "source = ? AND batch = ? AND plate = ?"

#: Source, batch, plate.
Key = tuple[str, str, str]

# The plates of `_at_hand`; the bounds let DuckLake pass over files in which none of them can be.
_PLATES = (
    "source BETWEEN ? AND ? AND batch BETWEEN ? AND ? AND plate BETWEEN ? AND ? "
    "AND (source, batch, plate) IN (SELECT (source, batch, plate) FROM at_hand)"
)

_TEXTS: dict[str, pl.DataType] = {
    name: pl.String() for name in ("source", "batch", "plate", "layout_hash", "run")
}
_PLATES_SCHEMA = {**_TEXTS, "added_at": pl.Datetime("us")}

#: How many wells `put_layout` writes in one transaction: some hundred plates, and no long wait for other writers.
WELLS_A_TRANSACTION = 131_072


@dataclass(frozen=True)
class LayoutReport:
    """What became of the plates of a layout, in numbers.

    Attributes:
        plates_added: that the lake did not have.
        plates_relabelled: whose wells were other ones, or that had no layout.
        plates_unchanged: the rest.
        wells_in: wells that the layout names, all of which are in now.
        wells_kept: wells of these plates that the layout lacks and the lake held; they stay as they are.
        wells_removed: likewise, taken out because `replace` was given.
    """

    plates_added: int = 0
    plates_relabelled: int = 0
    plates_unchanged: int = 0
    wells_in: int = 0
    wells_kept: int = 0
    wells_removed: int = 0

    def __add__(self, other: "LayoutReport") -> "LayoutReport":
        """Sum two reports."""
        names = [field.name for field in fields(self)]
        return LayoutReport(*(getattr(self, name) + getattr(other, name) for name in names))


def content(layout: pl.DataFrame) -> str:
    """Hash a plate's layout: the same wells in another order are the same layout."""
    rows = layout.select("well", "compound", "concentration", "unit", "control_type").sort("well").rows()
    return hashlib.blake2b(repr(rows).encode(), digest_size=16).hexdigest()


def put_plate(lake: Lake, run: Run, key: Key, layout: pl.DataFrame | None) -> bool:
    """Write a plate and its wells inside a transaction; what is there already and equal is left as it is.

    Args:
        lake: inside `Lake.transaction`.
        run: that this belongs to.
        key: source, batch, plate.
        layout: the plate's wells (columns as in `warehouse.screens`), or None where none was given. Wells that
            it lacks and the lake holds are kept; of a well that both have, what is given now holds.

    Returns:
        True where something was written.

    Raises:
        ScreenError: the lake holds this plate in another batch of the same source.
    """
    return _put(lake, run, {key: layout}, replace=False).plates_unchanged == 0


def put_layout(lake: Lake, run: Run, layout: pl.DataFrame, *, replace: bool = False) -> LayoutReport:
    """Write the plates and wells of a layout of any size, by the rules of `put_plate`; each plate whole or not at all.

    Args:
        lake: open for writing, outside any transaction: this makes one for every `WELLS_A_TRANSACTION` wells.
        run: that this belongs to.
        layout: rows of any number of plates, columns as in `warehouse.screens`.
        replace: let wells go that the lake holds of these plates and the layout lacks.

    Raises:
        ScreenError: the lake holds a plate in another batch of the same source. Nothing was written of any plate.
    """
    known = plates(lake)
    given = per_plate(layout)
    for key in given:
        check_batch(known, key)
    report = LayoutReport()
    for part in _parts(given):

        def work(_: duckdb.DuckDBPyConnection, part: Mapping[Key, pl.DataFrame] = part) -> LayoutReport:
            done = _put(lake, run, part, replace=replace, told=True)
            if done.plates_unchanged == len(part):
                lake.change_nothing()
            return done

        report += lake.transaction(work)
    return report


def _parts(given: Mapping[Key, pl.DataFrame]) -> Iterator[dict[Key, pl.DataFrame]]:
    """Split plates into groups of at most `WELLS_A_TRANSACTION` wells, a plate never in two."""
    part: dict[Key, pl.DataFrame] = {}
    size = 0
    for key, wells in given.items():
        if part and size + len(wells) > WELLS_A_TRANSACTION:
            yield part
            part, size = {}, 0
        part[key] = wells
        size += len(wells)
    if part:
        yield part


def _put(
    lake: Lake, run: Run, given: Mapping[Key, pl.DataFrame | None], *, replace: bool, told: bool = False
) -> LayoutReport:
    """Write plates and their wells inside a transaction; with `told`, also into the history of their loads."""
    known = lake.remembered("plates", lambda: plates(lake))
    for key in given:
        check_batch(known, key)
    hashes = {key: None if wells is None else content(wells) for key, wells in given.items()}
    added = [key for key in given if key[::2] not in known]
    wanted = {key: wells for key, wells in given.items() if wells is not None}
    changed = [key for key in wanted if key[::2] in known and hashes[key] != known[key[::2]][1]]
    kept = removed = 0
    for key, held in _held(lake, changed).items():
        layout = wanted[key]
        lacking = held.join(layout, on="well", how="anti")
        if replace:
            removed += len(lacking)
            continue
        kept += len(lacking)
        wanted[key] = pl.concat([layout, lacking.select(layout.columns)])
        hashes[key] = content(wanted[key])
    changed = [key for key in changed if hashes[key] != known[key[::2]][1]]
    report = LayoutReport(
        len(added),
        len(changed),
        len(given) - len(added) - len(changed),
        sum(len(wells) for wells in given.values() if wells is not None),
        kept,
        removed,
    )
    if not added and not changed:
        return report
    run.record(lake)
    if changed:
        _take_out(lake, changed)
    rows = [(*key, hashes[key], run.run, now()) for key in (*added, *changed)]
    insert(lake.connection, "main.plates", pl.DataFrame(rows, schema=_PLATES_SCHEMA, orient="row"))
    parts = [wanted[key] for key in (*added, *changed) if key in wanted]
    if parts:
        wells = with_positions(pl.concat(parts)).with_columns(treatment_expression().alias("treatment"))
        order = ("source", "batch", "plate", "row_number", "column_number")
        insert(lake.connection, "main.wells", wells.sort(order))
    if changed:
        recount(lake, changed)
        if told:
            _note_relabelled(lake, run, changed)
    known.update({key[::2]: (key[1], hashes[key]) for key in (*added, *changed)})
    return report


def _take_out(lake: Lake, keys: Sequence[Key]) -> None:
    """Delete plates and their wells, and what was corrected by their controls."""
    with _at_hand(lake, keys) as bounds:
        for table in ("plates", "wells"):
            lake.connection.execute(f"DELETE FROM main.{table} WHERE {_PLATES}", bounds)
    _forget(lake, keys, None)


def _held(lake: Lake, keys: Sequence[Key]) -> dict[Key, pl.DataFrame]:
    """Read the wells that the lake holds of these plates."""
    if not keys:
        return {}
    with _at_hand(lake, keys) as bounds:
        held = lake.frame(
            "SELECT source, batch, plate, well, compound, concentration, unit, control_type FROM main.wells "
            f"WHERE {_PLATES}",
            bounds,
        )
    return per_plate(held)


def recount(lake: Lake, keys: Sequence[Key]) -> None:
    """Count the wells of every load of these plates anew, inside a transaction, after their layout has changed."""
    with _at_hand(lake, keys) as bounds:
        query = f"SELECT DISTINCT feature_set FROM main.plate_loads WHERE {_PLATES}"
        for (feature_set,) in lake.connection.execute(query, bounds).fetchall():
            profiles = relation(feature_set, "wells")
            lake.connection.execute(
                "UPDATE main.plate_loads SET wells_in_layout = counted.wells_in_layout, "
                "wells_without_data = counted.wells_without_data, "
                "wells_without_layout = counted.wells_without_layout FROM ("
                "SELECT source, batch, plate, count(layout.well) AS wells_in_layout, "
                "count(*) FILTER (WHERE profiles.well IS NULL) AS wells_without_data, "
                "count(*) FILTER (WHERE layout.well IS NULL) AS wells_without_layout "
                f"FROM (SELECT source, batch, plate, well FROM main.wells WHERE {_PLATES}) AS layout "
                f"FULL JOIN (SELECT source, batch, plate, well FROM {profiles} WHERE {_PLATES}) AS profiles "
                "USING (source, batch, plate, well) GROUP BY source, batch, plate) AS counted "
                "WHERE plate_loads.feature_set = ? AND plate_loads.source = counted.source "
                "AND plate_loads.batch = counted.batch AND plate_loads.plate = counted.plate",
                [*bounds, *bounds, feature_set],
            )


def _note_relabelled(lake: Lake, run: Run, keys: Sequence[Key]) -> None:
    """Write into the history of every load of these plates that their layout is another one now."""
    former = lake.snapshot()
    with _at_hand(lake, keys) as bounds:
        lake.connection.execute(
            "INSERT INTO main.plate_history BY NAME SELECT feature_set, source, batch, plate, "
            "'relabelled' AS outcome, content_hash, content_hash AS former_hash, ? AS former_snapshot, ? AS run, "
            f"? AS happened_at FROM main.plate_loads WHERE {_PLATES}",
            [former, run.run, now(), *bounds],
        )


@contextmanager
def _at_hand(lake: Lake, keys: Sequence[Key]) -> Iterator[list[str]]:
    """Name plates for `_PLATES`; yields its parameters."""
    frame = pl.DataFrame(keys, schema=dict.fromkeys(("source", "batch", "plate"), pl.String), orient="row")
    lake.connection.register("at_hand", frame)
    try:
        yield [bound for column in frame for bound in (str(column.min()), str(column.max()))]
    finally:
        lake.connection.unregister("at_hand")


def plates(lake: Lake) -> dict[tuple[str, str], tuple[str, str | None]]:
    """Read which plates the lake holds: (source, plate) to (batch, hash of the layout)."""
    rows = lake.connection.execute("SELECT source, plate, batch, layout_hash FROM main.plates").fetchall()
    return {(source, plate): (batch, layout) for source, plate, batch, layout in rows}


def check_batch(known: dict[tuple[str, str], tuple[str, str | None]], key: tuple[str, str, str]) -> None:
    """Refuse a plate that the lake holds in another batch of the same source.

    Raises:
        ScreenError: with both batches.
    """
    source, batch, plate = key
    other = known.get((source, plate), (batch, None))[0]
    if other != batch:
        message = (
            f"plate {plate!r} of source {source!r} is in the lake in batch {other!r}, and comes now in "
            f"batch {batch!r}: a plate belongs to one batch; correct the manifest or layout"
        )
        raise ScreenError(message)


def forget_corrections(lake: Lake, key: tuple[str, str, str], feature_set: str | None = None) -> None:
    """Take a plate's corrected wells out where what they were made from has changed; `correct` makes them anew.

    Args:
        lake: inside `Lake.transaction`.
        key: source, batch, plate.
        feature_set: whose profiles changed; None for all, where the layout (and so the controls) changed.
    """
    _forget(lake, [key], feature_set)


def _forget(lake: Lake, keys: Sequence[Key], feature_set: str | None) -> None:
    fitted = lake.connection.execute("SELECT feature_set, recipe FROM main.recipes").fetchall()
    with _at_hand(lake, keys) as bounds:
        for name, recipe in fitted:
            if feature_set in (None, name):
                lake.connection.execute(
                    f"DELETE FROM {relation(name, 'wells', recipe)} WHERE {_PLATES}", bounds
                )
                lake.connection.execute(
                    f"DELETE FROM main.recipe_left_out WHERE feature_set = ? AND recipe = ? AND {_PLATES}",
                    [name, recipe, *bounds],
                )


def put_annotations(lake: Lake, run: Run, annotations: pl.DataFrame) -> int:
    """Add the labels that the lake lacks, in one transaction of their own; returns how many were new."""
    if annotations.is_empty():
        return 0
    new_rows = (
        "SELECT DISTINCT compound, concentration, unit, kind, label FROM incoming "
        "EXCEPT SELECT compound, concentration, unit, kind, label FROM main.annotations"
    )

    def work(connection: duckdb.DuckDBPyConnection) -> int:
        run.record(lake)
        before = connection.execute("SELECT count(*) FROM main.annotations").fetchone()
        connection.execute(f"INSERT INTO main.annotations BY NAME {new_rows}")
        after = connection.execute("SELECT count(*) FROM main.annotations").fetchone()
        return int(after[0] - before[0]) if before and after else 0

    lake.connection.register("incoming", annotations)
    try:
        if not lake.value(f"SELECT count(*) FROM ({new_rows})"):
            return 0
        return lake.transaction(work)
    finally:
        lake.connection.unregister("incoming")


def insert(
    connection: duckdb.DuckDBPyConnection, table: str, rows: pl.DataFrame | pa.RecordBatchReader
) -> None:
    """Append the columns of a frame, by name, to a table whose name is ours (quoted where it is a user's)."""
    connection.register("incoming", rows)
    try:
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
    finally:
        connection.unregister("incoming")


def insert_parts(connection: duckdb.DuckDBPyConnection, table: str, parts: Iterable[pl.DataFrame]) -> None:
    """Append frames of the same columns, as streams of a bounded size, each of which becomes a file.

    DuckDB reads a stream faster than it writes Parquet and keeps what waits, and a frame that was registered stays
    with it until the transaction ends: either way a plate's cells would all be in memory.
    """
    batches = (
        batch for part in parts for rows in part.iter_slices(512) for batch in rows.to_arrow().to_batches()
    )
    raised: list[BaseException] = []

    def stream(first: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield first
        size = first.nbytes
        try:
            while size < _STREAM_BYTES and (batch := next(batches, None)) is not None:
                size += batch.nbytes
                yield batch
        except BaseException as error:
            raised.append(error)  # DuckDB would make a text of it
            raise

    for first in batches:
        try:
            insert(connection, table, pa.RecordBatchReader.from_batches(first.schema, stream(first)))
        except duckdb.Error as error:
            if raised:
                raise raised[0] from error
            raise


def per_plate(frame: pl.DataFrame) -> dict[tuple[str, str, str], pl.DataFrame]:
    """Split a frame by source, batch and plate, in their order."""
    parts = frame.partition_by("source", "batch", "plate", as_dict=True)
    return {(str(a), str(b), str(c)): parts[a, b, c] for a, b, c in sorted(parts)}
