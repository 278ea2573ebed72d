"""Opening DuckDB with a lake attached: extensions, Postgres or SQLite, S3, a snapshot of the past."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from warehouse import extensions, s3
from warehouse.address import Address
from warehouse.errors import LakeError
from warehouse.sqltext import literal
from warehouse.trouble import told

CATALOG_FILE = "catalog.sqlite"
DATA_FOLDER = "data"

#: How long to wait for a catalog that another process holds, in ms.
BUSY_MS = 10_000
#: What two processes that make one lake at the same moment run into; the tables are there in a moment.
_MADE_NOW = (
    "database is locked",
    "already exists",
    "duplicate key value",
    "could not serialize",
    "tuple concurrently",
    "Current transaction is aborted",  # a query of the making after one that met the other process
)


def attach(
    address: Address, *, read_only: bool, as_of: int | datetime | None = None, data: str | None = None
) -> duckdb.DuckDBPyConnection:
    """Open DuckDB in memory with the lake attached as `lake`, its default catalog.

    Args:
        address: of a lake that is there; of a folder, also of one that is to be made.
        read_only: attach so that no write is possible.
        as_of: a snapshot, or a time (without a zone: UTC): the lake as it was then.
        data: of a team lake that is to be made, where its data goes; None to open one.

    Raises:
        LakeError: it is no lake, it has no such snapshot, or its database holds something else.
        LakeUnavailableError: Postgres or S3 does not answer.
    """
    # A secret that the user keeps for DuckDB, for another Postgres or S3 say, must not come in.
    settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    connection = duckdb.connect(config={**settings, "secret_directory": "/nonexistent"})
    try:
        with told(address.text):
            if address.path is not None:
                _attach_folder(connection, address.path, read_only, as_of)
            else:
                _attach_team(connection, address, read_only, as_of, data)
            connection.execute("USE lake.main")
            # Of a join's other side DuckDB looks for up to 50 values in a table's files; the plates of one treatment
            # are more. With them it opens the files of these plates only: a third of the time among 2,500 plates.
            connection.execute("SET dynamic_or_filter_threshold = 10000")
    except duckdb.Error as error:
        connection.close()
        what = address.text if address.path is None else str(address.path / CATALOG_FILE)
        message = f"{what} cannot be opened as a lake: {str(error).splitlines()[0]}"
        raise LakeError(message) from error
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def one_thread(connection: duckdb.DuckDBPyConnection, is_wanted: bool) -> Iterator[None]:
    """Write with one thread inside the block: on a catalog in Postgres a commit is some fifty small queries.

    DuckDB's threads wait for each of them in a loop that spins, the longer the more commits a connection has done
    (the 500th took 1.2 to 1.5 times the 5th); the insert of a frame gains nothing from a second thread.
    """
    if not is_wanted:
        yield
        return
    connection.execute("SET threads = 1")
    try:
        yield
    finally:
        connection.execute("RESET threads")


def data_path(connection: duckdb.DuckDBPyConnection) -> str:
    """Return where an attached lake's data is, with a slash at its end."""
    row = connection.execute("SELECT data_path FROM ducklake_settings('lake')").fetchone()
    return str(row[0]) if row else ""


def lake_id(connection: duckdb.DuckDBPyConnection) -> str:
    """Return what tells an attached lake from all others, whatever address it is opened by."""
    row = connection.execute(
        "SELECT schema_uuid FROM __ducklake_metadata_lake.ducklake_schema WHERE schema_name = 'main'"
    ).fetchone()
    return str(row[0]) if row else ""


def _attach_folder(
    connection: duckdb.DuckDBPyConnection, path: Path, read_only: bool, as_of: int | datetime | None
) -> None:
    for extension in ("ducklake", "sqlite_scanner"):
        extensions.load(connection, extension)
    # WAL lets readers keep a transaction open while a writer commits. The data path is given each time because
    # a lake's folder may have been moved or mounted elsewhere since it was made.
    options = [f"DATA_PATH {literal(str(path / DATA_FOLDER) + '/')}", "OVERRIDE_DATA_PATH true"]
    options += [f"META_BUSY_TIMEOUT {BUSY_MS}", "READ_ONLY" if read_only else "META_JOURNAL_MODE 'WAL'"]
    _attach(connection, str(path), "ducklake:sqlite:" + str(path / CATALOG_FILE), options, as_of)


