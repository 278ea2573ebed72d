"""SQL over a lake for people: one statement that reads, on a connection that cannot write."""

import json
import re

import duckdb
import polars as pl

from warehouse.errors import LakeError, WellhouseError
from warehouse.lake import Lake

_READS = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
_EXPLAIN = re.compile(r"\s*EXPLAIN\s+(?:ANALYZE\s+|\([^)]*\)\s*)?", re.IGNORECASE)
#: Table functions that write although they stand in a SELECT, that run a text or attach a database, and that tell
#: of keys.
_EFFECTS = re.compile(
    r"ducklake_(?:add|cleanup|commit|delete|expire|flush|merge|rewrite|set)\w*|(?:force_)?checkpoint|query"
    r"|sqlite_\w+|postgres_\w+|duckdb_secrets|which_secret"
)
#: Search in SQL, and the functions under it (`warehouse.nearest.table_functions`). A predicate must not call them: a
#: search that asks it would wait for itself.
_SEARCHES = re.compile(r"_?(?:nearest(?:_to_\w+)?|neighbours|similar_pairs|novelty)")


def sql(lake: Lake, text: str) -> pl.DataFrame:
    """Run one query.

    Args:
        lake: an open lake, best read-only.
        text: one SELECT (also FROM …, DESCRIBE, SUMMARIZE, SHOW TABLES) or EXPLAIN; it may call the table functions
            of search (`nearest(…)`, `neighbours(…)`, …).

    Raises:
        LakeError: it is no SQL, several statements, one that would write (COPY, ATTACH, INSERT, …), names
            something that is not there, or a search in it cannot be answered.
    """
    try:
        parsed = duckdb.extract_statements(text)
    except duckdb.ParserException as error:
        hint = ": a search takes predicate := '…'" if re.search(r"\bwhere\s*:=", text, re.IGNORECASE) else ""
        message = f"sql: {_first_line(error)}{hint}"
        raise LakeError(message) from error
    if len(parsed) != 1:
        message = f"sql: {len(parsed)} statements were given: give one query"
        raise LakeError(message)
    if parsed[0].type not in _READS:
        message = f"sql: {parsed[0].type.name} is not allowed here, only queries: attach the lake in DuckDB for more"
        raise LakeError(message)
    # EXPLAIN ANALYZE runs what it explains.
    is_explained = parsed[0].type == duckdb.StatementType.EXPLAIN
    query = _EXPLAIN.sub("", text, count=1) if is_explained else text
    called = _functions(query)
    effect = _effect(query, called)
    if effect is not None:
        message = f"sql: {effect} is not allowed here, only queries: attach the lake in DuckDB for more"
        raise LakeError(message)
    is_search = any(_SEARCHES.fullmatch(name.lower()) for name in called or [])
    if is_search:
        _register_searches(lake)
    try:
        return lake.frame(text)
    except duckdb.Error as error:
        found = _fault_of_search(lake) if is_search else None
        if found is not None and not isinstance(found, WellhouseError):
            raise found from error
        message = f"sql: {_first_line(error) if found is None else found}"
        raise LakeError(message) from error
    except pl.exceptions.PolarsError as error:
        message = f"sql: the answer has a type that a table here cannot hold ({_first_line(error)}): cast it to VARCHAR"
        raise LakeError(message) from error


def side_effect(text: str) -> str | None:
    """Name what a predicate's statement does besides reading: the function that writes or searches, or its kind.

    DuckLake's maintenance (expiring snapshots, deleting files) is called as a table function in a SELECT, so
    the kind of the statement does not tell.
    """
    called = _functions(text)
    searches = (f"{name}()" for name in called or [] if _SEARCHES.fullmatch(name.lower()))
    return _effect(text, called) or next(searches, None)


def _effect(text: str, called: list[str] | None) -> str | None:
    """Name what a statement does besides reading, by the functions that it calls; None: it is no SELECT."""
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


def _register_searches(lake: Lake) -> None:
    from warehouse.nearest import table_functions  # late: it imports this module, and few queries search

    table_functions.register(lake)


def _fault_of_search(lake: Lake) -> Exception | None:
    from warehouse.nearest import table_functions

    return table_functions.fault(lake)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    at = next(
        (i for i, line in enumerate(lines) if line.startswith("Did you mean") or "Candidate" in line), None
    )
    # What a macro takes stands below its heading.
    hint = [] if at is None else lines[at : at + (2 if lines[at].endswith("macros:") else 1)]
    return " ".join([lines[0], *hint]).strip()
