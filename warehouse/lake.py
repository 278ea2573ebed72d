"""The lake: DuckLake tables (Parquet) behind a SQL catalog, opened, written in whole transactions, and read."""

import os
import random
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import duckdb
import polars as pl

from warehouse import __version__, address, catalog, resources, trouble, turns
from warehouse.address import Address
from warehouse.catalog import CATALOG_FILE, DATA_FOLDER
from warehouse.errors import LakeError
from warehouse.sqltext import statements

T = TypeVar("T")

INDEX_FOLDER = "indexes"

#: How long a write waits for others before it gives up, in seconds; every try is the whole transaction again.
RETRY_SECONDS = 60.0

#: What a lost race looks like, from DuckLake (another snapshot came first), SQLite (the file is taken) and Postgres.
_CONFLICTS = (
    "conflict",
    "database is locked",
    "database is busy",
    "maximum retry count",
    "could not serialize access",
    "deadlock detected",
    "duplicate key value violates unique constraint",
)


def now() -> datetime:
    """Return this moment in UTC, without a zone: as the lake's TIMESTAMP columns hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


class Lake:
    """An open lake. Use `Lake.create` or `Lake.open`, best in a `with` block.

    Attributes:
        address: as it can be opened again; for messages, as it holds no password.
        is_team: True where the catalog is in Postgres.
        connection: the DuckDB connection; the lake is attached as `lake` and is the default catalog.
        read_only: True where no write is possible.
        as_of: the snapshot or the time that all reads see; None for the newest.
    """

    def __init__(
        self,
        where: Address,
        connection: duckdb.DuckDBPyConnection,
        read_only: bool,
        as_of: int | datetime | None = None,
    ) -> None:
        self.address = where.text
        self.is_team = where.is_team
        self.connection = connection
        self.read_only = read_only
        self.as_of = as_of
        self._path = where.path
        self._remembered: dict[str, Any] = {}
        self._writes_seen: int | None = None
        self._is_idle = False
        self._is_committing = False
        self._effect = ""

    @classmethod
    def create(cls, where: str | Path, *, data: str | Path | None = None) -> Self:
        """Make a lake, or finish one whose making was cut short; an existing lake is opened as it is.

        Args:
            where: a folder; or `postgres:host=… dbname=…`, `postgresql://user@host/database`: a team lake, whose
                login comes from PGPASSWORD or ~/.pgpass.
            data: of a team lake, `s3://bucket/prefix` (keys from AWS_…) or a shared folder. Its catalog keeps this.

        Raises:
            LakeError: the folder or the database holds something else, or cannot be written.
        """
        parsed = address.parse(where)
        if parsed.path is None:
            place = None if data is None else address.data_place(data)
            connection = catalog.attach(parsed, read_only=False, data=place)
        else:
            if data is not None:
                message = f"{parsed.text} is a folder and keeps its data in itself: --data is for postgres:… addresses"
                raise LakeError(message)
            _make_folder(parsed.path)
            connection = catalog.attach(parsed, read_only=False)
        lake = cls(parsed, connection, read_only=False)
        version = lake._checked_version()
        if version == 0:
            lake._refuse_other_tables()
        if version < _newest_schema():
            lake._migrate()
        return lake

    @classmethod
    def open(cls, where: str | Path, *, read_only: bool = False, as_of: int | datetime | None = None) -> Self:
        """Open an existing lake.

        Args:
            where: the lake's folder, or the address of a team lake.
            read_only: True for any number of readers beside a writer; nothing can then be changed.
            as_of: a snapshot, or a time (UTC where it names no zone): the whole lake as it was then, read-only.

        Raises:
            LakeError: no lake is there, it was half made, a newer version of Wellhouse wrote it, or it has no such
                snapshot (any more).
            LakeUnavailableError: Postgres or S3 does not answer.
        """
        parsed = address.parse(where)
        if parsed.path is not None and not (parsed.path / CATALOG_FILE).is_file():
            found = "there is no such folder" if not parsed.path.exists() else f"it holds no {CATALOG_FILE}"
            make = f"`wellhouse init {parsed.path}`"
            message = f"{parsed.path} is not a lake ({found}): make one with {make}, or give --lake"
            raise LakeError(message)
        read_only = read_only or as_of is not None
        lake = cls(parsed, catalog.attach(parsed, read_only=read_only, as_of=as_of), read_only, as_of)
        version, newest = lake._checked_version(), _newest_schema()
        if as_of is not None and version == 0:
            lake.close()
            message = f"{parsed.text}: at snapshot {as_of} the lake was not made yet: name a later one"
            raise LakeError(message)
        # A snapshot of the past keeps the schema of its time.
        if version < newest and as_of is None:
            if read_only or version == 0:
                lake.close()
                message = (
                    f"{parsed.text} has schema {version}, this wellhouse {__version__} reads {newest}: "
                    f"bring it up to date with `wellhouse init {shlex.quote(parsed.text)}`"
                )
                raise LakeError(message)
            lake._migrate()
        return lake

    @property
    def path(self) -> Path:
        """The folder of a lake that is one.

        Raises:
            LakeError: the lake is a team lake.
        """
        if self._path is None:
            message = f"{self.address} is a team lake, which has no folder of its own"
            raise LakeError(message)
        return self._path

    @cached_property
    def folder(self) -> Path:
        """The folder on this machine for what is made of the lake: its own, or for a team lake one in the cache.

        The cache is `XDG_CACHE_HOME`, else `~/.cache`; a lake has one folder there, whatever address it is opened by.
        """
        if self._path is not None:
            return self._path
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        with trouble.told(self.address):
            return Path(cache) / "wellhouse" / "lakes" / catalog.lake_id(self.connection)

    def close(self) -> None:
        """Close the connection; a transaction that was open is rolled back."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def frame(self, query: str, parameters: Sequence[object] = ()) -> pl.DataFrame:
        """Run a query and return its rows as a Polars frame."""
        with trouble.told(self.address, self._effect):
            return self.connection.execute(query, list(parameters)).pl()

    def value(self, query: str, parameters: Sequence[object] = ()) -> object:
        """Run a query of one row and one column and return what it holds (None for no row)."""
        with trouble.told(self.address, self._effect):
            row = self.connection.execute(query, list(parameters)).fetchone()
        return None if row is None else row[0]

    def snapshot(self) -> int:
        """Return the number of the snapshot that is read, the newest unless `as_of` is given; a commit makes one."""
        return int(str(self.value("SELECT id FROM ducklake_current_snapshot('lake')")))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one snapshot: whatever others commit meanwhile, all queries inside see the same lake."""
        self.connection.execute("BEGIN TRANSACTION")
        try:
            with trouble.told(self.address):
                yield
        finally:
            # Where the catalog has gone, so has the transaction; a second error would hide the first.
            with suppress(duckdb.Error):
                self.connection.execute("ROLLBACK")

    def transaction(self, work: Callable[[duckdb.DuckDBPyConnection], T], *, gated: bool = True) -> T:
        """Run `work` in one transaction: all of it is committed, or nothing.

        A transaction that loses a race against another writer is rolled back and run again as a whole, after a
        growing, jittered pause, so `work` may run more than once and must read what it decides on inside.

        Args:
            work: does the reads and writes on the connection it is given.
            gated: touch `write_gate`, so that of two transactions at once one conflicts and retries.

        Returns:
            What `work` returned in the try that was committed.

        Raises:
            LakeError: the lake is open read-only, or others held it for longer than `RETRY_SECONDS`.
            LakeUnavailableError: Postgres, S3 or the disk fails; the message tells what is sure about this work.
        """
        if self.read_only:
            message = f"{self.address} is open read-only: open it for writing to change it"
            raise LakeError(message)
        lock = None if self._path is None else self._path / f"{CATALOG_FILE}-writer"
        with turns.turn(lock, RETRY_SECONDS), catalog.one_thread(self.connection, self.is_team):
            return self._retried(work, gated)

    def _retried(self, work: Callable[[duckdb.DuckDBPyConnection], T], gated: bool) -> T:
        deadline, pause = time.monotonic() + RETRY_SECONDS, 0.01
        while True:
            try:
                return self._once(work, gated)
            except (duckdb.Error, OSError) as error:
                # The answer to a COMMIT may be lost on its way from a server; a file tells at once.
                is_in_doubt = self.is_team and self._is_committing
                effect = trouble.IN_DOUBT if is_in_doubt else trouble.NOTHING_WRITTEN
                if (failed := trouble.unavailable(error, self.address, effect)) is not None:
                    raise failed from error
                if isinstance(error, OSError) or not any(sign in str(error) for sign in _CONFLICTS):
                    raise
                if time.monotonic() > deadline:
                    message = (
                        f"{self.address} was held by other writers for {RETRY_SECONDS:.0f} s "
                        f"({str(error).splitlines()[0]}); nothing was written: try again"
                    )
                    raise LakeError(message) from error
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, 1.0)

    def remembered(self, what: str, load: Callable[[], T]) -> T:
        """Return what `load` reads from the lake, reading it anew only after somebody else has written.

        For use inside `transaction`, whose `work` keeps the remembered value (a dict, a set) in step with what
        it writes: so the cost of a commit does not grow with the lake. `write_gate` tells of other writers.
        """
        if what not in self._remembered:
            self._remembered[what] = load()
        value: T = self._remembered[what]
        return value

    def forget(self) -> None:
        """Read anew, from the next time on, what was remembered: for work that changes more than it keeps in step."""
        self._remembered.clear()

    def _once(self, work: Callable[[duckdb.DuckDBPyConnection], T], gated: bool) -> T:
        self._is_committing = False
        self._effect = trouble.NOTHING_WRITTEN
        try:
            self.connection.execute("BEGIN TRANSACTION")
            writes = self._pass_gate() if gated else None
            self._is_idle = False
            result = work(self.connection)
            self._is_committing = not self._is_idle
            self.connection.execute("ROLLBACK" if self._is_idle else "COMMIT")
        except BaseException:
            self._remembered.clear()
            # A failed COMMIT has already ended the transaction; a second error here would hide the first.
            with suppress(duckdb.Error):
                self.connection.execute("ROLLBACK")
            raise
        finally:
            self._effect = ""
        # The gate of a transaction that changed nothing was rolled back with it.
        self._writes_seen = writes - 1 if writes is not None and self._is_idle else writes
        return result

    def change_nothing(self) -> None:
        """Tell, inside `transaction`, that there is nothing to commit: no snapshot is made."""
        self._is_idle = True

    def _pass_gate(self) -> int:
        """Count this write, and forget what was remembered if others wrote since our last."""
        writes = int(str(self.value("SELECT writes FROM main.write_gate")))
        self.connection.execute("UPDATE main.write_gate SET writes = ?", [writes + 1])
        if writes != self._writes_seen:
            self._remembered.clear()
        return writes + 1

    def _schema_version(self) -> tuple[int, str]:
        """Read the newest schema that was applied and the version of the code that did; 0 where there is none yet."""
        try:
            row = self.connection.execute(
                "SELECT version, code_version FROM main.schema_version ORDER BY version DESC LIMIT 1"
            ).fetchone()
        except duckdb.CatalogException:
            return 0, ""  # not made yet, or half made: `open` and `create` tell these apart
        return (0, "") if row is None else (int(row[0]), str(row[1]))

    def _checked_version(self) -> int:
        """Read the lake's schema, and stop before anything is read that a newer version laid out in its own way."""
        newest = _newest_schema()
        try:
            with trouble.told(self.address):
                version, code = self._schema_version()
            if version > newest:
                message = (
                    f"{self.address} was written by wellhouse {code} (schema {version}); this is {__version__} "
                    f"(schema {newest}): upgrade with `pip install --upgrade wellhouse`"
                )
                raise LakeError(message)
        except BaseException:
            self.close()
            raise
        return version

    def _refuse_other_tables(self) -> None:
        """Stop before a DuckLake that somebody else made is taken for a lake that is half made."""
        query = "SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake' ORDER BY 1"
        names = [name for (name,) in self.connection.execute(query).fetchall()]
        # Another process may have made the lake a moment ago.
        if names and "schema_version" not in names:
            self.close()
            message = (
                f"{self.address} is a DuckLake that Wellhouse did not make (it holds {', '.join(names[:3])}"
                f"{', …' * (len(names) > 3)}): name another place for the lake"
            )
            raise LakeError(message)

    def _migrate(self) -> None:
        """Apply the schema files that the lake lacks, and renew all views, in one transaction."""
        from warehouse import feature_sets  # which imports this module

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            present, _ = self._schema_version()
            if present == _newest_schema():
                self.change_nothing()  # another process was faster
                return
            for path in resources.files("schema"):
                version, name = resources.number_and_name(path)
                if version <= present:
                    continue
                for statement in statements(path.read_text(encoding="utf-8")):
                    connection.execute(statement)
                connection.execute(
                    "INSERT INTO main.schema_version VALUES (?, ?, ?, ?)", [version, name, __version__, now()]
                )
            # After all tables: a view may read one that only the newest file makes.
            for view in resources.files("sql", "main"):
                connection.execute(view.read_text(encoding="utf-8"))
            feature_sets.renew_views(self)

        self.transaction(work, gated=False)


def _newest_schema() -> int:
    return resources.number_and_name(resources.files("schema")[-1])[0]


def _make_folder(path: Path) -> None:
    """Make the folder of a lake, or check that the one there can become or is one."""
    if path.exists() and not path.is_dir():
        message = f"{path} is a file: a lake is a folder; name another path"
        raise LakeError(message)
    if path.is_dir() and not (path / CATALOG_FILE).is_file() and not _is_begun(path):
        message = f"{path} is not empty and holds no {CATALOG_FILE}: name a new folder for the lake"
        raise LakeError(message)
    try:
        (path / DATA_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the lake at {path}: {error.strerror}; name a folder that you can write to"
        raise LakeError(message) from error


def _is_begun(path: Path) -> bool:
    """Tell whether a folder without a catalog is empty, or holds what `create` makes before the catalog."""
    inside = list(path.iterdir())
    data = path / DATA_FOLDER
    # A catalog that another process makes at this moment may have come in between.
    return all(child == data or child.name.startswith(CATALOG_FILE) for child in inside) and not (
        data.is_dir() and any(data.iterdir())
    )
