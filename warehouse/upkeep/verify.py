"""Proof that a lake is whole: every file there and readable, rows as the catalog counts them, embeddings right."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import duckdb
import polars as pl

from warehouse import status
from warehouse.errors import LakeUnavailableError
from warehouse.lake import Lake
from warehouse.sqltext import identifier, relation
from warehouse.upkeep import files
from warehouse.upkeep.files import CatalogFile, StoredFile
from warehouse.upkeep.recompute import Recomputed, recompute

#: Called with what is at hand, megabytes done and megabytes in all.
Progress = Callable[[str, int, int], None]

#: Files read by one query: enough to keep all threads busy, few enough that one bad file is soon found among them.
_BATCH_FILES, _BATCH_BYTES = 64, 256_000_000
_MEGABYTE = 1_000_000
#: What reading a table raises where one of its files is gone or damaged.
_UNREADABLE = (duckdb.Error, LakeUnavailableError)

# Every value of every column is decoded by the hash, so that a page that cannot be read is found.
_READ = (
    "SELECT filename, count(*), bit_xor(hash(part)) "
    "FROM read_parquet(?, filename = true, union_by_name = true) AS part GROUP BY filename"
)
# NaN and infinities survive a sum; NULL elements, which an imported profile may have, are skipped by it.
_EMBEDDINGS = (
    "SELECT filename, count(*), bit_xor(hash(part)), count(*) FILTER (embedding IS NULL), "
    "count(*) FILTER (NOT isfinite(list_sum(embedding::DOUBLE[]))), min(len(embedding)), max(len(embedding)) "
    "FROM read_parquet(?, filename = true, union_by_name = true) AS part GROUP BY filename"
)


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be.

    Attributes:
        kind: missing, size, unreadable, rows, embedding, counts, recompute, or the name of a check of `sql/checks`.
        where: the file, or the table.
        detail: what was expected and what was found.
    """

    kind: str
    where: str
    detail: str


@dataclass
class Verified:
    """What `verify` looked at and found.

    Attributes:
        files: that the catalog names, and that were looked at.
        megabytes: read (with `quick` only the footers are, and their files' sizes count).
        rows: in data files, also those that only older snapshots read.
        seconds: taken.
        faults: what is wrong; empty where the lake is whole.
        orphans: files that are there and that nothing in the catalog names (path, bytes): left by a writer that was
            killed, or being written at this moment; `compact` deletes them when they are old enough.
        recomputed: what was computed anew from cells and fields; None where it was not asked for.
    """

    files: int = 0
    megabytes: float = 0.0
    rows: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    orphans: list[tuple[str, int]] = field(default_factory=list)
    recomputed: Recomputed | None = None


