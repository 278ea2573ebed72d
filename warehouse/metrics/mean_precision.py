"""Means of average precision over queries and over groups, with what chance says of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.metrics.null import Null, normalised
from warehouse.metrics.passes import Block, Vectors
from warehouse.metrics.ranking import Ranking
from warehouse.metrics.relations import Groups, Relation
from warehouse.metrics.score import Labels, Score, check_length, count_reasons, label_sets, require_queries
from warehouse.names import unknown

Reasons = list[str | None]
Batches = Sequence[Collection[str]]

LAYOUTS = ("profile", "label")
#: Column of the groups' numbers while p-values are made; a name that no column has.
NUMBER = "\0"


@dataclass(frozen=True)
class Chance:
    """How p-values are made: draws of chance (0: none), their seed, and whether equal draws count."""

    null: int
    seed: int
    count_equal: bool

    def groups(self, queries: pl.DataFrame, names: list[str]) -> pl.DataFrame:
        """Mean of the queries of each group, which `names` name, with what chance says of it."""
        mean = [pl.col("value").mean(), pl.len().cast(pl.Int64).alias("n_queries")]
        normal = pl.col("normalised_value").drop_nulls().mean()
        groups = queries.group_by(names).agg(*mean, normal).sort(names).with_row_index(NUMBER)
        of = queries.join(groups.select(NUMBER, *names), on=names)
        p_values = Null(self.null, self.seed).p_values(
            *(of[NUMBER].cast(pl.Int64).to_numpy(), groups["value"].to_numpy()),
            *(of["n_matches"].to_numpy(), of["n_total"].to_numpy()),
            count_equal=self.count_equal,
        )
        from warehouse.nearest.statistics import adjusted

        return groups.drop(NUMBER).with_columns(
            pl.Series("p_value", p_values, nan_to_null=True),
            pl.Series("q_value", adjusted(p_values), nan_to_null=True),
        )


class LabelPrecision:
    """Plan of the metrics of labels: queries share them with their matches.

    Args:
        vectors: n of them.
        sets: n sets of labels.
        relation: what is compared.
        reasons: why a row is no query, None for queries; what has no match is added.
        name: of the metric; group: what its labels are; mean: `query` or `group`, what the value is the mean of.
        ties: of `ranking.TIES`.
        chance: of the p-values.
        layout: `profile`, or `label` for a value for each profile and label.
        no_match: the reason of rows without.
    """

    def __init__(
        self,
        vectors: Vectors,
        sets: list[frozenset[str]],
        relation: Relation,
        reasons: Reasons,
        *,
        name: str,
        group: str,
        ties: str,
        chance: Chance,
        mean: str = "query",
        layout: str = "profile",
        no_match: str = "no match",
    ) -> None:
        if layout not in LAYOUTS:
            raise unknown(layout, "layout", LAYOUTS)
        self._ranking = Ranking(vectors, relation, ties, by_group=layout == "label")
        self.rows_needed, self.columns_needed = relation.queries, relation.library
        self._sets, self._reasons, self._chance = sets, reasons, chance
        self._name, self._group, self._mean, self._layout = name, group, mean, layout
        self._no_match = no_match

    def take(self, block: Block) -> None:
        """Rank the queries of a block."""
        self._ranking.take(block)

    def score(self) -> Score:
        """Mean over the queries, or over the groups."""
        reasons = list(self._reasons)
        ranking = self._ranking
        for row in np.flatnonzero(ranking.relation.queries & (ranking.matches == 0)):
            reasons[row] = self._no_match
        left = count_reasons(reasons)
        rows = np.flatnonzero(ranking.matches)
        queries = by_query(rows, ranking.value[rows], ranking.matches[rows], ranking.total[rows])
        require_queries(self._name, len(queries), left)
        if self._layout == "label":
            queries = self._by_label()
            grouped = queries
        else:
            place, group = ranking.relation.match.entries(rows)
            label = self._names().gather(group)
            grouped = queries[place].with_columns(label.alias(self._group))
        groups = self._chance.groups(grouped, [self._group])
        source = queries if self._mean == "query" else groups
        value = float(source["value"].to_numpy().mean())
        return Score(value, len(source), None, queries, groups, left, self._mean)

    def _names(self) -> pl.Series:
        """Labels by their code."""
        return pl.Series(sorted({label for labels in self._sets for label in labels}), dtype=pl.String)

    def _by_label(self) -> pl.DataFrame:
        ranking = self._ranking
        row, group, value, matches = (np.concatenate(part) for part in zip(*ranking.entries, strict=True))
        label = self._names().gather(group)
        total = ranking.total[row] - ranking.matches[row] + matches
        made = by_query(row, value, matches, total)
        return made.insert_column(1, label.alias(self._group)).sort("row", self._group)


def by_query(
    row: NDArray[np.int64], value: NDArray[np.float64], matches: NDArray[np.int64], total: NDArray[np.int64]
) -> pl.DataFrame:
    """Make `per_query` of (q,) rows, average precisions, numbers of matches, and of matches and non-matches."""
    return pl.DataFrame(
        {
            "row": row,
            "value": value,
            "normalised_value": pl.Series(normalised(value, matches, total), nan_to_null=True),
            "n_matches": matches,
            "n_total": total,
        }
    )


def plan_labels(
    vectors: Vectors,
    labels: Labels,
    name: str,
    group: str,
    mean: str,
    ties: str,
    chance: Chance,
    *,
    unless: tuple[Groups, ...] = (),
    out: tuple[Groups, ...] = (),
    across: tuple[str, Batches] | None = None,
    layout: str = "profile",
) -> LabelPrecision:
    """Compare labelled rows with each other; `across` names a key that matches must not share, and its values."""
    n = len(vectors)
    check_length("labels", labels, n)
    sets = label_sets(labels)
    reasons: Reasons = [None if row else "no label" for row in sets]
    if across is not None:
        what, values = across
        check_length({"batch": "batches", "source": "sources"}[what], values, n)
        for row, own in enumerate(values):
            if reasons[row] is None and not own:
                reasons[row] = f"no {what}"
        unless = (
            Groups.of_sets([own if why is None else () for own, why in zip(values, reasons, strict=True)]),
        )
    compared = np.array([reason is None for reason in reasons], dtype=bool)
    # A row that is not compared is no match either.
    sets = [own if reason is None else frozenset() for own, reason in zip(sets, reasons, strict=True)]
    match = Groups.of_sets(sets)
    relation = Relation(compared, compared, match, unless, (match, *out))
    return LabelPrecision(
        vectors,
        sets,
        relation,
        reasons,
        name=name,
        group=group,
        mean=mean,
        ties=ties,
        chance=chance,
        layout=layout,
        no_match="no match" if across is None else f"no match in another {across[0]}",
    )
