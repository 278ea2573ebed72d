"""SQL over a lake for people: one statement that reads, on a connection that cannot write."""

import duckdb
import polars as pl

from warehouse.errors import LakeError
from warehouse.lake import Lake

_READS = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}


def sql(lake: Lake, text: str) -> pl.DataFrame:
    """Run one query.

    Args:
        lake: an open lake, best read-only.
        text: one SELECT (also FROM …, DESCRIBE, SUMMARIZE, SHOW TABLES) or EXPLAIN.

    Raises:
        LakeError: it is no SQL, several statements, one that would write (COPY, ATTACH, INSERT, …), or names
            something that is not there.
    """
    try:
        parsed = duckdb.extract_statements(text)
    except duckdb.ParserException as error:
        message = f"sql: {_first_line(error)}"
        raise LakeError(message) from error
    if len(parsed) != 1:
        message = f"sql: {len(parsed)} statements were given: give one query"
        raise LakeError(message)
    if parsed[0].type not in _READS:
        message = f"sql: {parsed[0].type.name} is not allowed here, only queries: attach the lake in DuckDB for more"
        raise LakeError(message)
    try:
        return lake.frame(text)
    except duckdb.Error as error:
        message = f"sql: {_first_line(error)}"
        raise LakeError(message) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hint = next((line for line in lines if line.startswith("Did you mean") or "Candidate" in line), "")
    return " ".join([lines[0], hint]).strip()
