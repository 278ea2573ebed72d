"""The columns that name the rows of an index: each name once."""

import polars as pl

from warehouse.errors import SearchError


def refuse_twice(keys: pl.DataFrame) -> None:
    """Refuse keys that come twice: a tie between them would have no order, and a name two meanings.

    Raises:
        SearchError: the key and its first two rows.
    """
    doubled = keys.is_duplicated()
    if doubled.any():
        rows = doubled.arg_true().to_list()
        first = keys.row(rows[0])
        second = next(row for row in rows[1:] if keys.row(row) == first)
        message = (
            f"id {name_of(keys, rows[0])!r} names rows {rows[0]} and {second}: an index needs each id once"
        )
        raise SearchError(message)


def name_of(keys: pl.DataFrame, row: int) -> str:
    """Name a row for people: its keys joined by `/`."""
    return "/".join(map(str, keys.row(row)))