def _attach_team(
    connection: duckdb.DuckDBPyConnection,
    address: Address,
    read_only: bool,
    as_of: int | datetime | None,
    data: str | None,
) -> None:
    # httpfs too: a catalog whose data is on S3 is not attached without, and only the catalog knows.
    for extension in ("ducklake", "postgres_scanner", "httpfs"):
        extensions.load(connection, extension)
    target, options = "ducklake:postgres:" + address.connection, ["CREATE_IF_NOT_EXISTS false"]
    options += ["READ_ONLY"] if read_only else []
    try:
        _attach(connection, address.text, target, options, as_of)
    except duckdb.InvalidInputException as error:
        if "does not exist - and creating" not in str(error):
            raise
        if data is None:
            message = (
                f"{address.text} is not a lake (the database holds none): make one with "
                f"`wellhouse init {literal(address.text)} --data s3://bucket/prefix`, or give --lake"
            )
            raise LakeError(message) from None
        _log_in(connection, data)
        try:
            _refuse_others_tables(connection, address)
            _refuse_others_files(connection, data)
        except LakeError:
            # Unless another process has made the lake since we looked, and these are its files.
            with suppress(duckdb.InvalidInputException):
                _attach(connection, address.text, target, options, None)
            if not _is_attached(connection):
                raise
        if not _is_attached(connection):
            _attach(connection, address.text, target, [f"DATA_PATH {literal(data)}"], None)
    held = data_path(connection)
    if data is not None and data != held:
        message = f"{address.text} has its data at {held}, not at {data}: leave --data out to open it"
        raise LakeError(message)
    _log_in(connection, held)


def _attach(
    connection: duckdb.DuckDBPyConnection,
    text: str,
    target: str,
    options: list[str],
    as_of: int | datetime | None,
) -> None:
    deadline = time.monotonic() + BUSY_MS / 1000
    given = ", ".join(options)
    moment = "" if as_of is None else f", {_moment(as_of)}"
    while True:
        try:
            connection.execute(f"ATTACH {literal(target)} AS lake ({given}{moment})")
            break
        except duckdb.Error as error:
            if as_of is not None and ("No snapshot found" in str(error) or "out of range" in str(error)):
                connection.execute(f"ATTACH {literal(target)} AS lake ({given})")
                raise LakeError(_no_snapshot(connection, text, as_of)) from None
            is_made_now = any(sign in str(error) for sign in _MADE_NOW)
            if not is_made_now or time.monotonic() > deadline:
                raise
        time.sleep(0.05)
    if isinstance(as_of, datetime) and _is_gap(connection):
        raise LakeError(_no_snapshot(connection, text, as_of))


def _is_attached(connection: duckdb.DuckDBPyConnection) -> bool:
    row = connection.execute(
        "SELECT count(*) FROM duckdb_databases() WHERE database_name = 'lake'"
    ).fetchone()
    return bool(row and row[0])


def _moment(as_of: int | datetime) -> str:
    """Write the option that attaches a lake as of a snapshot, or of a time in UTC."""
    if isinstance(as_of, datetime):
        return f"SNAPSHOT_TIME {literal(f'{_utc(as_of):%Y-%m-%d %H:%M:%S.%f}+00')}"
    return f"SNAPSHOT_VERSION {int(as_of)}"


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _is_gap(connection: duckdb.DuckDBPyConnection) -> bool:
    """Tell whether the snapshot after the one attached was expired: at that time the lake may have been another."""
    row = connection.execute(
        "SELECT count_if(snapshot_id > now.id) > 0 AND count_if(snapshot_id = now.id + 1) = 0 "
        "FROM ducklake_snapshots('lake'), ducklake_current_snapshot('lake') AS now"
    ).fetchone()
    return bool(row and row[0])


