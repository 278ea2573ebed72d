"""Search in SQL: table functions, so that neighbours join with anything.

    SELECT hits.treatment, near.treatment, near.similarity
    FROM hits, nearest(hits.treatment, 'transfer', recipe := 'center', k := 3) AS near

Each is a macro around a function in Python that returns a list of rows for each row it is given. DuckDB hands these
over by the thousand, and queries with the same settings are searched as one batch. The search reads the lake through a
connection of its own, since the one that runs the query is busy.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from inspect import Parameter, Signature
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from warehouse import address
from warehouse.errors import SearchError
from warehouse.lake import Lake
from warehouse.nearest.filters import Filters, Query
from warehouse.nearest.searcher import Searcher
from warehouse.profiles import LABEL_KINDS
from warehouse.sqltext import statements

_TYPES = {
    "VARCHAR": pl.String(),
    "VARCHAR[]": pl.List(pl.String()),
    "BIGINT": pl.Int64(),
    "FLOAT": pl.Float32(),
    "DOUBLE": pl.Float64(),
}
#: Column with the number of the row, in the chunk at hand, that asked.
_ROW = "#row"
#: Columns that name a row at one level or another; those that a level lacks are NULL.
_IDS = dict.fromkeys(
    ("treatment", "compound", "source", "batch", "plate", "well", "field", "cell"), "VARCHAR"
)
_SCORE = {"similarity": "FLOAT", "p_value": "DOUBLE"}
_LABELS = dict.fromkeys(LABEL_KINDS, "VARCHAR[]")
_DESCRIPTION = {
    "concentration": "DOUBLE",
    "unit": "VARCHAR",
    "control_type": "VARCHAR",
    "well_count": "BIGINT",
    "batch_count": "BIGINT",
    "replicate_cosine": "FLOAT",
}
_OF_NEIGHBOUR = {f"neighbour_{name}": kind for name, kind in _IDS.items()}
#: Function in Python → columns of its rows.
COLUMNS = {
    "nearest": {"rank": "BIGINT", **_SCORE, **_IDS, **_DESCRIPTION, **_LABELS},
    "neighbours": {**_IDS, "rank": "BIGINT", "similarity": "FLOAT", **_OF_NEIGHBOUR},
    "similar_pairs": {**_IDS, "similarity": "FLOAT", **_OF_NEIGHBOUR},
    "novelty": {
        **_IDS,
        **_OF_NEIGHBOUR,
        **{f"neighbour_{name}": kind for name, kind in _LABELS.items()},
        **_SCORE,
        "q_value": "DOUBLE",
    },
}
#: Settings that all functions take, in this order, and the moment of the statement, by which its calls are told from
#: those of another.
_SETTINGS = {
    "feature_set": "VARCHAR",
    "recipe": "VARCHAR",
    "level": "VARCHAR",
    "device": "VARCHAR",
    "k": "BIGINT",
    "threshold": "DOUBLE",
    "labels": "VARCHAR",
    "not_same_compound": "BOOLEAN",
    "not_same_batch": "BOOLEAN",
    "not_same_plate": "BOOLEAN",
    "not_same_position": "BOOLEAN",
    "predicate": "VARCHAR",
    "opposite": "BOOLEAN",
    "moment": "BIGINT",
}
_MACROS = """
CREATE OR REPLACE TEMP MACRO nearest(
    query, feature_set, recipe := 'none', level := 'treatment', k := 20, not_same_compound := false,
    not_same_batch := false, not_same_plate := false, not_same_position := false, predicate := NULL,
    opposite := false, device := 'cpu'
) AS TABLE SELECT unnest(one) FROM (SELECT unnest(_nearest(
    'name', query::VARCHAR, feature_set, recipe, level, device, k, 0, '', not_same_compound, not_same_batch,
    not_same_plate, not_same_position, predicate, opposite, epoch_us(now())
)) AS one);
CREATE OR REPLACE TEMP MACRO nearest_to_well(
    well, feature_set, recipe := 'none', level := 'treatment', k := 20, not_same_compound := false,
    not_same_batch := false, not_same_plate := false, not_same_position := false, predicate := NULL,
    opposite := false, device := 'cpu'
) AS TABLE SELECT unnest(one) FROM (SELECT unnest(_nearest(
    'well', well::VARCHAR, feature_set, recipe, level, device, k, 0, '', not_same_compound, not_same_batch,
    not_same_plate, not_same_position, predicate, opposite, epoch_us(now())
)) AS one);
CREATE OR REPLACE TEMP MACRO nearest_to_wells(
    wells, feature_set, recipe := 'none', level := 'treatment', k := 20, not_same_compound := false,
    not_same_batch := false, not_same_plate := false, not_same_position := false, predicate := NULL,
    opposite := false, device := 'cpu'
) AS TABLE SELECT unnest(one) FROM (SELECT unnest(_nearest(
    'wells', wells::VARCHAR, feature_set, recipe, level, device, k, 0, '', not_same_compound, not_same_batch,
    not_same_plate, not_same_position, predicate, opposite, epoch_us(now())
)) AS one);
CREATE OR REPLACE TEMP MACRO nearest_to_vector(
    vector, feature_set, recipe := 'none', level := 'treatment', k := 20, predicate := NULL, opposite := false,
    device := 'cpu'
) AS TABLE SELECT unnest(one) FROM (SELECT unnest(_nearest_to_vector(
    vector::FLOAT[], feature_set, recipe, level, device, k, 0, '', false, false, false, false, predicate, opposite,
    epoch_us(now())
)) AS one);
CREATE OR REPLACE TEMP MACRO neighbours(
    feature_set, recipe := 'none', level := 'treatment', k := 20, not_same_compound := false,
    not_same_batch := false, not_same_plate := false, not_same_position := false, predicate := NULL,
    device := 'cpu'
) AS TABLE SELECT unnest(one) FROM (SELECT unnest(_neighbours(
    feature_set, recipe, level, device, k, 0, '', not_same_compound, not_same_batch, not_same_plate,
    not_same_position, predicate, false, epoch_us(now())
)) AS one);
CREATE OR REPLACE TEMP MACRO similar_pairs(
    feature_set, threshold := 0.9, recipe := 'none', level := 'treatment', not_same_compound := false,
    not_same_batch := false, not_same_plate := false, not_same_position := false, predicate := NULL,
    device := 'cpu'
) AS TABLE SELECT unnest(one) FROM (SELECT unnest(_similar_pairs(
    feature_set, recipe, level, device, 1, threshold, '', not_same_compound, not_same_batch, not_same_plate,
    not_same_position, predicate, false, epoch_us(now())
)) AS one);
CREATE OR REPLACE TEMP MACRO novelty(
    feature_set, labels := 'moa', recipe := 'none', level := 'treatment', device := 'cpu'
) AS TABLE SELECT unnest(one) FROM (SELECT unnest(_novelty(
    feature_set, recipe, level, device, 1, 0, labels, false, false, false, false, NULL, false, epoch_us(now())
)) AS one);
"""


def register(lake: Lake) -> None:
    """Give a lake's connection the table functions of search, for as long as it is open.

    `warehouse.query.sql` does it by itself where a query names one; here is how `Lake.frame` comes to know them.

    Args:
        lake: an open lake, also one that is read-only or as of an older snapshot.

    Raises:
        SearchError: a transaction has begun on its connection before the functions were there.
    """
    if lake not in _OPEN:
        _OPEN[lake] = Searches(lake)
    # The end of a transaction that macros were made in takes them away.
    if _is_known(lake.connection):
        return
    try:
        for statement in statements(_MACROS):
            lake.connection.execute(statement)
    except duckdb.CatalogException as error:
        message = (
            "a transaction that has begun does not see the functions of search: call "
            "warehouse.nearest.table_functions.register(lake) before it"
        )
        raise SearchError(message) from error


def _is_known(connection: duckdb.DuckDBPyConnection) -> bool:
    """Tell whether a connection has the macros."""
    try:
        connection.execute("DESCRIBE FROM novelty('')")
    except duckdb.CatalogException:
        return False
    return True


def fault(lake: Lake) -> Exception | None:
    """Return, and forget, the error that ended a search inside the last query, as it was before DuckDB wrapped it."""
    searches = _OPEN.get(lake)
    if searches is None:
        return None
    found, searches.fault = searches.fault, None
    return found


class Searches:
    """The searchers of one lake, one a feature set, recipe and level, and what answers from them.

    Args:
        lake: whose connection runs the queries. It is read through a second connection to the same database.
    """

    def __init__(self, lake: Lake) -> None:
        self.fault: Exception | None = None
        self._lake = Lake(address.parse(lake.address), lake.connection.cursor(), True, lake.as_of)
        self._lake.connection.execute("USE lake.main")
        # DuckDB calls from several threads, and a searcher's connection serves one.
        self._lock = threading.Lock()
        self._moment: Hashable = None
        self._snapshot: int | None = None
        self._searchers: dict[Hashable, Searcher] = {}
        functions: dict[str, tuple[Callable[..., pa.Array], list[str]]] = {
            "nearest": (self.nearest, ["VARCHAR", "VARCHAR"]),
            "nearest_to_vector": (self.nearest_to_vector, ["FLOAT[]"]),
            "neighbours": (self.neighbours, []),
            "similar_pairs": (self.similar_pairs, []),
            "novelty": (self.novelty, []),
        }
        for name, (function, own) in functions.items():
            columns = COLUMNS.get(name, COLUMNS["nearest"])
            arguments: list[Any] = [*own, *_SETTINGS.values()]
            # All connections to a database have its functions, and this one is never inside a transaction that ends.
            self._lake.connection.create_function(
                f"_{name}", _weakly(function, len(arguments)), arguments,
                duckdb.list_type(duckdb.struct_type(columns)), type=PythonUDFType.ARROW,
                # With side effects, so to speak: it is called when the query runs, once, and not when it is planned.
                null_handling=FunctionNullHandling.SPECIAL, side_effects=True,
            )  # fmt: skip

    def nearest(self, *columns: pa.ChunkedArray) -> pa.Array:
        """Answer queries by name, by well or by wells: kind and text, then the settings."""

        def make(searcher: Searcher, kind: str, text: str) -> Query:
            return {"name": searcher.query, "well": searcher.well, "wells": searcher.wells}[kind](text)

        return self._answer("nearest", columns, 2, make)

    def nearest_to_vector(self, *columns: pa.ChunkedArray) -> pa.Array:
        """Answer queries by vector: the vector, then the settings."""

        def make(searcher: Searcher, vector: list[float | None]) -> Query:
            return searcher.vector(np.array(vector, dtype=np.float32))

        return self._answer("nearest_to_vector", columns, 1, make)

    def neighbours(self, *columns: pa.ChunkedArray) -> pa.Array:
        """Return the graph of nearest neighbours, one list for each row of settings."""
        return self._whole(
            "neighbours", columns, lambda searcher, given: searcher.graph(given["k"], _filters(given))
        )

    def similar_pairs(self, *columns: pa.ChunkedArray) -> pa.Array:
        """Return all pairs above a threshold, one list for each row of settings."""
        return self._whole(
            "similar_pairs", columns, lambda searcher, given: searcher.pairs(given["threshold"], _filters(given))
        )  # fmt: skip

    def novelty(self, *columns: pa.ChunkedArray) -> pa.Array:
        """Return how new each row without a label is, one list for each row of settings."""
        return self._whole("novelty", columns, lambda searcher, given: searcher.novelty(given["labels"]))

    def _answer(
        self, function: str, columns: Sequence[pa.ChunkedArray], own: int, make: Callable[..., Query]
    ) -> pa.Array:
        """Search for every row whose query is not NULL; those with the same settings as one batch."""
        asked = list(zip(*(column.to_pylist() for column in columns[:own]), strict=True))
        rows = [row for row, one in enumerate(asked) if None not in one]

        def answer(searcher: Searcher, given: dict[str, Any], at: list[int]) -> pl.DataFrame:
            # A join may ask the same thing many times; two vectors have one name.
            keys = {row: repr(asked[row]) for row in at}
            first = {key: row for row, key in reversed(keys.items())}
            queries = [replace(make(searcher, *asked[row]), name=key) for key, row in first.items()]
            found = searcher.nearest_many(queries, given["k"], _filters(given), opposite=given["opposite"])
            of = pl.DataFrame(
                {_ROW: list(keys), "query": list(keys.values())}, schema_overrides={_ROW: pl.Int64}
            )
            return of.join(found, on="query", maintain_order="left_right")

        return self._lists(function, COLUMNS["nearest"], columns[own:], rows, answer)

    def _whole(
        self,
        function: str,
        columns: Sequence[pa.ChunkedArray],
        table: Callable[[Searcher, dict[str, Any]], pl.DataFrame],
    ) -> pa.Array:
        """Return one whole table for each row of settings."""

        def answer(searcher: Searcher, given: dict[str, Any], at: list[int]) -> pl.DataFrame:
            frame = table(searcher, given)
            return pl.concat(frame.with_columns(pl.lit(row, pl.Int64).alias(_ROW)) for row in at)

        return self._lists(function, COLUMNS[function], columns, range(len(columns[0])), answer)

    def _lists(
        self,
        function: str,
        schema: dict[str, str],
        settings: Sequence[pa.ChunkedArray],
        rows: Sequence[int],
        answer: Callable[[Searcher, dict[str, Any], list[int]], pl.DataFrame],
    ) -> pa.Array:
        """Answer rows in groups with the same settings; return one list for each row of the chunk."""
        values = list(zip(*(column.to_pylist() for column in settings), strict=True))
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row in rows:
            groups.setdefault(values[row], []).append(row)
        frames = []
        try:
            for one, at in groups.items():
                given = dict(zip(_SETTINGS, one, strict=True))
                _refuse_null(function, given)
                with self._lock:
                    frames.append(_conformed(answer(self._searcher(given), given, at), schema))
        except Exception as error:
            self.fault = error
            raise
        return _packed(frames, schema, len(values))

    def _searcher(self, given: dict[str, Any]) -> Searcher:
        """Return the searcher of these settings: one for all calls of a statement, of a snapshot no older than it."""
        if given["moment"] != self._moment:
            snapshot = self._lake.snapshot()
            if snapshot != self._snapshot:
                self._searchers.clear()
            self._moment, self._snapshot = given["moment"], snapshot
        key = tuple(given[name] for name in ("feature_set", "recipe", "level", "device"))
        if key not in self._searchers:
            self._searchers[key] = Searcher(self._lake, *key)
        return self._searchers[key]


#: What was registered on which lake; it goes with the lake.
_OPEN: WeakKeyDictionary[Lake, Searches] = WeakKeyDictionary()


def _weakly(method: Callable[..., pa.Array], count: int) -> Callable[..., pa.Array]:
    """Make a function of `count` arguments that does not hold what it is a method of: that holds the database."""
    weak = WeakMethod(method)

    def call(*columns: pa.ChunkedArray) -> pa.Array:
        strong = weak()
        if strong is None:
            message = "the lake whose functions these are was closed: open it again"
            raise SearchError(message)
        return strong(*columns)

    # DuckDB counts what a function takes.
    names = (Parameter(f"column_{number}", Parameter.POSITIONAL_ONLY) for number in range(count))
    call.__signature__ = Signature(list(names))  # type: ignore[attr-defined]
    return call


def _filters(given: dict[str, Any]) -> Filters:
    names = ("not_same_compound", "not_same_batch", "not_same_plate", "not_same_position")
    return Filters(**{name: given[name] for name in names}, where=given["predicate"])


def _refuse_null(function: str, given: dict[str, Any]) -> None:
    missing = next((name for name, value in given.items() if value is None and name != "predicate"), None)
    if missing is not None:
        message = f"{function}(): {missing} is NULL: give a value, or leave it out for its default"
        raise SearchError(message)


def _conformed(frame: pl.DataFrame, schema: dict[str, str]) -> pl.DataFrame:
    """Bring a table to the columns of its function, NULL where its level lacks one; the number of the row stays."""
    present = set(frame.columns)
    return frame.select(
        _ROW,
        *(pl.col(name) if name in present else pl.lit(None).alias(name) for name in schema),
    ).cast({name: _TYPES[kind] for name, kind in schema.items()})


def _packed(frames: Sequence[pl.DataFrame], schema: dict[str, str], rows: int) -> pa.Array:
    """Put tables into one array of lists: for each of `rows` rows those that carry its number, in their order."""
    empty = pl.DataFrame(schema={_ROW: pl.Int64, **{name: _TYPES[kind] for name, kind in schema.items()}})
    whole = pl.concat([empty, *frames]).sort(_ROW, maintain_order=True)
    offsets = np.searchsorted(whole[_ROW].to_numpy(), np.arange(rows + 1)).astype(np.int32)
    records = whole.drop(_ROW).to_struct("row").to_arrow(compat_level=pl.CompatLevel.oldest())
    return pa.ListArray.from_arrays(pa.array(offsets), records)
