"""What an answer says of the rows that were found: labels, replicates, p-values, labels that the list is rich in."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.nearest import controls, statistics
from warehouse.nearest.filters import Query
from warehouse.nearest.labels import labelled
from warehouse.nearest.level_rows import STORED
from warehouse.nearest.statistics import LabelIndex
from warehouse.profiles import IDS, LABEL_KINDS
from warehouse.search import Index, Mask
from warehouse.search.vectors import Rows, Vectors, cosines, unit_rows

#: Metadata of a neighbour that an answer carries, after its ids, as far as its level has them.
_ANSWER = ("treatment", "compound", "concentration", "unit", "control_type", "well_count", "batch_count")
#: Rows whose labels are read all at once, for the answers that come; of more, those of an answer alone.
_LABELLED = 5_000_000
#: Wells of a treatment whose cosines with a neighbour are looked at, and neighbours that this is done for at once.
_REPLICATES, _AT_ONCE = 24, 1024


@dataclass(frozen=True)
class Answer:
    """The nearest rows of a query, or its most unlike.

    Attributes:
        query: what was asked with.
        neighbours: rank; similarity (cosine); p_value, the share of control profiles that are as similar; the level's
            ids; treatment, compound, concentration, unit, control_type, well_count (replicates), batch_count,
            replicate_cosine, moa, target, pathway, gene_family, as far as the level has them. Nearest first, equally
            near ones by their ids.
        allowed: how many rows the filters left to choose from.
        enrichment: labels of the list, see `statistics.enrichment`.
        notes: what the asker should know of how it was answered.
    """

    query: str
    neighbours: pl.DataFrame
    allowed: int
    enrichment: pl.DataFrame
    notes: tuple[str, ...]


class Known:
    """What is known of the rows of a level.

    Attributes:
        rows: their metadata, row i being row i of the index.
    """

    def __init__(self, lake: Lake, level: str, index: Index, rows: pl.DataFrame, null: Vectors) -> None:
        """Keep what answers are made of.

        Args:
            lake: an open lake, for labels.
            level: of `profiles.LEVELS`.
            index: of the level.
            rows: its metadata.
            null: (c, d) profiles of controls, of a level above wells; of others they are rows of the index.
        """
        self.rows = rows
        self._lake, self._level, self._index, self._above = lake, level, index, null
        self._label_indexes: dict[str, LabelIndex] = {}

    @cached_property
    def labelled_rows(self) -> pl.DataFrame:
        """The rows with their labels, as they were when first asked for."""
        return labelled(self._lake, self.rows)

    @cached_property
    def null(self) -> Vectors:
        """Profiles of negative controls, (c, d) of length 1."""
        if self._level in STORED:
            return self._index.vectors(self._drawn)
        return unit_rows(self._above, str, "control profile") if len(self._above) else self._above

    @cached_property
    def _drawn(self) -> Rows:
        """Rows that are the null; none above wells, where no row is among the profiles that are."""
        if self._level not in STORED:
            return np.empty(0, np.int64)
        return controls.control_rows(self._lake, self.rows, self._level, self._index.alive)

    def enrichment(self, hits: Rows, allowed: Mask, kinds: Sequence[str] | None) -> pl.DataFrame:
        """Ask which labels a list is rich in: see `statistics.enrichment`.

        Args:
            hits: rows of the list.
            allowed: (n,) rows that it was chosen from.
            kinds: of label; None for all, or where rows are more than five million none.

        Raises:
            UnknownNameError: no such kind of label.
        """
        if kinds is None:
            kinds = LABEL_KINDS if len(self.rows) <= _LABELLED else ()
        for kind in kinds:
            if kind not in LABEL_KINDS:
                raise unknown(kind, "kind of label", LABEL_KINDS)
            if kind not in self._label_indexes:
                self._label_indexes[kind] = LabelIndex.of(self.labelled_rows[kind], kind)
        tables = [statistics.enrichment(self._label_indexes[kind], hits, allowed) for kind in kinds]
        return pl.concat([pl.DataFrame(schema=statistics.ENRICHMENT), *tables])

    def described(
        self,
        of: NDArray[np.intp],
        rows: Rows,
        similarities: Vectors,
        queries: Sequence[Query],
        opposite: bool,
    ) -> pl.DataFrame:
        """Say what is known of neighbours: of which query, which rows, how similar; those of a query together."""
        known = self._labelled(rows)
        if "well_count" not in known.columns:
            known = self._with_replicates(known, rows)
        first = np.flatnonzero(np.diff(of, prepend=-1))
        ends = np.append(first, len(of))[1:]
        starts = np.repeat(first, ends - first)
        p_values = np.full(len(rows), np.nan)
        for begin, end in zip(first, ends, strict=True):
            null = self._controls(queries[of[begin]])
            p_values[begin:end] = statistics.empirical_p(similarities[begin:end], null, opposite)
        ids = IDS[self._level]
        columns = [*ids, *(name for name in _ANSWER if name not in ids), "replicate_cosine", *LABEL_KINDS]
        return known.select(
            pl.Series("query", [queries[i].name for i in of], dtype=pl.String),
            pl.Series("rank", np.arange(len(of)) - starts + 1, dtype=pl.Int64),
            pl.Series("similarity", similarities, dtype=pl.Float32),
            pl.Series("p_value", p_values, dtype=pl.Float64).fill_nan(None),
            *(name for name in columns if name in known.columns),
        )

    def _labelled(self, rows: Rows) -> pl.DataFrame:
        """Return the metadata of rows with their labels, of very many rows only those of these."""
        if len(self.rows) <= _LABELLED:
            return self.labelled_rows[rows]
        return labelled(self._lake, self.rows[rows])

    def _controls(self, query: Query) -> Vectors:
        """Compare a query with the control profiles, but for those that it is, or is made of."""
        if len(self.null) == 0:
            return np.empty(0, np.float32)
        others = np.arange(len(self.null))
        if len(self._drawn):
            others = others[~np.isin(self._drawn, query.rows)]
        vector = unit_rows(query.vector[None, :], str, "query")
        found: Vectors = cosines(self.null, others[None, :], vector)[0]
        return found

    def _with_replicates(self, known: pl.DataFrame, rows: Rows) -> pl.DataFrame:
        """Say of rows below treatments how many wells their treatment has, and how like them they are."""
        same = self.rows.lazy().with_row_index("row").filter(
            pl.col("treatment").is_in(known["treatment"].drop_nulls().unique().to_list())
        ).collect()  # fmt: skip
        same = same.filter(pl.Series(self._index.alive[same["row"].to_numpy()], dtype=pl.Boolean))
        wells = same.group_by("treatment").agg(
            pl.struct("source", "batch", "plate", "well").n_unique().cast(pl.Int64).alias("well_count")
        )
        known = known.join(wells, on="treatment", how="left", maintain_order="left")
        if self._level != "well":
            return known
        # A well may be among the first of its treatment: one more is kept, and the last or the well itself dropped.
        first = same.sort(*IDS["well"]).group_by("treatment").agg(pl.col("row").head(_REPLICATES + 1))
        asked, back = np.unique(rows, return_inverse=True)
        lists = self.rows[asked].select("treatment").join(
            first, on="treatment", how="left", maintain_order="left"
        )["row"]  # fmt: skip
        places = np.arange(_REPLICATES + 1)
        others = np.full((len(asked), len(places)), -1, dtype=np.int64)
        others[places < lists.list.len().fill_null(0).to_numpy()[:, None]] = (
            lists.explode().drop_nulls().to_numpy()
        )
        order = np.argsort(others == asked[:, None], axis=1, kind="stable")[:, :_REPLICATES]
        others = np.take_along_axis(others, order, axis=1)
        middle = np.empty(len(asked), np.float64)
        for begin in range(0, len(asked), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            middle[part] = self._middle(asked[part], others[part])
        return known.with_columns(pl.Series("replicate_cosine", middle[back]).fill_nan(None))

    def _middle(self, rows: Rows, others: Rows) -> Vectors:
        """Median cosine of each row with others of its own, (n, c) and -1 where there are fewer; NaN of none."""
        read, at = np.unique(np.maximum(others, 0), return_inverse=True)
        near = cosines(self._index.vectors(read), at.reshape(others.shape), self._index.vectors(rows))
        near[others < 0] = np.inf
        near.sort(axis=1)
        count = (others >= 0).sum(axis=1)
        row = np.arange(len(rows))
        middle: Vectors = (near[row, np.maximum(count - 1, 0) // 2] + near[row, count // 2]) / 2
        return np.where(count > 0, middle, np.float32(np.nan))
