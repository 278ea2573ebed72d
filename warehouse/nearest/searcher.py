"""A level of a feature set, opened to be searched: queries of every kind, answers with what they are worth."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse import feature_sets, profiles
from warehouse.aggregate import aggregate
from warehouse.errors import SearchError
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.nearest import indexes, tables
from warehouse.nearest.answers import Answer, Known
from warehouse.nearest.filters import Filters, Query, Sharing, check_k, meeting
from warehouse.nearest.level_rows import STORED, refuse_missing
from warehouse.profiles import IDS, LABEL_KINDS, Profiles
from warehouse.search import Found, Mask
from warehouse.search.vectors import Rows, unit_rows
from warehouse.sqltext import literal

#: Columns that are read of the profiles, and not of what is searched.
_OF_THE_LAKE = ("passing_share", "embedding")


class Searcher:
    """Search one level of a feature set under a recipe.

    Attributes:
        feature_set: searched.
        recipe: as it was fitted, or `none`.
        level: of `profiles.LEVELS`.
        rows: metadata of the level, row i being row i of `index`; labels are in `labelled_rows`.
        index: the vectors.
        sharing: which rows have a compound, a batch, a plate or a position.
        note: what to tell of how it is searched (no index yet, say), or None.
    """

    def __init__(
        self,
        lake: Lake,
        feature_set: str,
        recipe: str = "none",
        level: str = "treatment",
        device: str = "cpu",
    ) -> None:
        """Open the index of a level, or read the level out of the lake where there is none.

        Args:
            lake: an open lake, of the newest snapshot or of any; it must stay open.
            feature_set: its name.
            recipe: steps or name of a recipe that was fitted.
            level: of `profiles.LEVELS`.
            device: `cpu` or `gpu`.

        Raises:
            UnknownNameError: no such feature set, level or device.
            RecipeError: the recipe was never fitted, or plates wait for it.
            SearchError: there is nothing to search, a profile cannot be compared, or the device is not there.
        """
        self._lake = lake
        self.level = level
        with lake.reading():
            self.feature_set, self.recipe = indexes.resolved(lake, feature_set, recipe, level)
            found = indexes.opened(lake, self.feature_set, self.recipe, level, device)
            self._fitted_at = indexes.fitted_at(lake, self.feature_set, self.recipe)
        self.index, self.rows, null, self.note = found
        self._known = Known(lake, level, self.index, self.rows, null)
        self.sharing = Sharing(self.rows)
        self._where: tuple[str, Mask] | None = None

    @property
    def labelled_rows(self) -> pl.DataFrame:
        """The rows with their labels, as they were when first asked for."""
        return self._known.labelled_rows

    def query(self, text: str) -> Query:
        """Search with a row of this level by its name; or, at levels below, with all wells of a treatment.

        Args:
            text: the ids of a row joined by `/` (a treatment's or compound's name), or the name of a treatment.

        Raises:
            UnknownNameError: there is none; the nearest names are offered.
        """
        ids = IDS[self.level]
        parts = text.split("/")
        if len(ids) == 1:
            if text not in self._row_of:
                raise unknown(text, self.level, self._row_of)
            return self._of_row(self._row_of[text])
        if len(parts) == len(ids):
            is_it = pl.all_horizontal(pl.col(name) == part for name, part in zip(ids, parts, strict=True))
            there = self.rows.select(is_it.arg_true()).to_series().to_numpy()
            there = there[self.index.alive[there]]
            if len(there):
                return self._of_row(int(there[0]))
        known = self.rows["treatment"].drop_nulls().unique().sort().to_list()
        if text not in known:
            raise unknown(text, f"{self.level} ({'/'.join(ids)}) or treatment", known)
        found = replace(self.wells(f"treatment = {literal(text)}"), name=text)
        if self.level in STORED:
            return found
        own = self.rows.select((pl.col("treatment") == text).arg_true()).to_series()
        return replace(found, rows=tuple(own.to_list()))

    def well(self, text: str) -> Query:
        """Search with one well.

        Args:
            text: source/batch/plate/well; or plate/well, where that is one well.

        Raises:
            SearchError: the text is neither, or names several wells.
            UnknownNameError: no such well.
        """
        names = ("source", "batch", "plate", "well")
        parts = text.split("/")
        if len(parts) not in (2, 4):
            message = f"well {text!r}: name it as source/batch/plate/well, or as plate/well"
            raise SearchError(message)
        chosen = list(zip(names[-len(parts) :], parts, strict=True))
        where = " AND ".join(f"{name} = {literal(part)}" for name, part in chosen)
        table = self._profiles_of_wells(where)
        if table.rows.is_empty():
            near = self._profiles_of_wells(f"well = {literal(parts[-1])}")
            raise unknown(
                text, "well with a profile", ["/".join(row) for row in near.rows.select(names).rows()]
            )
        if len(table.rows) > 1:
            found = ", ".join("/".join(row) for row in table.rows.select(names).rows())
            message = (
                f"well {text!r} is {len(table.rows)} wells ({found}): name it as source/batch/plate/well"
            )
            raise SearchError(message)
        return self._of_wells(table, text)

    def wells(self, where: str) -> Query:
        """Search with a profile made on the spot of a set of wells, by the feature set's treatment operator.

        Args:
            where: an SQL predicate over the columns of `well_profiles`.

        Raises:
            ProfileError: it is no predicate.
            SearchError: no well meets it, or one misses an element.
        """
        table = self._profiles_of_wells(where)
        if table.rows.is_empty():
            message = f"no well of feature set {self.feature_set.name!r} meets {where!r}: look at its quotes and names"
            raise SearchError(message)
        return self._of_wells(table, f"{len(table.rows)} wells")

    def vector(self, values: NDArray[np.floating] | Sequence[float], name: str = "vector") -> Query:
        """Search with a vector that is not of the lake.

        Args:
            values: (d,) in the space of the recipe.
            name: for people.

        Raises:
            SearchError: it has another length, is zero, or is not finite.
        """
        try:
            found = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            message = f"{name} is no list of numbers ({error}): give {self.index.dim} of them"
            raise SearchError(message) from error
        if found.shape != (self.index.dim,):
            message = (
                f"{name} has shape {found.shape}; feature set {self.feature_set.name!r} under recipe "
                f"{self.recipe.typed!r} has vectors of {self.index.dim} elements"
            )
            raise SearchError(message)
        return Query(name, unit_rows(found[None, :], lambda _: name, "query")[0])

    def nearest(
        self,
        query: Query,
        k: int = 20,
        filters: Filters | None = None,
        *,
        opposite: bool = False,
        labels: Sequence[str] | None = None,
    ) -> Answer:
        """Find the rows most similar to a query by cosine; every filter acts before the ranking.

        Args:
            query: made by one of the methods above.
            k: how many; fewer come back only where fewer are allowed.
            filters: what a neighbour must not share, and must be.
            opposite: find the most dissimilar rows instead, the most dissimilar first.
            labels: kinds whose enrichment is looked at; None for all, or where rows are more than five million none.

        Raises:
            SearchError: k is below 1, or a filter does not apply to this query.
            ProfileError: the predicate is none.
        """
        found, allowed, (left_out,) = self._found([query], k, filters, opposite)
        mask = self.index.alive if allowed is None else self.index.alive & allowed
        if left_out:
            mask = mask.copy()
            for rows in left_out:
                mask[rows] = False
        is_there = found.rows[0] >= 0
        neighbours = self._known.described(
            np.zeros(int(is_there.sum()), dtype=np.intp), found.rows[0][is_there], found.similarities[0][is_there],
            [query], opposite,
        ).drop("query")  # fmt: skip
        hits = found.rows[0][is_there]
        enrichment = self._known.enrichment(hits, mask, labels)
        return Answer(query.name, neighbours, int(mask.sum()), enrichment, self._notes(neighbours))

    def nearest_many(
        self, queries: Sequence[Query], k: int = 20, filters: Filters | None = None, *, opposite: bool = False
    ) -> pl.DataFrame:
        """Find the nearest rows of many queries at once.

        Returns:
            As `Answer.neighbours` of each, one after the other, with the column `query` before.

        Raises:
            SearchError: as `nearest`.
        """
        found, _, _ = self._found(queries, k, filters, opposite)
        of, at = np.nonzero(found.rows >= 0)
        return self._known.described(of, found.rows[of, at], found.similarities[of, at], queries, opposite)

    def _found(
        self, queries: Sequence[Query], k: int, filters: Filters | None, opposite: bool
    ) -> tuple[Found, Mask | None, list[list[Rows]]]:
        """Search; and say which rows meet the predicate, and which each query was not to have."""
        check_k(k)
        if not queries:
            message = "no query was given: name one or more"
            raise SearchError(message)
        filters = filters or Filters()
        allowed = self.allowed(filters)
        left_out = [self.sharing.left_out(query, filters) for query in queries]
        sign = -1.0 if opposite else 1.0
        vectors = sign * np.stack([query.vector for query in queries])
        found = self.index.search(vectors, min(k, len(self.index)), allowed, left_out)
        return Found(sign * found.similarities, found.rows), allowed, left_out

    def allowed(self, filters: Filters) -> Mask | None:
        """Tell which rows meet the predicate of filters, (n,) booleans; None where there is no predicate."""
        if filters.where is None:
            return None
        if self._where is None or self._where[0] != filters.where:
            with self._lake.reading():
                self._where = (filters.where, self._meeting(filters.where))
        return self._where[1]

    def graph(self, k: int = 20, filters: Filters | None = None) -> pl.DataFrame:
        """Find the k nearest neighbours of every row: see `tables.graph`."""
        return tables.graph(self, k, filters)

    def pairs(self, threshold: float, filters: Filters | None = None) -> pl.DataFrame:
        """Find all pairs of rows that are at least so similar, each once: see `tables.pairs`."""
        return tables.pairs(self, threshold, filters)

    def novelty(self, kind: str = "moa") -> pl.DataFrame:
        """Ask which rows are unlike anything annotated: see `tables.novelty`."""
        return tables.novelty(self, kind)

    def queries_of(self, rows: NDArray[np.integer]) -> list[Query]:
        """Make a query of each of these rows of the index."""
        return [self._of_row(int(row)) for row in rows]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        """Row numbers by name, of a level whose rows have one."""
        return {name: row for row, name in enumerate(self.rows[IDS[self.level][0]].to_list())}

    def _meeting(self, where: str) -> Mask:
        said = where.lower()
        if not any(name in said for name in _OF_THE_LAKE):
            rows = self.labelled_rows if any(kind in said for kind in LABEL_KINDS) else self.rows
            return meeting(self._lake, rows, where)
        # These are not among what is searched: the lake is asked.
        ids = list(IDS[self.level])
        kept = profiles.rows(self._lake, self.feature_set.name, self.recipe.name, self.level, where).select(
            ids
        )
        kept = kept.with_columns(there=pl.lit(True))
        joined = self.rows.select(ids).join(kept, on=ids, how="left", maintain_order="left")
        return joined["there"].is_not_null().to_numpy()

    def _of_row(self, row: int) -> Query:
        known = self.rows.row(row, named=True)
        single = {
            "batches": ("source", "batch"),
            "plates": ("source", "batch", "plate"),
            "positions": ("well",),
        }
        held = {
            name: frozenset(known[name] or ())
            if name in known
            else frozenset(["/".join(known[one] for one in of)] if set(of) <= known.keys() else [])
            for name, of in single.items()
        }
        compounds = frozenset([known["compound"]] if known.get("compound") is not None else [])
        name = "/".join(str(known[one]) for one in IDS[self.level])
        vector = self.index.vectors([row])[0]
        return Query(name, vector, (row,), compounds, held["batches"], held["plates"], held["positions"])

    def _profiles_of_wells(self, where: str) -> Profiles:
        with self._lake.reading():
            if indexes.fitted_at(self._lake, self.feature_set, self.recipe) != self._fitted_at:
                message = f"recipe {self.recipe.typed!r} was fitted anew since this search was opened: open it again"
                raise SearchError(message)
            return profiles.read(
                self._lake, self.feature_set.name, recipe=self.recipe.name, level="well", where=where
            )

    def _of_wells(self, table: Profiles, name: str) -> Query:
        refuse_missing(table.rows, table.matrix, "well", self.recipe)
        operator = feature_sets.operators(self._lake.connection, self.feature_set.name)["treatment_operator"]
        _, made = aggregate(np.zeros(len(table.matrix), dtype=np.int64), table.matrix, operator)
        unit_rows(made, lambda _: name, "query")

        def texts(*columns: str) -> frozenset[str]:
            return frozenset(
                table.rows.select(pl.concat_str(columns, separator="/")).to_series().drop_nulls().to_list()
            )

        own: tuple[int, ...] = ()
        if self.level in STORED:
            keys = list(IDS["well"])
            found = (
                self.rows.select(keys)
                .with_row_index("row")
                .join(table.rows.select(keys), on=keys, how="semi")
            )
            own = tuple(found["row"].to_list())
        shared = (texts("source", "batch"), texts("source", "batch", "plate"), texts("well"))
        return Query(name, made[0].astype(np.float32), own, texts("compound"), *shared)

    def _notes(self, neighbours: pl.DataFrame) -> tuple[str, ...]:
        notes = [] if self.note is None else [self.note]
        if len(neighbours) and len(self._known.null) == 0:
            notes.append("there are no p-values: too few negative controls to compare with")
        structure = self.index.structure
        if structure is not None:
            kind, recall = structure.settings.kind, structure.settings.recall
            notes.append(
                f"candidates came from an index of kind {kind}, which finds {recall:.1%} of the nearest 20"
            )
        return tuple(notes)
