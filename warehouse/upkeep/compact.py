"""Keeping a lake small and quick: old snapshots expired, small files merged, files that nothing reads deleted.

Files are merged by an ordinary insert and delete, not by DuckLake's own functions (DuckLake 1.0, DuckDB 1.5.5):
- `ducklake_merge_adjacent_files` and `ducklake_flush_inlined_data` take rows out of the catalog that an open
  transaction still reads; with a SQLite catalog such a reader misses them, without a word (360 wells became 60).
- after `ducklake_rewrite_data_files`, later flushes and rewrites make older snapshots return rows that were not there
  (duckdb/ducklake issue 1406; 2 of 3 random sequences of writes).
An insert and a delete leave every older snapshot its files. The price is their space until it expires.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import duckdb
import polars as pl

from warehouse.errors import LakeError
from warehouse.lake import Lake, now
from warehouse.sqltext import relation
from warehouse.upkeep import files
from warehouse.upkeep.files import CATALOG, CatalogFile

#: Called with the step at hand, steps done and steps in all.
Progress = Callable[[str, int, int], None]

#: Files below this are merged, in bytes: a larger one gains little.
SMALL_FILE = 64_000_000
#: How many small files a table must have before they are merged: fewer cost no query anything worth the space.
MANY_FILES = 10
#: Bytes that one transaction merges: some seconds, so that writers at work seldom undo it.
MERGED_BYTES = 128_000_000
#: Shared tables whose rows tell by which snapshot they came (`history` reads it), so they are not written anew.
_DATED = {("main", name) for name in ("runs", "plate_history", "recipes", "evaluations")}
#: Rows of a row group, the least that is read of a file: some twenty plates of wells, so that a query for one plate
#: reads little of a merged file (200 plates × 384: one plate in 0.07 s, 0.11 s with DuckDB's 122,880).
ROW_GROUP = 8_192
#: Share of a file's rows that must be gone before the file is written anew.
MOSTLY_GONE = 0.5


@dataclass(frozen=True)
class CompactSettings:
    """How long things are kept.

    Attributes:
        keep: snapshots younger than this are kept.
        grace: how long ago a file must have fallen out of use, or have been written by a transaction that never came
            to its end, before it is deleted; snapshots younger than this are kept too. Readers and writers
            that began earlier than this may lose their files, so it is longer than any night.
    """

    keep: timedelta = timedelta(days=30)
    grace: timedelta = timedelta(days=1)


@dataclass(frozen=True)
class Compacted:
    """What `compact` did, or with `--dry-run` would do.

    Attributes:
        snapshots_before: in the lake.
        snapshots_after: in the lake.
        files_before: that a query of the newest snapshot may open.
        files_after: the same, afterwards.
        megabytes_before: of all files there.
        megabytes_after: the same, afterwards.
        expired: snapshots that can no longer be asked.
        kept_for_evaluations: snapshots older than `keep` that stay because an evaluation was computed on them.
        merged_files: that became fewer.
        rewritten_files: of which most rows were gone.
        deleted_files: that nothing read any more, or that a killed writer left.
        waiting_files: that nothing reads any more and that are deleted when `grace` is over.
        busy: tables that other writers did not leave alone; the next `compact` does them.
    """

    snapshots_before: int = 0
    snapshots_after: int = 0
    files_before: int = 0
    files_after: int = 0
    megabytes_before: float = 0.0
    megabytes_after: float = 0.0
    expired: int = 0
    kept_for_evaluations: int = 0
    merged_files: int = 0
    rewritten_files: int = 0
    deleted_files: int = 0
    waiting_files: int = 0
    busy: tuple[str, ...] = ()


def compact(
    lake: Lake,
    settings: CompactSettings = CompactSettings(),
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Compacted:
    """Expire, merge and delete, each step in transactions of its own: killed anywhere, nothing is lost.

    Safe beside readers and writers: what a snapshot that is kept reads is never deleted, a step that meets a writer
    is done again or left for the next time, and files are deleted only `grace` after their last use.

    Args:
        lake: open for writing (a dry run needs no writing).
        settings: how long things are kept.
        dry_run: count what would be done, and change nothing.
        progress: told what is at hand.

    Raises:
        LakeError: the lake is open read-only, or the catalog lists a file for deletion that a snapshot reads.
    """
    report = _before(lake)
    steps: list[tuple[str, Callable[[Compacted], Compacted]]] = [
        ("expire", lambda so_far: _expire(lake, settings, dry_run, so_far)),
        ("merge", lambda so_far: _merge(lake, dry_run, so_far)),
        ("delete", lambda so_far: _delete(lake, settings, dry_run, so_far)),
    ]
    if not dry_run:
        lake.transaction(
            lambda _: lake.change_nothing(), gated=False
        )  # refuses a lake that is open read-only
    for number, (name, step) in enumerate(steps):
        if progress:
            progress(name, number, len(steps))
        report = step(report)
    if progress:
        progress("done", len(steps), len(steps))
    after = _before(lake)
    return replace(
        report,
        snapshots_after=after.snapshots_before,
        files_after=after.files_before,
        megabytes_after=after.megabytes_before,
        waiting_files=len(files.scheduled(lake)),
    )


def as_frame(report: Compacted) -> pl.DataFrame:
    """Lay a report out as a table: what, before, after, and what was done about it."""
    done = {
        "snapshots": f"{report.expired} expired, {report.kept_for_evaluations} older kept for evaluations",
        "files read": f"{report.merged_files} merged, {report.rewritten_files} rewritten",
        "megabytes there": f"{report.deleted_files} files deleted, {report.waiting_files} wait",
    }
    rows = [
        ("snapshots", float(report.snapshots_before), float(report.snapshots_after), done["snapshots"]),
        ("files read", float(report.files_before), float(report.files_after), done["files read"]),
        ("megabytes there", report.megabytes_before, report.megabytes_after, done["megabytes there"]),
    ]
    return pl.DataFrame(rows, schema=("what", "before", "after", "done"), orient="row")


def _before(lake: Lake) -> Compacted:
    """Count what there is."""
    snapshots = int(str(lake.value(f"SELECT count(*) FROM {CATALOG}.ducklake_snapshot")))
    current = [file for file in files.in_catalog(lake) if file.is_current]
    size = sum(file.size for file in files.stored(lake).values())
    return Compacted(snapshots_before=snapshots, files_before=len(current), megabytes_before=size / 1e6)


def kept(lake: Lake, keep: timedelta) -> tuple[set[int], set[int]]:
    """Sort the snapshots of a lake: those that stay for their age, and older ones on which an evaluation was computed.

    For their age stay those younger than `keep`, and the one before them: it is what the lake was when the time
    began, so every moment within it can be asked for.
    """
    rows = lake.connection.execute(
        "SELECT snapshot_id, make_timestamp(epoch_us(snapshot_time)) FROM ducklake_snapshots('lake') "
        "ORDER BY snapshot_id"
    ).fetchall()
    begin = now() - keep
    young = {number for number, time in rows if time >= begin}
    young |= {max((number for number, _ in rows if number not in young), default=rows[-1][0]), rows[-1][0]}
    evaluated = lake.connection.execute("SELECT DISTINCT snapshot FROM main.evaluations").fetchall()
    there = {number for number, _ in rows}
    return young, {number for (number,) in evaluated if number in there} - young


def _expire(lake: Lake, settings: CompactSettings, dry_run: bool, so_far: Compacted) -> Compacted:
    def work(connection: duckdb.DuckDBPyConnection) -> Compacted:
        young, evaluated = kept(lake, max(settings.keep, settings.grace))
        rows = connection.execute("SELECT snapshot_id FROM ducklake_snapshots('lake')").fetchall()
        old = sorted({number for (number,) in rows} - young - evaluated)
        if old and not dry_run:
            connection.execute(
                "SELECT count(*) FROM ducklake_expire_snapshots('lake', versions => ?::UBIGINT[])", [old]
            )
        return replace(so_far, expired=len(old), kept_for_evaluations=len(evaluated))

    return work(lake.connection) if dry_run else lake.transaction(work, gated=False)


def _merge(lake: Lake, dry_run: bool, so_far: Compacted) -> Compacted:
    """Write the rows of small files, and of files of which most are gone, into new ones; old snapshots keep theirs."""
    merged, rewritten, busy = 0, 0, []
    gone = _mostly_gone(lake)
    if not dry_run:
        _set_row_groups(lake)
    for (schema, table), small in _with_small_files(lake).items():
        worn = [file for file in gone if (file.schema, file.table) == (schema, table)]
        for group in _groups(sorted({*small, *worn}, key=lambda file: file.path)):
            try:
                if not dry_run and not _put_together(lake, relation(schema, table), group):
                    continue
            except LakeError as error:
                if "held by other writers" not in str(error):
                    raise
                busy.append(f"{schema}.{table}")
                break
            rewritten += len(set(group) & set(worn))
            merged += len(set(group) - set(worn))
    return replace(so_far, merged_files=merged, rewritten_files=rewritten, busy=tuple(busy))


def _set_row_groups(lake: Lake) -> None:
    """Note in the lake how many rows a row group has, where nobody has chosen another number."""
    query = "SELECT count(*) FROM ducklake_options('lake') WHERE option_name = 'parquet_row_group_size'"
    if not lake.value(query):
        call = "CALL ducklake_set_option('lake', 'parquet_row_group_size', ?)"
        lake.transaction(lambda connection: connection.execute(call, [str(ROW_GROUP)]), gated=False)


def _put_together(lake: Lake, name: str, group: list[CatalogFile]) -> bool:
    """Write the rows of these files anew, in one transaction; False where a writer has replaced one meanwhile."""
    paths = [file.path for file in group]

    def work(connection: duckdb.DuckDBPyConnection) -> bool:
        current = {file.path for file in files.in_catalog(lake) if file.is_current}
        if not set(paths) <= current:
            lake.change_nothing()
            return False
        # The new rows have another file's name, so the delete does not see them.
        inserted = connection.execute(
            f"INSERT INTO {name} SELECT * FROM {name} WHERE list_contains(?, filename)", [paths]
        ).fetchall()
        deleted = connection.execute(
            f"DELETE FROM {name} WHERE list_contains(?, filename)", [paths]
        ).fetchall()
        if inserted != deleted:
            message = f"compact: {name}: {inserted[0][0]} rows were written for {deleted[0][0]}: nothing was changed"
            raise LakeError(message)
        return True

    return lake.transaction(work)


def _with_small_files(lake: Lake) -> dict[tuple[str, str], list[CatalogFile]]:
    """List the small files of each table (schema, table): none where there are few of them."""
    found: dict[tuple[str, str], list[CatalogFile]] = {}
    for file in files.in_catalog(lake):
        if file.is_current and file.kind == "data" and (file.schema, file.table) not in _DATED:
            small = found.setdefault((file.schema, file.table), [])
            if file.size < SMALL_FILE:
                small.append(file)
    return {table: small if len(small) >= MANY_FILES else [] for table, small in sorted(found.items())}


def _groups(chosen: list[CatalogFile]) -> Iterator[list[CatalogFile]]:
    """Cut a table's files into groups of up to `MERGED_BYTES`, so that a file at the end is not left by itself."""
    total = sum(file.size for file in chosen)
    parts = max(1, -(-total // MERGED_BYTES))
    group: list[CatalogFile] = []
    for file in chosen:
        group.append(file)
        if sum(one.size for one in group) >= total / parts:
            yield group
            group = []
    if group:
        yield group


def _mostly_gone(lake: Lake) -> list[CatalogFile]:
    """Find the data files of which most rows are gone."""
    rows = lake.connection.execute(
        f"SELECT data.path, sum(lost.delete_count)::BIGINT FROM {CATALOG}.ducklake_delete_file AS lost "
        f"JOIN {CATALOG}.ducklake_data_file AS data ON lost.data_file_id = data.data_file_id "
        "WHERE lost.end_snapshot IS NULL AND data.end_snapshot IS NULL GROUP BY data.path"
    ).fetchall()
    lost = dict(rows)
    return [
        file
        for file in files.in_catalog(lake)
        if file.kind == "data" and lost.get(file.path.rsplit("/", 1)[-1], 0) > MOSTLY_GONE * file.rows
    ]


def _delete(lake: Lake, settings: CompactSettings, dry_run: bool, so_far: Compacted) -> Compacted:
    """Delete files that fell out of use, or were left by a killed writer, longer than `grace` ago."""
    before = datetime.now(UTC) - settings.grace
    there = files.stored(lake)
    # The catalog is read after the folder, so that what a writer commits in between is known.
    known = {file.path for file in files.in_catalog(lake)} | files.scheduled(lake)
    old = before.replace(tzinfo=None)
    deleted = 0
    if files.scheduled(lake):
        deleted += _delete_listed(lake, "ducklake_cleanup_old_files", before, dry_run)
    # DuckLake's search opens every file, and fails where a writer takes one back: it is only made where it will find.
    if any(file.written < old for path, file in there.items() if path not in known):
        deleted += _delete_listed(lake, "ducklake_delete_orphaned_files", before, dry_run)
    return replace(so_far, deleted_files=deleted)


def _delete_listed(lake: Lake, function: str, before: datetime, dry_run: bool) -> int:
    """Delete what one of DuckLake's functions lists, if nothing that a snapshot reads is among it."""
    call = f"SELECT path FROM {function}('lake', older_than => ?, dry_run => ?)"
    try:
        listed = {_plain(path) for (path,) in lake.connection.execute(call, [before, True]).fetchall()}
        read = {_plain(file.path) for file in files.in_catalog(lake)}
        if wrong := sorted(listed & read):
            message = (
                f"compact: {function} lists {len(wrong)} files that snapshots read (first: {wrong[0]}): "
                "nothing was deleted; the lake's folder may be reached by another name than when it was made"
            )
            raise LakeError(message)
        if not dry_run and listed:
            lake.connection.execute(call, [before, False]).fetchall()
    except duckdb.IOException as error:
        if "No such file" not in str(error):
            raise
        return 0  # a writer took a file back while they were listed: the next compact deletes them
    return len(listed)


def _plain(path: str) -> str:
    """Bring a path to one form: a doubled slash names the same file."""
    head, colon, tail = path.partition("://")
    rest = tail if colon else head
    while "//" in rest:
        rest = rest.replace("//", "/")
    return head + colon + rest if colon else rest