def _no_snapshot(connection: duckdb.DuckDBPyConnection, text: str, as_of: int | datetime) -> str:
    row = connection.execute(
        "SELECT min(snapshot_id), max(snapshot_id), epoch_us(min(snapshot_time)) FROM ducklake_snapshots('lake')"
    ).fetchone()
    first, last, since = row or (0, 0, 0)
    if isinstance(as_of, datetime):
        started = datetime.fromtimestamp(since / 1e6, UTC)
        was = f"as of {_utc(as_of):%Y-%m-%d %H:%M:%S} UTC"
        return (
            f"{text} has no snapshot {was}: the first that it holds, {first}, is of {started:%Y-%m-%d %H:%M:%S} UTC, "
            "and others may have been expired; name a later time, or a snapshot"
        )
    was = "it was expired" if first < as_of < last else f"it holds {first} to {last}"
    return f"{text} has no snapshot {as_of} ({was}): `wellhouse sql \"FROM ducklake_snapshots('lake')\"` lists them"


def _log_in(connection: duckdb.DuckDBPyConnection, data: str) -> None:
    """Give DuckDB the keys of S3 for this connection alone, in memory, where the lake's data is on S3."""
    if not data.startswith("s3://"):
        return
    found = s3.settings()
    given = {"KEY_ID": found.key_id, "SECRET": found.secret, "SESSION_TOKEN": found.token}
    given |= {"REGION": found.region, "ENDPOINT": found.endpoint}
    options = [f"{name} {literal(value)}" for name, value in given.items() if value is not None]
    if found.endpoint is not None:
        options += ["URL_STYLE 'path'", f"USE_SSL {'true' if found.use_ssl else 'false'}"]
    text = ", ".join(options)
    try:
        connection.execute(f"CREATE OR REPLACE SECRET wellhouse (TYPE s3, {text})")
    except duckdb.Error:
        # Without its cause: DuckDB's message may show the statement.
        message = "DuckDB does not take the S3 settings: check AWS_REGION and AWS_ENDPOINT_URL"
        raise LakeError(message) from None


def _refuse_others_tables(connection: duckdb.DuckDBPyConnection, address: Address) -> None:
    """Stop before a lake is made in a database that holds something else."""
    connection.execute(f"ATTACH {literal(address.connection)} AS there (TYPE postgres, READ_ONLY)")
    query = (
        "SELECT table_schema || '.' || table_name FROM information_schema.tables WHERE table_schema NOT IN "
        "('pg_catalog', 'information_schema') AND table_name NOT LIKE 'ducklake_%' ORDER BY 1"
    )
    rows = connection.execute("FROM postgres_query('there', ?)", [query]).fetchall()
    connection.execute("DETACH there")
    if rows:
        message = (
            f"{address.text} holds {len(rows)} tables that are no lake's ({', '.join(name for (name,) in rows[:3])}"
            f"{', …' * (len(rows) > 3)}): make a database for the lake alone"
        )
        raise LakeError(message)


def _refuse_others_files(connection: duckdb.DuckDBPyConnection, data: str) -> None:
    """Stop before a lake is made over files of another: its upkeep deletes what no table of it names."""
    if data.startswith("s3://"):
        row = connection.execute("SELECT count(*), min(file) FROM glob(?)", [data + "**"]).fetchone()
        count, first = row or (0, None)
    else:
        folder = Path(data)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            inside = sorted(folder.iterdir())
        except OSError as error:
            message = (
                f"cannot make {data}: {error.strerror}; name a folder that you can write to, with --data"
            )
            raise LakeError(message) from error
        count, first = len(inside), str(inside[0]) if inside else None
    if count:
        message = f"{data} is not empty ({count} files, {first} the first): name a new place for the lake with --data"
        raise LakeError(message)
