"""Plates, their wells and their annotations in the lake: written beside the first profiles, kept unique."""

import hashlib

import duckdb
import polars as pl

from warehouse.errors import ScreenError
from warehouse.lake import Lake, now
from warehouse.runs import Run
from warehouse.sqltext import relation
from warehouse.wells import position, treatment_expression

#: One plate, its key bound as parameters.
PLATE = "source = ? AND batch = ? AND plate = ?"


def content(layout: pl.DataFrame) -> str:
    """Hash a plate's layout: the same wells in another order are the same layout."""
    rows = layout.select("well", "compound", "concentration", "unit", "control_type").sort("well").rows()
    return hashlib.blake2b(repr(rows).encode(), digest_size=16).hexdigest()


def put_plate(lake: Lake, run: Run, key: tuple[str, str, str], layout: pl.DataFrame | None) -> bool:
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
    known = lake.remembered("plates", lambda: plates(lake))
    check_batch(known, key)
    present = known.get((key[0], key[2]))
    if present is not None and layout is None:
        return False
    if present is not None and layout is not None and content(layout) != present[1]:
        layout = _merged(lake, key, layout)
    wanted = None if layout is None else content(layout)
    if present is not None and wanted == present[1]:
        return False
    run.record(lake)
    connection = lake.connection
    if present is not None:
        connection.execute(f"DELETE FROM main.plates WHERE {PLATE}", list(key))
        connection.execute(f"DELETE FROM main.wells WHERE {PLATE}", list(key))
        forget_corrections(lake, key)
    connection.execute("INSERT INTO main.plates VALUES (?, ?, ?, ?, ?, ?)", [*key, wanted, run.run, now()])
    if layout is not None:
        positions = [position(well) for well in layout["well"]]
        wells = layout.with_columns(
            pl.Series("row_number", [row for row, _ in positions], dtype=pl.Int32),
            pl.Series("column_number", [column for _, column in positions], dtype=pl.Int32),
            treatment_expression().alias("treatment"),
        ).sort("row_number", "column_number")
        insert(connection, "main.wells", wells)
    known[key[0], key[2]] = (key[1], wanted)
    return True


def _merged(lake: Lake, key: tuple[str, str, str], layout: pl.DataFrame) -> pl.DataFrame:
    """Add the wells that the lake holds of a plate and its layout now lacks."""
    held = lake.frame(
        "SELECT source, batch, plate, well, compound, concentration, unit, control_type FROM main.wells "
        f"WHERE {PLATE}",
        list(key),
    )
    return pl.concat([layout, held.join(layout, on="well", how="anti").select(layout.columns)])


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
    fitted = lake.connection.execute("SELECT feature_set, recipe FROM main.recipes").fetchall()
    for name, recipe in fitted:
        if feature_set in (None, name):
            lake.connection.execute(f"DELETE FROM {relation(name, 'wells', recipe)} WHERE {PLATE}", list(key))


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


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pl.DataFrame) -> None:
    """Append the columns of a frame, by name, to a table whose name is ours (quoted where it is a user's)."""
    connection.register("incoming", rows)
    try:
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")
    finally:
        connection.unregister("incoming")


def per_plate(frame: pl.DataFrame) -> dict[tuple[str, str, str], pl.DataFrame]:
    """Split a frame by source, batch and plate, in their order."""
    parts = frame.partition_by("source", "batch", "plate", as_dict=True)
    return {(str(a), str(b), str(c)): parts[a, b, c] for a, b, c in sorted(parts)}
