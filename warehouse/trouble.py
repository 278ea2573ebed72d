"""Trouble that is not the caller's: a database, S3 or a disk that fails, said in one line that tells what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from warehouse.errors import LakeUnavailableError

#: What the caller of a transaction may rely on, for the end of a message.
NOTHING_WRITTEN = "nothing was written"
IN_DOUBT = "whether the last commit came in is not known, it is in whole or not at all"

#: Errors in what was asked; a name in them may read like trouble.
_OF_THE_QUERY = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConstraintException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.ParserException,
)

#: What each kind of trouble looks like in DuckDB's words, libpq's, SQLite's and the system's; the first that fits.
_SIGNS = tuple(
    (re.compile(sign), what, remedy)
    for sign, what, remedy in (
        (
            r"No space left on device|database or disk is full|Disk quota exceeded|disk I/O error",
            "the disk is full, or fails",
            "free some space",
        ),
        (
            r"password authentication failed|no password supplied|role \".*\" does not exist|no pg_hba\.conf entry"
            r"|permission denied for",
            "Postgres refuses the login",
            "set the user in the address, and PGPASSWORD or ~/.pgpass",
        ),
        (
            r"database \".*\" does not exist",
            "Postgres has no such database",
            "mend the address, or make it with `createdb`",
        ),
        (
            r"Unable to connect to Postgres|server closed the connection|terminating connection|no connection to the "
            r"server|connection to server|could not (?:receive|send) data|the database system is"
            r'|Failed to execute query "(?:ROLLBACK|COMMIT|BEGIN[^"]*)":\s*$',
            "Postgres, which holds the lake's catalog, does not answer",
            "start it, or wait until it is back",
        ),
        (
            r"open file .*ducklake-[^/]*\.parquet.*: No such file|HTTP (?:GET|HEAD) .*ducklake-[^/]*\.parquet.* 404 ",
            "a data file of the lake is gone",
            "`wellhouse verify` lists what is missing; bring it back from a copy",
        ),
        (
            r"Read-only file system|readonly database|Permission denied|unable to open database file|"
            r"Operation not permitted",
            "files of the lake cannot be read or written here",
            "mend their permissions, or those of the disk",
        ),
        (
            r"^HTTP Error|HTTP (?:GET|HEAD|PUT|POST|DELETE)|Could not (?:connect to server|resolve hostname)",
            "S3 refuses, or does not answer",
            "check that it runs, AWS_ENDPOINT_URL, the keys in AWS_… and what they may do with the bucket",
        ),
    )
)

_INNERMOST = re.compile(
    r"(?:server closed the connection|terminating connection|connection to server|FATAL:|database or disk is full)"
    r"[^\n]*"
)


def explain(error: BaseException) -> tuple[str, str, str] | None:
    """Tell whether an error is trouble of the catalog or the storage.

    Returns:
        What is the matter, the first line of what was said of it, what to do; None for any other error.
    """
    if isinstance(error, _OF_THE_QUERY) or not isinstance(error, duckdb.Error | OSError):
        return None
    text = str(error)
    # Of Python's own errors only a full disk: the work may read files that are not the lake's.
    for sign, what, remedy in _SIGNS if isinstance(error, duckdb.Error) else _SIGNS[:1]:
        if sign.search(text):
            return what, _reason(text), remedy
    return None


def unavailable(error: BaseException, address: str, effect: str = "") -> LakeUnavailableError | None:
    """Make the error that a person sees of one that is trouble; None where it is none.

    Args:
        error: as it was raised.
        address: the lake's.
        effect: what is sure about the work, `NOTHING_WRITTEN` say.
    """
    found = explain(error)
    if found is None:
        return None
    what, reason, remedy = found
    return LakeUnavailableError(
        f"{address}: {what} ({reason}); {effect + ': ' if effect else ''}{remedy}, then run this again"
    )


@contextmanager
def told(address: str, effect: str = "") -> Iterator[None]:
    """Turn trouble inside the block into a `LakeUnavailableError`; other errors pass as they are."""
    try:
        yield
    except (duckdb.Error, OSError) as error:
        found = unavailable(error, address, effect)
        if found is None:
            raise
        raise found from error


def _reason(text: str) -> str:
    """Take the innermost reason out of DuckDB's text: one line, without its own prefixes and queries."""
    if found := _INNERMOST.search(text):
        return found.group().strip().rstrip(" .:")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if "Failed to commit" not in line or line == lines[-1]] or [text]
    reason = re.sub(r"^(?:(?:IO|HTTP|TransactionContext|Invalid Input) Error: )+", "", reasons[0])
    return reason.rstrip(" .:")
