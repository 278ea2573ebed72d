"""The lake: DuckLake tables (Parquet) behind a SQL catalog, opened, written in whole transactions, and read."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import duckdb
import polars as pl

from warehouse import __version__, extensions, resources
from warehouse.errors import LakeError
from warehouse.sqltext import literal, statements

T = TypeVar("T")

CATALOG_FILE = "catalog.sqlite"
DATA_FOLDER = "data"
INDEX_FOLDER = "indexes"

#: How long a write waits for others before it gives up, in seconds; every try is the whole transaction again.
RETRY_SECONDS = 60.0
_BUSY_MS = 10_000

#: What a lost race looks like, from DuckLake (another snapshot came first) and from SQLite (the file is taken).
_CONFLICTS = ("conflict", "database is locked", "database is busy", "maximum retry count")


def now() -> datetime:
    """Return this moment in UTC, without a zone: as the lake's TIMESTAMP columns hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


class Lake:
    """An open lake. Use `Lake.create` or `Lake.open`, best in a `with` block.

    Attributes:
        path: the lake's folder.
        connection: the DuckDB connection; the lake is attached as `lake` and is the default catalog.
        read_only: True where no write is possible.
    """

    def __init__(self, path: Path, connection: duckdb.DuckDBPyConnection, read_only: bool) -> None:
        self.path = path
        self.connection = connection
        self.read_only = read_only
        self._remembered: dict[str, Any] = {}
        self._writes_seen: int | None = None
        self._is_idle = False

    @classmethod
    def create(cls, address: str | Path) -> Self:
        """Make a lake, or finish one whose making was cut short; an existing lake is opened as it is.

        Raises:
            LakeError: the folder holds something else, or cannot be written.
        """
        path = _folder(address)
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
        lake = cls(path, _attach(path, read_only=False), read_only=False)
        lake._migrate()
        return lake

    @classmethod
    def open(cls, address: str | Path, *, read_only: bool = False) -> Self:
        """Open an existing lake.

        Args:
            address: the lake's folder.
            read_only: True for any number of readers beside a writer; nothing can then be changed.

        Raises:
            LakeError: no lake is there, it was half made, or a newer version of Wellhouse wrote it.
        """
        path = _folder(address)
        if not (path / CATALOG_FILE).is_file():
            found = "there is no such folder" if not path.exists() else f"it holds no {CATALOG_FILE}"
            message = f"{path} is not a lake ({found}): make one with `wellhouse init {path}`, or give --lake"
            raise LakeError(message)
        lake = cls(path, _attach(path, read_only=read_only), read_only=read_only)
        version, newest = lake._schema_version(), resources.number_and_name(resources.files("schema")[-1])[0]
        if version < newest:
            if read_only or version == 0:
                lake.close()
                message = (
                    f"{path} has schema {version}, this wellhouse {__version__} reads {newest}: "
                    f"bring it up to date with `wellhouse init {path}`"
                )
                raise LakeError(message)
            lake._migrate()
        return lake

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
        return self.connection.execute(query, list(parameters)).pl()

    def value(self, query: str, parameters: Sequence[object] = ()) -> object:
        """Run a query of one row and one column and return what it holds (None for no row)."""
        row = self.connection.execute(query, list(parameters)).fetchone()
        return None if row is None else row[0]

    def snapshot(self) -> int:
        """Return the number of the lake's newest snapshot: every commit makes one."""
        return int(str(self.value("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one snapshot: whatever others commit meanwhile, all queries inside see the same lake."""
        self.connection.execute("BEGIN TRANSACTION")
        try:
            yield
        finally:
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
        """
        if self.read_only:
            message = f"{self.path} is open read-only: open it for writing to change it"
            raise LakeError(message)
        deadline, pause = time.monotonic() + RETRY_SECONDS, 0.01
        while True:
            try:
                return self._once(work, gated)
            except duckdb.Error as error:
                if not any(sign in str(error) for sign in _CONFLICTS):
                    raise
                if time.monotonic() > deadline:
                    message = (
                        f"{self.path} was held by other writers for {RETRY_SECONDS:.0f} s "
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

    def _once(self, work: Callable[[duckdb.DuckDBPyConnection], T], gated: bool) -> T:
        self.connection.execute("BEGIN TRANSACTION")
        try:
            writes = self._pass_gate() if gated else None
            self._is_idle = False
            result = work(self.connection)
            self.connection.execute("ROLLBACK" if self._is_idle else "COMMIT")
        except BaseException:
            self._remembered.clear()
            # A failed COMMIT has already ended the transaction; a second error here would hide the first.
            with suppress(duckdb.TransactionException):
                self.connection.execute("ROLLBACK")
            raise
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

    def _schema_version(self) -> int:
        there = self.value(
            "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'lake' AND schema_name = 'main' "
            "AND table_name = 'schema_version'"
        )
        if not there:
            return 0
        return int(str(self.value("SELECT coalesce(max(version), 0) FROM main.schema_version")))

    def _migrate(self) -> None:
        """Apply the schema files that the lake lacks, and renew the shared views, in one transaction."""

        def work(connection: duckdb.DuckDBPyConnection) -> None:
            present = self._schema_version()
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

        if self._schema_version() < resources.number_and_name(resources.files("schema")[-1])[0]:
            self.transaction(work, gated=False)


def _is_begun(path: Path) -> bool:
    """Tell whether a folder without a catalog is empty, or holds what `create` makes before the catalog."""
    inside = list(path.iterdir())
    data = path / DATA_FOLDER
    # A catalog that another process makes at this moment may have come in between.
    return all(child == data or child.name.startswith(CATALOG_FILE) for child in inside) and not (
        data.is_dir() and any(data.iterdir())
    )


def _folder(address: str | Path) -> Path:
    text = str(address)
    if text.startswith(("postgres:", "postgresql:", "s3:")):
        message = (
            f"lake address {text.split(':')[0]!r}: this version keeps a lake in a local folder; name one"
        )
        raise LakeError(message)
    return Path(text).expanduser().absolute()


def _attach(path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    """Open DuckDB in memory with the lake attached as `lake`."""
    connection = duckdb.connect(
        config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    )
    for extension in ("ducklake", "sqlite_scanner"):
        extensions.load(connection, extension)
    # WAL lets readers keep a transaction open while a writer commits. The data path is given each time because
    # a lake's folder may have been moved or mounted elsewhere since it was made.
    mode = "READ_ONLY" if read_only else "META_JOURNAL_MODE 'WAL'"
    attach = (
        f"ATTACH {literal('ducklake:sqlite:' + str(path / CATALOG_FILE))} AS lake "
        f"(DATA_PATH {literal(str(path / DATA_FOLDER) + '/')}, OVERRIDE_DATA_PATH true, "
        f"META_BUSY_TIMEOUT {_BUSY_MS}, {mode})"
    )
    deadline = time.monotonic() + _BUSY_MS / 1000
    try:
        while True:
            try:
                connection.execute(attach)
                break
            except duckdb.Error as error:
                # Another process is making the same lake: its tables are there in a moment.
                is_made_now = "database is locked" in str(error) or "already exists" in str(error)
                if not is_made_now or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)
        connection.execute("USE lake.main")
        _refuse_newer(connection, path)
    except duckdb.Error as error:
        connection.close()
        message = f"{path / CATALOG_FILE} cannot be opened as a lake: {str(error).splitlines()[0]}"
        raise LakeError(message) from error
    except LakeError:
        connection.close()
        raise
    return connection


def _refuse_newer(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Stop before anything of a lake is read that a newer version laid out in its own way."""
    newest = resources.number_and_name(resources.files("schema")[-1])[0]
    try:
        row = connection.execute(
            "SELECT version, code_version FROM main.schema_version ORDER BY version DESC LIMIT 1"
        ).fetchone()
    except duckdb.CatalogException:
        return  # not made yet, or half made: `open` and `create` tell these apart
    if row is not None and row[0] > newest:
        message = (
            f"{path} was written by wellhouse {row[1]} (schema {row[0]}); this is {__version__} (schema "
            f"{newest}): upgrade with `pip install --upgrade wellhouse`"
        )
        raise LakeError(message)
