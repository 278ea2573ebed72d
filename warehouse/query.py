"""SQL over a lake for people: one statement that reads, on a connection that cannot write."""

import json
import re

import duckdb
import polars as pl

from warehouse.errors import LakeError
from warehouse.lake import Lake

_READS = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(?:ANALYZE\s+|\([^)]*\)\s*)?", re.IGNORECASE)
#: Table functions that write although they stand in a SELECT, that run a text or attach a database, and that tell
#: of keys.
_EFFECTS = re.compile(
    r"ducklake_(?:add|cleanup|commit|delete|expire|flush|merge|rewrite|set)\w*|(?:force_)?checkpoint|query"
    r"|sqlite_\w+|postgres_\w+|duckdb_secrets|which_secret"
)


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
    # EXPLAIN ANALYZE runs what it explains.
    is_explained = parsed[0].type == duckdb.StatementType.EXPLAIN
    effect = side_effect(_EXPLAIN.sub("", text, count=1) if is_explained else text)
    if effect is not None:
        message = f"sql: {effect} is not allowed here, only queries: attach the lake in DuckDB for more"
        raise LakeError(message)
    try:
        return lake.frame(text)
    except duckdb.Error as error:
        message = f"sql: {_first_line(error)}"
        raise LakeError(message) from error
    except pl.exceptions.PolarsError as error:
        message = f"sql: the answer has a type that a table here cannot hold ({_first_line(error)}): cast it to VARCHAR"
        raise LakeError(message) from error


def side_effect(text: str) -> str | None:
    """Name what a statement does besides reading: the function that writes, or its kind where it is no SELECT.

    DuckLake's maintenance (expiring snapshots, deleting files) is called as a table function in a SELECT, so
    the kind of the statement does not tell.
    """
    called = _functions(text)
    if called is None:
        return f"{(text.split() or [''])[0].upper()!r}"
    return next((f"{name}()" for name in called if _EFFECTS.fullmatch(name.lower())), None)


def by_chance(text: str) -> str | None:
    """Name a function of a query that gives another answer every time (`random()`), or None."""
    called = {name.lower() for name in _functions(text) or []}
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE' "
            "AND list_contains(?, function_name) ORDER BY 1",
            [sorted(called)],
        ).fetchall()
    return f"{rows[0][0]}()" if rows else None


def _functions(text: str) -> list[str] | None:
    """Name the functions that a query calls, or None where it is no query."""
    with duckdb.connect() as connection:
        row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchone()
    tree = json.loads(row[0]) if row else {"error": True}
    if tree["error"]:
        return None
    nodes, found = [tree], []
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            name = node.get("function_name")
            if isinstance(name, str):
                found.append(name)
            nodes.extend(node.values())
        elif isinstance(node, list):
            nodes.extend(node)
    return found


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hint = next((line for line in lines if line.startswith("Did you mean") or "Candidate" in line), "")
    return " ".join([lines[0], hint]).strip()
