"""What may come back from a search: filters that act before anything is ranked."""

from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import ProfileError, SearchError
from warehouse.lake import Lake
from warehouse.profiles import predicate
from warehouse.search import Mask

Rows = NDArray[np.int64]
_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Filters:
    """What a neighbour must not share with the query, and what it must be; they combine.

    Attributes:
        not_same_compound: leave out every concentration of the query's compounds.
        not_same_batch: leave out what has wells in a batch of the query.
        not_same_plate: leave out what has wells on a plate of the query.
        not_same_position: leave out what has wells at a well position of the query, on whatever plate.
        where: an SQL predicate over the level's columns, labels among them.
    """

    not_same_compound: bool = False
    not_same_batch: bool = False
    not_same_plate: bool = False
    not_same_position: bool = False
    where: str | None = None

    @property
    def shared(self) -> tuple[str, ...]:
        """What may not be shared, of `Sharing.KINDS`."""
        asked = (self.not_same_compound, self.not_same_batch, self.not_same_plate, self.not_same_position)
        return tuple(kind for kind, is_asked in zip(Sharing.KINDS, asked, strict=True) if is_asked)


@dataclass(frozen=True)
class Query:
    """What is searched with.

    Attributes:
        name: for people.
        vector: (d,) float32, in the space of the recipe.
        rows: of the index, which it is, or is made of: never its own neighbours.
        compounds: of its wells.
        batches: of its wells, as source/batch.
        plates: of its wells, as source/batch/plate.
        positions: of its wells, A01 say.
    """

    name: str
    vector: NDArray[np.float32]
    rows: tuple[int, ...] = ()
    compounds: frozenset[str] = frozenset()
    batches: frozenset[str] = frozenset()
    plates: frozenset[str] = frozenset()
    positions: frozenset[str] = frozenset()

    def shares(self, kind: str) -> frozenset[str]:
        """Return its compounds, batches, plates or positions."""
        of: dict[str, frozenset[str]] = {
            "compound": self.compounds,
            "batch": self.batches,
            "plate": self.plates,
            "position": self.positions,
        }
        return of[kind]


class Sharing:
    """Which rows have a compound, a batch, a plate or a well position; looked up once for each value."""

    KINDS = ("compound", "batch", "plate", "position")

    def __init__(self, rows: pl.DataFrame) -> None:
        """Look rows up in the metadata of a level, one row a row of the index."""
        self._rows = rows
        self._found: dict[str, dict[str, Rows]] = {}

    def values(self, kind: str) -> pl.Series:
        """Return what each row has: lists of texts."""
        rows, many = self._rows, {"batch": "batches", "plate": "plates", "position": "positions"}
        one = {
            "compound": ["compound"],
            "batch": ["source", "batch"],
            "plate": ["source", "batch", "plate"],
            "position": ["well"],
        }[kind]
        if many.get(kind) in rows.columns:
            found = rows[many[kind]]
            if found.null_count() == len(found) and len(found):
                message = (
                    f"the lake of that time does not say which {many[kind]} a row has: leave the filter out"
                )
                raise SearchError(message)
            return found
        text = rows.select(pl.concat_str(one, separator="/").cast(pl.String)).to_series()
        return (
            text.to_frame("value")
            .select(
                pl.when(pl.col("value").is_null())
                .then(pl.lit([], dtype=pl.List(pl.String)))
                .otherwise(pl.concat_list("value"))
            )
            .to_series()
        )

    def rows(self, kind: str, value: str) -> Rows:
        """Return the numbers of the rows that have a value, always the same array."""
        if kind not in self._found:
            pairs = pl.DataFrame({"row": np.arange(len(self._rows)), "value": self.values(kind)}).explode(
                "value"
            )
            grouped = pairs.drop_nulls("value").group_by("value").agg("row")
            self._found[kind] = {
                name: rows.to_numpy() for name, rows in zip(grouped["value"], grouped["row"], strict=True)
            }
        return self._found[kind].get(value, _NONE)

    def left_out(self, query: Query, filters: Filters, *, is_strict: bool = True) -> list[Rows]:
        """Name the rows that a query may not have: itself, and those that share what filters forbid.

        Args:
            query: what is searched with.
            filters: what may not be shared.
            is_strict: refuse a query of which nothing is known that could be shared.

        Raises:
            SearchError: the query has no compound (batch, …), so that the filter would leave nothing out.
        """
        arrays = [np.array(query.rows, dtype=np.int64)] if query.rows else []
        for kind in filters.shared:
            values = query.shares(kind)
            if not values and is_strict:
                message = (
                    f"query {query.name!r} has no {kind} that could be the same: leave --not-same-{kind} out"
                )
                raise SearchError(message)
            arrays += [self.rows(kind, value) for value in sorted(values)]
        return arrays


def check_k(k: int) -> None:
    """Refuse a number of neighbours below 1.

    Raises:
        SearchError: with the number.
    """
    if not isinstance(k, int) or k < 1:
        message = f"k is {k}: ask for at least one neighbour"
        raise SearchError(message)


def meeting(lake: Lake, rows: pl.DataFrame, where: str) -> Mask:
    """Tell which rows meet a predicate.

    Args:
        lake: an open lake; the predicate may ask its tables in subqueries.
        rows: n rows; its columns are what the predicate speaks of.
        where: the predicate.

    Returns:
        (n,) booleans.

    Raises:
        ProfileError: the predicate is none, or names what is not there.
    """
    query = f"SELECT __row FROM searched_rows WHERE ({predicate(where)}\n)"
    lake.connection.register("searched_rows", rows.with_row_index("__row"))
    try:
        found = lake.connection.execute(query).fetchnumpy()["__row"]
    except duckdb.Error as error:
        message = f"--where {where!r}: {str(error).splitlines()[0]}"
        raise ProfileError(message) from error
    finally:
        lake.connection.unregister("searched_rows")
    mask = np.zeros(len(rows), dtype=bool)
    mask[np.asarray(found, dtype=np.int64)] = True
    return mask
