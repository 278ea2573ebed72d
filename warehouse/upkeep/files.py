"""The files of a lake: those that its catalog names, and those that are there."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from warehouse.lake import Lake
from warehouse.sqltext import identifier

#: DuckLake's own tables, in DuckDB's name for the catalog database (a SQLite file, or Postgres).
CATALOG = "__ducklake_metadata_lake"


@dataclass(frozen=True)
class CatalogFile:
    """A Parquet file that the catalog names.

    Attributes:
        path: absolute, or an `s3://` address.
        kind: `data`, or `delete` (row numbers that a data file has lost).
        schema: of its table.
        table: its name.
        size: in bytes.
        rows: in a data file all rows, also those lost since; in a delete file the rows lost.
        is_current: False where only older snapshots read it.
        is_partial: it holds rows of several snapshots, so a delete file may hold more rows than are lost now.
    """

    path: str
    kind: str
    schema: str
    table: str
    size: int
    rows: int
    is_current: bool
    is_partial: bool


@dataclass(frozen=True)
class StoredFile:
    """A file that is there: its size in bytes, and when it was last written (UTC, without a zone)."""

    size: int
    written: datetime


# One definition of how the catalog's relative paths are read: schema, table and file each hang on the one before.
_PATHS = (
    "SELECT tables.table_id, schemas.schema_name, tables.table_name, "
    "CASE WHEN tables.path_is_relative AND schemas.path_is_relative THEN schemas.path || tables.path "
    "ELSE tables.path END AS folder, NOT tables.path_is_relative OR NOT schemas.path_is_relative AS is_outside "
    f"FROM {CATALOG}.ducklake_table AS tables JOIN {CATALOG}.ducklake_schema AS schemas "
    "ON tables.schema_id = schemas.schema_id"
)
_FILES = (
    "SELECT files.path, files.path_is_relative, 'data' AS kind, tables.schema_name, tables.table_name, "
    "files.file_size_bytes, files.record_count, files.end_snapshot IS NULL AS is_current, "
    "files.partial_max IS NOT NULL AS is_partial, tables.folder, tables.is_outside "
    f"FROM {CATALOG}.ducklake_data_file AS files JOIN paths AS tables ON files.table_id = tables.table_id "
    "UNION ALL SELECT files.path, files.path_is_relative, 'delete', tables.schema_name, tables.table_name, "
    "files.file_size_bytes, files.delete_count, files.end_snapshot IS NULL AND EXISTS (SELECT 1 "
    f"FROM {CATALOG}.ducklake_data_file AS whole WHERE whole.data_file_id = files.data_file_id "
    "AND whole.end_snapshot IS NULL), files.partial_max IS NOT NULL, tables.folder, tables.is_outside "
    f"FROM {CATALOG}.ducklake_delete_file AS files JOIN paths AS tables ON files.table_id = tables.table_id"
)


def data_path(lake: Lake) -> str:
    """Return where the lake's files are: a folder or an `s3://` prefix, with a `/` at its end."""
    return str(lake.value("SELECT data_path FROM ducklake_settings('lake')")).rstrip("/") + "/"


def in_catalog(lake: Lake) -> list[CatalogFile]:
    """List every file that a snapshot of the lake reads, the old ones too, ordered by path."""
    root = data_path(lake)
    # A table renamed or altered has several rows, all with one folder.
    query = f"WITH paths AS (SELECT DISTINCT ON (table_id) * FROM ({_PATHS}) ORDER BY table_id) {_FILES}"
    found: dict[str, CatalogFile] = {}
    for path, is_relative, *row, folder, is_outside in lake.connection.execute(query).fetchall():
        kind, schema, table, size, rows, current, partial = row
        full = (root * (not is_outside) + folder + path) if is_relative else path
        known = found.get(full)
        # A file may be named twice, by the part of it that is read now and the part that was.
        is_current = bool(current) or (known is not None and known.is_current)
        found[full] = CatalogFile(full, kind, schema, table, int(size), int(rows), is_current, bool(partial))
    return [found[path] for path in sorted(found)]


def scheduled(lake: Lake) -> set[str]:
    """List the files that no snapshot reads any more and that a later `compact` deletes."""
    rows = lake.connection.execute(
        f"SELECT path, path_is_relative FROM {CATALOG}.ducklake_files_scheduled_for_deletion"
    ).fetchall()
    root = data_path(lake)
    return {root + path if is_relative else path for path, is_relative in rows}


def stored(lake: Lake) -> dict[str, StoredFile]:
    """List the Parquet files that are there, by path as `in_catalog` writes it."""
    root = data_path(lake)
    if "://" not in root:
        found: dict[str, StoredFile] = {}
        for path in Path(root).rglob("*.parquet"):
            try:
                entry = path.stat()
            except FileNotFoundError:  # deleted by another process while we walk
                continue
            written = datetime.fromtimestamp(entry.st_mtime, UTC).replace(tzinfo=None)
            found[str(path)] = StoredFile(entry.st_size, written)
        return found
    query = "SELECT filename, size, make_timestamp(epoch_us(last_modified)) FROM read_blob(?)"
    for last in (False, False, True):
        try:
            rows = lake.connection.execute(query, [exactly(root) + "**/*.parquet"]).fetchall()
            break
        except (duckdb.HTTPException, duckdb.IOException):  # a file deleted while they were listed
            if last:
                raise
    return {path: StoredFile(size, written) for path, size, written in rows}


def exactly(path: str) -> str:
    """Write a path for a function that takes patterns: `*`, `?` and `[` in it are then letters like others."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def inlined(lake: Lake) -> dict[tuple[str, str], int]:
    """Count the rows that the catalog itself holds of each table (schema, table), of all snapshots."""
    rows = lake.connection.execute(
        f"SELECT parts.table_name, tables.schema_name, tables.table_name "
        f"FROM {CATALOG}.ducklake_inlined_data_tables AS parts JOIN ({_PATHS}) AS tables "
        "ON parts.table_id = tables.table_id"
    ).fetchall()
    counts: dict[tuple[str, str], int] = {}
    for part, schema, table in set(rows):
        held = lake.value(f"SELECT count(*) FROM {CATALOG}.{identifier(part)}")
        counts[schema, table] = counts.get((schema, table), 0) + int(str(held))
    return counts


def never_null(lake: Lake) -> dict[tuple[str, str], str]:
    """Name a column of each table (schema, table) that is never NULL: counting it reads rows, not the catalog."""
    rows = lake.connection.execute(
        "SELECT schema_name, table_name, arg_min(column_name, column_index) FROM duckdb_columns() "
        "WHERE database_name = 'lake' AND NOT is_nullable AND (schema_name, table_name) IN "
        "(SELECT (schema_name, table_name) FROM duckdb_tables() WHERE database_name = 'lake') GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return {(schema, table): column for schema, table, column in rows}
