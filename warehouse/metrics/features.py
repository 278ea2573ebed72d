"""What learned features are about: their correlations with features that have a meaning."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.names import unknown

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

METHODS = ("pearson", "spearman")
#: Wells that two features must both have; with two of them, every correlation is 1 or −1.
FEWEST = 3
#: Correlations held at a time.
BLOCK = 2**22
#: Kinds of CellProfiler's measurements that are of a channel.
CHANNEL_KINDS = ("Intensity", "Texture", "Granularity", "RadialDistribution", "Correlation", "Location")
_SCHEMA = {
    "place": pl.Int64,
    "group": pl.String,
    "rank": pl.Int64,
    "named": pl.String,
    "correlation": pl.Float64,
    "n": pl.Int64,
}


def feature_correlation(
    learned: NDArray[np.floating],
    named: NDArray[np.floating],
    learned_names: Sequence[str],
    named_names: Sequence[str],
    top: int = 5,
    *,
    method: str = "pearson",
    groups: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """Find the named features that each learned feature goes with most, whichever way.

    Args:
        learned: (n, d) learned features of n wells.
        named: (n, m) features that have a meaning, of the same wells in the same order.
        learned_names: d names.
        named_names: m names.
        top: how many a learned feature (and group) gets, by |correlation|; of equals the first by name.
        method: `pearson` or `spearman` (of ranks, equals sharing their mean rank).
        groups: m groups of the named features, such as a column of `cellprofiler_groups`, None for a feature that is
            in none and left out; then the best of each group are given, ranked in it.

    Returns:
        One row a learned feature and rank: learned, (group,) rank from 1, named, correlation (with its sign), n
        (wells that both have). Fewer rows where fewer features correlate. A missing element (NaN) leaves its well
        out of the correlations of that feature, and of no other (pairwise complete). A feature that is constant
        over the wells of a pair, or has fewer than 3 of them, correlates with nothing: a learned feature without
        any correlation keeps one row, with NULL; `without_correlation` names such features on both sides.

    Raises:
        EvaluationError: the shapes do not fit each other or the names, a name is there twice, an element is
            infinite, or `top` is below 1.
        UnknownNameError: the method is in no list.

    Source:
        Bray et al. 2022, "Feature interpretation" and Fig. 4.
    """
    _check(learned, named, learned_names, named_names, top, method)
    if groups is not None and len(groups) != len(named_names):
        message = f"{len(groups)} groups for {len(named_names)} named features: give one per feature, in the same order"
        raise EvaluationError(message)
    by_name = np.argsort(np.asarray(named_names, dtype=str), kind="stable")
    members = {None: by_name} if groups is None else _members(groups, by_name)
    found: dict[str, list[object]] = {
        "place": [],
        "group": [],
        "rank": [],
        "named": [],
        "correlation": [],
        "n": [],
    }
    has_any = np.zeros(len(learned_names), dtype=bool)
    for columns, R, n in _blocks(learned, named, method):
        for group, among in members.items():
            size = np.abs(np.round(R[:, among], 12))
            size[np.isnan(size)] = -1
            order = np.argsort(-size, axis=1, kind="stable")[:, :top]
            for row, best in enumerate(order):
                kept = among[best[size[row, best] >= 0]]
                has_any[columns[row]] |= len(kept) > 0
                found["place"] += [columns[row]] * len(kept)
                found["group"] += [group] * len(kept)
                found["rank"] += range(1, len(kept) + 1)
                found["named"] += [named_names[int(place)] for place in kept]
                found["correlation"] += R[row, kept].tolist()
                found["n"] += n[row, kept].tolist()
    for place in np.flatnonzero(~has_any):
        for column, value in zip(found, (place, None, 1, None, None, None), strict=True):
            found[column].append(value)
    table = pl.DataFrame(found, schema=_SCHEMA).sort("place", "group", "rank")
    names = pl.Series("learned", list(learned_names), dtype=pl.String)
    table = table.select(names.gather(table["place"]), pl.exclude("place"))
    return table if groups is not None else table.drop("group")


def without_correlation(X: NDArray[np.floating], names: Sequence[str]) -> dict[str, list[str]]:
    """Name the features of X (n, d) that correlate with nothing, by reason: constant, or fewer than 3 values."""
    values = np.asarray(X, dtype=np.float64)
    count = (~np.isnan(values)).sum(axis=0)
    few = count < FEWEST
    constant = ~few & _is_constant(values)
    found = {"constant": constant, f"fewer than {FEWEST} values": few}
    return {
        reason: [names[place] for place in np.flatnonzero(mask).tolist()]
        for reason, mask in found.items()
        if mask.any()
    }


def cellprofiler_groups(names: Sequence[str]) -> pl.DataFrame:
    """Read what CellProfiler's names say: `Cells_Texture_Contrast_DNA_5_00_256` is of Cells, Texture, DNA.

    Args:
        names: `Compartment_Kind_Measure…`; of the kinds in `CHANNEL_KINDS` what follows the measure and is no number,
            scale or axis is the channel (two of them for Correlation).

    Returns:
        feature, compartment, kind, channel; NULL where the name does not say.
    """
    rows = []
    for name in names:
        compartment, _, rest = name.partition("_")
        kind, _, tail = rest.partition("_")
        channel = None
        if kind in CHANNEL_KINDS:
            said = [part for part in tail.split("_")[1:] if not re.fullmatch(r"\d+(of\d+)?|[XYZ]", part)]
            channel = "_".join(said) or None
        rows.append((name, compartment if tail else None, kind if tail else None, channel))
    columns = ("feature", "compartment", "kind", "channel")
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def _members(groups: Sequence[str | None], by_name: Rows) -> dict[str | None, Rows]:
    there = sorted({group for group in groups if group is not None})
    return {group: by_name[[groups[place] == group for place in by_name.tolist()]] for group in there}


def _blocks(
    learned: NDArray[np.floating], named: NDArray[np.floating], method: str
) -> Iterator[tuple[Rows, Floats, Rows]]:
    """Yield some learned features, their correlations with all named ones (b, m), and the wells these are over."""
    m = named.shape[1]
    patterns = list(_patterns(named))
    for mine, there in _patterns(learned):
        for first in range(0, len(mine), max(1, BLOCK // max(m, 1))):
            columns = mine[first : first + max(1, BLOCK // max(m, 1))]
            R, n = np.full((len(columns), m), np.nan), np.zeros((len(columns), m), np.int64)
            for theirs, present in patterns:
                rows = np.flatnonzero(there & present)
                n[:, theirs] = len(rows)
                if len(rows) < FEWEST:
                    continue
                a = _standard(np.asarray(learned[np.ix_(rows, columns)], np.float64), method)
                for start in range(0, len(theirs), max(1, BLOCK // len(rows))):
                    some = theirs[start : start + max(1, BLOCK // len(rows))]
                    b = _standard(np.asarray(named[np.ix_(rows, some)], np.float64), method)
                    R[:, some] = np.clip(a.T @ b, -1, 1)
            yield columns, R, n


def _patterns(X: NDArray[np.floating]) -> Iterator[tuple[Rows, Mask]]:
    """Yield the features that are there in the same wells, and these wells as booleans."""
    by_pattern: dict[bytes, list[int]] = {}
    for column in range(X.shape[1]):
        by_pattern.setdefault(np.packbits(~np.isnan(X[:, column])).tobytes(), []).append(column)
    for columns in by_pattern.values():
        yield np.array(columns, dtype=np.int64), ~np.isnan(X[:, columns[0]])


def _standard(X: Floats, method: str) -> Floats:
    """Centre every column and scale it to length 1; NaN where it is constant."""
    if method == "spearman":
        from scipy.stats import rankdata

        X = rankdata(X, axis=0)
    # By the largest element first, so that no square over- or underflows, and a constant feature is exactly its mean.
    largest = np.abs(X).max(axis=0)
    X = X / np.where(largest > 0, largest, 1)
    X = X - X.mean(axis=0)
    length = np.linalg.norm(X, axis=0)
    made: Floats = X / np.where(length > 0, length, np.nan)
    return made


def _is_constant(X: Floats) -> Mask:
    """Tell the columns whose values, those that are there, are all equal."""
    lowest = np.min(X, axis=0, initial=np.inf, where=~np.isnan(X))
    highest = np.max(X, axis=0, initial=-np.inf, where=~np.isnan(X))
    return np.asarray(lowest >= highest)


def _check(
    learned: NDArray[np.floating],
    named: NDArray[np.floating],
    learned_names: Sequence[str],
    named_names: Sequence[str],
    top: int,
    method: str,
) -> None:
    if method not in METHODS:
        raise unknown(method, "correlation", METHODS)
    if top < 1:
        message = f"top is {top}: ask for 1 feature or more"
        raise EvaluationError(message)
    for what, X, names in (("learned", learned, learned_names), ("named", named, named_names)):
        if X.ndim != 2 or X.shape[1] != len(names):
            message = (
                f"{what} features of shape {X.shape} do not fit {len(names)} names: give one column a name"
            )
            raise EvaluationError(message)
        twice = (
            sorted({name for name in names if list(names).count(name) > 1})
            if len(set(names)) < len(names)
            else []
        )
        if twice:
            message = (
                f"{what} feature {twice[0]!r} is there more than once: give every feature a name of its own"
            )
            raise EvaluationError(message)
        infinite = np.isinf(X)
        if infinite.any():
            row, column = np.argwhere(infinite)[0]
            message = f"{what} feature {names[column]!r} is {X[row, column]} in row {row}: leave the well out"
            raise EvaluationError(message)
    if len(learned) != len(named) or len(learned) < FEWEST:
        message = (
            f"{len(learned)} wells of learned and {len(named)} of named features: give the same wells in the same "
            f"order, {FEWEST} at least"
        )
        raise EvaluationError(message)
