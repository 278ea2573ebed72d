"""How much an answer says: p-values of similarities, labels that a list is rich in, rows unlike anything annotated."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import SearchError

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

ENRICHMENT = {
    "kind": pl.String,
    "label": pl.String,
    "in_list": pl.Int64,
    "of_list": pl.Int64,
    "in_allowed": pl.Int64,
    "of_allowed": pl.Int64,
    "odds_ratio": pl.Float64,
    "p_value": pl.Float64,
    "q_value": pl.Float64,
}


@dataclass(frozen=True)
class LabelIndex:
    """The labels of one kind of all rows of an index, as codes: made once, asked for each list.

    Attributes:
        kind: moa, target, pathway or gene_family.
        names: the labels, sorted; a code is a place in it.
        codes: (e,) int64, one a pair of a row and one of its labels.
        rows: (e,) int64, the pairs' rows.
        labelled: (n,) booleans, the rows that have a label.
    """

    kind: str
    names: pl.Series
    codes: Rows
    rows: Rows
    labelled: Mask

    @classmethod
    def of(cls, column: pl.Series, kind: str | None = None) -> "LabelIndex":
        """Read a column of labels: lists of texts, or texts; NULL and an empty text mean no label.

        Args:
            column: n values. A label that a row has twice counts once.
            kind: what the labels are; the column's name where it is not given.
        """
        pairs = pl.DataFrame({"row": np.arange(len(column)), "label": column})
        if isinstance(column.dtype, pl.List):
            pairs = pairs.explode("label")
        pairs = pairs.with_columns(pl.col("label").cast(pl.String)).filter(pl.col("label") != "").unique()
        pairs = pairs.sort("row", "label").with_columns(code=pl.col("label").rank("dense").cast(pl.Int64) - 1)
        labelled = np.zeros(len(column), dtype=bool)
        rows = pairs["row"].to_numpy()
        labelled[rows] = True
        names = pairs["label"].unique().sort()
        return cls(kind or column.name, names, pairs["code"].to_numpy(), rows, labelled)

    def count(self, among: Mask) -> Rows:
        """Count the rows of each label among these, (n,) booleans to (labels,)."""
        counted: Rows = np.bincount(self.codes[among[self.rows]], minlength=len(self.names))
        return counted


def empirical_p(
    similarities: NDArray[np.floating], null: NDArray[np.floating], opposite: bool = False
) -> Floats:
    """Share of a null distribution that reaches each similarity, the similarity itself counted in.

    Args:
        similarities: (m,); NaN where there is none.
        null: (N,) similarities under the null; a NaN is none.
        opposite: count the null that is as low, instead of as high.

    Returns:
        (m,) (1 + #{null ≥ s}) / (1 + N), or ≤ for `opposite`; NaN where s is, and everywhere where N is 0.

    Source:
        Phipson & Smyth 2010: with the 1, no p-value is 0.
    """
    ordered = np.sort(null[~np.isnan(null)])
    if len(ordered) == 0:
        return np.full(len(similarities), np.nan)
    if opposite:
        reached = np.searchsorted(ordered, similarities, side="right")
    else:
        reached = len(ordered) - np.searchsorted(ordered, similarities, side="left")
    return np.where(np.isnan(similarities), np.nan, (1 + reached) / (1 + len(ordered)))


def adjusted(p_values: NDArray[np.floating]) -> Floats:
    """Benjamini–Hochberg q-values of (m,) p-values; a NaN is no test, and stays NaN.

    By hand, because importing `scipy.stats` takes longer than a search.
    """
    q_values = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]
    scaled = p_values[order] * (len(order) / np.arange(1, len(order) + 1))
    q_values[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q_values


def novelty(similarities: NDArray[np.floating], null: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Tell how unlike anything annotated rows are.

    Args:
        similarities: (m,) of each row to the nearest annotated row of another compound; NaN where there is none.
        null: (N,) the same of the annotated rows themselves.

    Returns:
        p-values (m,), the share of annotated rows that are as far from all others, and their
        Benjamini–Hochberg q-values over the rows, (m,).
    """
    p_values = empirical_p(similarities, null, opposite=True)
    return p_values, adjusted(p_values)


def enrichment(labels: LabelIndex, hits: Rows, allowed: Mask) -> pl.DataFrame:
    """Ask which labels a list has more often than chance would have it.

    Rows without a label of this kind say nothing and are not counted; a row with several counts in each.

    Args:
        labels: of all rows of the index, of one kind.
        hits: (h,) rows of the list; -1 is no row.
        allowed: (n,) booleans, the rows that the list was chosen from.

    Returns:
        One row per label of the list, by p-value, then label: kind, label, in_list of of_list rows of the list have
        it, in_allowed of of_allowed rows that were allowed; odds_ratio of that table, NULL where it is infinite or
        0 / 0 (all of the list have the label, or nothing outside it); p_value, one-sided Fisher; q_value,
        Benjamini–Hochberg over the labels of the list.

    Raises:
        SearchError: a hit is not among the allowed rows.

    Source:
        Moshkov et al. 2024 (one-sided Fisher on the nearest); Benjamini & Hochberg 1995.
    """
    listed = np.zeros(len(allowed), dtype=bool)
    listed[hits[hits >= 0]] = True
    if (listed & ~allowed).any():
        row = int(np.argmax(listed & ~allowed))
        message = f"row {row} is in the list and was not allowed in it: give the mask that the list was searched with"
        raise SearchError(message)
    in_list = labels.count(listed)
    there = np.flatnonzero(in_list)
    if len(there) == 0:
        return pl.DataFrame(schema=ENRICHMENT)
    a, k = in_list[there], labels.count(allowed)[there]
    n = int(np.count_nonzero(listed & labels.labelled))
    total = int(np.count_nonzero(allowed & labels.labelled))
    above, below = a * (total - k - (n - a)), (n - a) * (k - a)
    p_values = _fisher(a, n, k, total)
    ratio = np.divide(above, below, out=np.full(len(a), np.nan), where=below > 0)
    columns = {
        "kind": [labels.kind] * len(there),
        "label": labels.names.gather(there),
        "in_list": a,
        "of_list": [n] * len(there),
        "in_allowed": k,
        "of_allowed": [total] * len(there),
        "odds_ratio": pl.Series(ratio, nan_to_null=True),
        "p_value": p_values,
        "q_value": adjusted(p_values),
    }
    return pl.DataFrame(columns, schema=ENRICHMENT).sort("p_value", "label")


def _fisher(a: Rows, n: int, k: Rows, total: int) -> Floats:
    """P(at least a of n drawn are of the k among total), for each a and k.

    `scipy.stats.hypergeom.sf` takes 150 µs a label; here the terms of all labels are summed at once. There are at
    most as many as rows have labels.
    """
    terms = np.minimum(n, k) - a + 1
    starts = np.cumsum(terms) - terms
    of = np.repeat(np.arange(len(a)), terms)
    i = np.arange(len(of)) - starts[of] + a[of]
    drawn = _log_choose(k[of], i) + _log_choose(total - k[of], n - i) - _log_choose(total, n)
    tail: Floats = np.add.reduceat(np.exp(drawn), starts)
    return np.clip(tail, 0.0, 1.0)


def _log_choose(n: Rows | int, k: Rows | int) -> Floats:
    """Logarithm of the number of ways to choose k of n."""
    from scipy.special import betaln

    ways: Floats = -betaln(np.subtract(n, k) + 1, np.add(k, 1)) - np.log1p(n)
    return ways
