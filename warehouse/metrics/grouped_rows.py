"""Rows that are of one group each (a batch, a label, a cluster), in an order that does not depend on how they came.

Clustering, folds and draws at random depend on the order of rows. They are made in the order of the profiles' own
elements, so that the same profiles give the same answer in whatever order they come.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.learning import finite_profiles, in_canonical_order
from warehouse.metrics.neighbour_graph import nearest_euclidean
from warehouse.metrics.score import (
    Labels,
    check_length,
    count_reasons,
    label_sets,
    require_queries,
    unit_vectors,
)
from warehouse.names import unknown

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

DISTANCES = ("cosine", "euclidean")
#: Columns of `per_group` of a metric with baselines of its own.
BASELINES = {"baseline": pl.String, "value": pl.Float64}


@dataclass(frozen=True)
class Grouped:
    """Rows of one group each, sorted by their elements.

    Attributes:
        rows: (m,) int64, which rows of the profiles that came.
        X: (m, d) float64; for cosine of length 1, for Euclidean distances about their mean.
        codes: (m,) int64, the group of each row: 0 for that of the first row, and so on by first appearance, so that
            another name of a group changes nothing.
        names: of the groups, by code.
        distance: that X is made for.
        left_out: reason to number of rows that are not here.
    """

    rows: Rows
    X: Floats
    codes: Rows
    names: list[str]
    distance: str
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    def per_query(self, values: NDArray[np.generic], **more: NDArray[np.generic]) -> pl.DataFrame:
        """Return `row`, `value` and more, each (m,), in the order that the profiles came in."""
        frame = pl.DataFrame({"row": self.rows, "value": values.astype(np.float64), **more})
        return frame.sort("row")


def grouped(
    metric: str,
    X: NDArray[np.floating],
    groups: Labels,
    ids: Sequence[str] | None = None,
    *,
    what: str = "batch",
    distance: str = "euclidean",
    reasons: Sequence[str | None] | None = None,
    ties: Sequence[str] | None = None,
) -> Grouped:
    """Keep the rows of exactly one group and sort them by their elements.

    Args:
        metric: its name, for messages.
        X: (n, d) profiles.
        groups: n sets of groups.
        ids: n names for messages.
        what: a group is, for messages.
        distance: ``cosine`` or ``euclidean``.
        reasons: n reasons why a row is left out all the same, None where it is not.
        ties: n texts that put equal profiles of one group in order: what else the metric knows of them.

    Raises:
        EvaluationError: a length differs, a row that is used is not finite (or all zeros, for cosine; or beyond
            `learning.LARGEST`, for Euclidean distances), no row is left, or all are of one group.
        UnknownNameError: no such distance.
    """
    if distance not in DISTANCES:
        raise unknown(distance, "distance", DISTANCES)
    check_length(plural(what), groups, len(X))
    sets = label_sets(groups)
    given: Sequence[str | None] = reasons or [None] * len(sets)
    why = [own or _why(found, what) for own, found in zip(given, sets, strict=True)]
    used = np.array([reason is None for reason in why], dtype=bool)
    left_out = count_reasons(why)
    require_queries(metric, int(used.sum()), left_out)
    kept = np.flatnonzero(used)
    measured = unit_vectors(X, ids, used) if distance == "cosine" else finite_profiles(X, ids, used)
    names = [next(iter(found), "") for found in sets]
    kept = in_canonical_order(kept, measured, names, *([] if ties is None else [ties]), elements_first=True)
    prepared = measured[kept]
    if distance == "euclidean":
        prepared -= prepared.mean(axis=0)
    codes, by_code = numbered([names[row] for row in kept])
    if len(by_code) == 1:
        message = (
            f"{metric}: all {len(kept)} rows are of one {what}, {by_code[0]!r}: "
            f"give rows of at least two {plural(what)}"
        )
        raise EvaluationError(message)
    return Grouped(kept, prepared, codes, by_code, distance, left_out)


def numbered(names: Sequence[str]) -> tuple[Rows, list[str]]:
    """Number names (m,) by first appearance: codes (m,) int64, and the names by code."""
    seen: dict[str, int] = {}
    codes = np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)
    return codes, list(seen)


def shuffled(codes: Rows, seed: int) -> Rows:
    """Deal groups (m,) to rows by chance: what a metric comes to where groups mean nothing."""
    return np.random.default_rng([seed, 0]).permutation(codes)


def separated(codes: Rows, d: int, distance: str, seed: int) -> Floats:
    """Draw (m, d) profiles in normal clouds, one a group, that do not touch: what a metric comes to at the worst.

    Centres are random directions; the clouds' radius is a tenth of the least distance between two centres, so that
    they stay apart by cosine as well as by Euclidean distance.

    Source:
        Kim et al. 2025, Methods: "non-overlapping Gaussian clusters", as many as batches.
    """
    random = np.random.default_rng([seed, 1])
    count = int(codes.max()) + 1
    centres = random.standard_normal((count, max(d, 2)))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    # One feature has but two directions: profiles of two tell what cosine can tell apart.
    gap = float(nearest_euclidean("separated", centres, 1).distances.min())
    drawn: Floats = random.standard_normal((len(codes), max(d, 2)))
    drawn *= gap / 10 / np.sqrt(max(d, 2))
    drawn += centres[codes]
    if distance == "cosine":
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def of_one_batch(
    metric: str,
    X: NDArray[np.floating],
    batches: Labels,
    controls: Sequence[bool],
    ids: Sequence[str] | None,
    *,
    keep_controls: bool,
    what: str = "batch",
    distance: str = "euclidean",
    ties: Sequence[str] | None = None,
) -> Grouped:
    """Keep the rows of one batch; negative controls, n booleans, only if asked for. Otherwise as `grouped`."""
    check_length("controls", controls, len(X))
    reasons = ["negative control" if control and not keep_controls else None for control in controls]
    return grouped(metric, X, batches, ids, what=what, distance=distance, reasons=reasons, ties=ties)


def scenes(own: Grouped, seed: int) -> Iterator[tuple[str | None, Floats, Rows]]:
    """Give profiles and groups thrice: as they are, with groups dealt at random, and as clouds that do not touch.

    The profiles of the first two are one object.
    """
    yield None, own.X, own.codes
    yield "shuffled", own.X, shuffled(own.codes, seed)
    yield "separated", separated(own.codes, own.X.shape[1], own.distance, seed), own.codes


def plural(what: str) -> str:
    """Return `batches` for `batch`, `labels` for `label`."""
    return {"batch": "batches"}.get(what, f"{what}s")


def _why(found: Collection[str], what: str) -> str | None:
    if len(found) == 1:
        return None
    return f"several {plural(what)}" if found else f"no {what}"