def verify(
    lake: Lake, *, quick: bool = False, recomputing: bool = False, progress: Progress | None = None
) -> Verified:
    """Look at every file that the catalog names, those of older snapshots too; nothing is written.

    Args:
        lake: open, best read-only.
        quick: sizes and footers only: whether all files are there and whole, not what is in them.
        recomputing: also compute fields and wells from the rows below them, and compare (`warehouse.upkeep.recompute`).
        progress: told what is at hand.

    Returns:
        What was found. Memory does not grow with the lake: files are read in parts and only counted.
    """
    found, began = Verified(), time.monotonic()
    named = files.in_catalog(lake)
    there = files.stored(lake)
    # A plate that comes in now is on disk before it is in the catalog, so the catalog is asked again for these.
    known = {file.path for file in named} | files.scheduled(lake)
    late = {file.path for file in files.in_catalog(lake)} if there.keys() - known else set()
    found.orphans = sorted((path, there[path].size) for path in there.keys() - known - late)
    dims = _dims(lake)
    whole = [file for file in named if _is_whole(file, there, found)]
    total = sum(file.size for file in whole)
    done = 0
    for batch in _batches(whole):
        if progress:
            progress(f"{batch[0].schema}.{batch[0].table}", done // _MEGABYTE, total // _MEGABYTE)
        _look(lake, batch, quick, dims, found)
        done += sum(file.size for file in batch)
    if not quick:
        _tables(lake, dims, found)
    if progress:
        progress("checks", total // _MEGABYTE, total // _MEGABYTE)
    _checks(lake, found)
    if recomputing:
        found.recomputed = recompute(lake, progress=progress and _as_megabytes(progress, total // _MEGABYTE))
        found.faults += [Fault("recompute", one.table, one.detail) for one in found.recomputed.differences]
    found.files, found.megabytes = len(named), done / _MEGABYTE
    found.rows = sum(file.rows for file in whole if file.kind == "data")
    found.seconds = time.monotonic() - began
    return found


def _as_megabytes(progress: Progress, total: int) -> Progress:
    """Tell of plates on a bar that is full of megabytes already."""
    return lambda name, done, plates: progress(f"recompute {name} ({done + 1} of {plates})", total, total)


def as_frame(faults: Sequence[Fault]) -> pl.DataFrame:
    """Lay faults out as a table: kind, where, detail."""
    rows = [(fault.kind, fault.where, fault.detail) for fault in faults]
    return pl.DataFrame(rows, schema=dict.fromkeys(("kind", "where", "detail"), pl.String), orient="row")


def _is_whole(file: CatalogFile, there: dict[str, StoredFile], found: Verified) -> bool:
    """Note a file that is not there, or not of its size; what can be opened of it is not worth a second line."""
    if file.path not in there:
        found.faults.append(Fault("missing", file.path, f"{_what(file)}: the file is not there"))
        return False
    size = there[file.path].size
    if size != file.size:
        detail = f"{_what(file)}: {file.size} bytes in the catalog, {size} there"
        found.faults.append(Fault("size", file.path, detail))
        return False
    return True


def _what(file: CatalogFile) -> str:
    reader = "" if file.is_current else ", read by older snapshots only"
    return f"{file.schema}.{file.table}, {file.kind} file of {file.rows} rows{reader}"


def _batches(whole: list[CatalogFile]) -> Iterator[list[CatalogFile]]:
    """Put files of one table and kind together, up to a number and a size."""
    batch: list[CatalogFile] = []
    size = 0
    for file in sorted(whole, key=lambda one: (one.schema, one.table, one.kind)):
        other = batch and (file.schema, file.table, file.kind) != (
            batch[0].schema,
            batch[0].table,
            batch[0].kind,
        )
        if other or len(batch) == _BATCH_FILES or (batch and size + file.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch


def _look(
    lake: Lake,
    batch: list[CatalogFile],
    quick: bool,
    dims: dict[tuple[str, str], int],
    found: Verified,
) -> None:
    """Read the files of a batch at once, and one by one where one of them cannot be read."""
    try:
        rows = _read(lake, batch, quick)
    except duckdb.Error as error:
        if len(batch) > 1:
            for file in batch:
                _look(lake, [file], quick, dims, found)
            return
        detail = f"{_what(batch[0])}: {str(error).splitlines()[0]}"
        found.faults.append(Fault("unreadable", batch[0].path, detail))
        return
    for file in batch:
        _judge(file, rows.get(file.path, (0,)), dims.get((file.schema, file.table)), found)


def _read(lake: Lake, batch: list[CatalogFile], quick: bool) -> dict[str, tuple[int, ...]]:
    """Return by path: rows; of embeddings also how many are NULL, not finite, and the shortest and longest."""
    paths = [files.exactly(file.path) for file in batch]
    if quick:
        query = "SELECT file_name, num_rows FROM parquet_file_metadata(?)"
        return {path: (rows,) for path, rows in lake.connection.execute(query, [paths]).fetchall()}
    columns = lake.connection.execute(
        "SELECT name FROM parquet_schema(?) WHERE name = 'embedding' LIMIT 1", [paths[:1]]
    ).fetchone()
    if columns is None:
        answer = lake.connection.execute(_READ, [paths]).fetchall()
    else:
        answer = lake.connection.execute(_EMBEDDINGS, [paths]).fetchall()
    found = {path: (rows, *rest) for path, rows, _, *rest in answer}
    # A file without rows has no group.
    return {file.path: found.get(file.path, (0,)) for file in batch}


def _judge(file: CatalogFile, seen: tuple[int, ...], dim: int | None, found: Verified) -> None:
    def fault(kind: str, text: str) -> None:
        found.faults.append(Fault(kind, file.path, f"{_what(file)}: {text}"))

    rows = seen[0]
    # One delete file may serve several snapshots; the catalog then counts what the newest has lost.
    if rows != file.rows and not (file.kind == "delete" and file.is_partial and rows >= file.rows):
        fault("rows", f"{file.rows} rows in the catalog, {rows} in the file")
    if len(seen) < 5 or file.kind == "delete":
        return
    null, not_finite, shortest, longest = seen[1:]
    if null:
        fault("embedding", f"{null} rows without an embedding")
    if not_finite:
        fault("embedding", f"{not_finite} embeddings hold NaN or an infinity")
    # A recipe that is fitted anew may leave other features, so what older snapshots read may differ.
    if dim is not None and file.is_current and not file.is_partial and not {shortest, longest} <= {dim, None}:
        fault("embedding", f"embeddings of {shortest} to {longest} elements, the feature set has {dim}")


def _dims(lake: Lake) -> dict[tuple[str, str], int]:
    """Read how long the embeddings of each table (schema, table) are."""
    sets = lake.connection.execute("SELECT feature_set, dim FROM main.feature_sets").fetchall()
    dims = {(name, table): dim for name, dim in sets for table in ("cells", "fields", "wells")}
    recipes = lake.connection.execute("SELECT feature_set, recipe, dim FROM main.recipes").fetchall()
    return dims | {(name, f"wells__{recipe}"): dim for name, recipe, dim in recipes}


def _tables(lake: Lake, dims: dict[tuple[str, str], int], found: Verified) -> None:
    """Read every table as a query does: rows that are counted must come, those held in the catalog too."""
    # What has a damaged file is told already.
    damaged = {fault.detail.split(",")[0] for fault in found.faults}
    for (schema, table), column in files.never_null(lake).items():
        if f"{schema}.{table}" in damaged:
            continue
        name = relation(schema, table)
        try:
            counted = lake.value(f"SELECT count(*) FROM {name}")
            read = lake.value(f"SELECT count({identifier(column)}) FROM {name}")
            wrong = _wrong_embeddings(lake, name, dims.get((schema, table)))
        except _UNREADABLE as error:
            found.faults.append(Fault("unreadable", f"{schema}.{table}", str(error).splitlines()[0]))
            continue
        if counted != read:
            detail = f"{counted} rows by the catalog, {read} come when they are read"
            found.faults.append(Fault("rows", f"{schema}.{table}", detail))
        if wrong:
            detail = f"{wrong} embeddings that are NULL, not finite, or not of {dims[schema, table]} elements"
            found.faults.append(Fault("embedding", f"{schema}.{table}", detail))


def _wrong_embeddings(lake: Lake, name: str, dim: int | None) -> int:
    """Count wrong embeddings among the rows that the catalog holds and those of merged files."""
    if dim is None or name.endswith('."cells"'):
        return 0
    query = (
        f"SELECT count(*) FROM {name} WHERE embedding IS NULL OR len(embedding) <> ? "
        "OR NOT isfinite(list_sum(embedding::DOUBLE[]))"
    )
    return int(str(lake.value(query, [dim])))


def _checks(lake: Lake, found: Verified) -> None:
    """Run the checks of `sql/checks`; one that cannot be run has its file among the faults already."""
    try:
        faults = status.faults(lake)
    except _UNREADABLE as error:
        found.faults.append(Fault("unreadable", "sql/checks", str(error).splitlines()[0]))
        return
    for name, rows in faults.items():
        for row in rows.head(20).iter_rows(named=True):
            found.faults.append(Fault(name, "", ", ".join(f"{key} {value}" for key, value in row.items())))
        if rows.height > 20:
            found.faults.append(Fault(name, "", f"{rows.height - 20} more"))
