"""What average precision chance alone gives: its mean, and draws of it for p-values.

A draw is a set of ranks: which `matches` of `total` places hold the matches, every set as likely as any other. It
depends on the seed, matches and total, and on nothing else that is in the call.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import EvaluationError

Floats = NDArray[np.float64]
Draws = NDArray[np.float32]
Counts = NDArray[np.int64]

#: A null average precision counts as larger than the one observed from this difference on: sums round.
LARGER = 1e-6
#: From so many matches on, numbers of matches and of places are taken in steps of 10 %.
MANY = 128
STEP = 0.1
#: Draws kept for the next group, in elements: 256 MiB.
KEPT = 2**26
#: Ranks made at a time: the arrays stay in the cache.
AT_ONCE = 2**16


def expected(matches: Counts, total: Counts) -> Floats:
    """Mean average precision of a random order.

    Args:
        matches: (q,) M, at least 1.
        total: (q,) L, of matches and non-matches.

    Returns:
        (q,) μ0 = (1/L) [(M-1)/(L-1) · (L - H_L) + H_L], H_L the L-th harmonic number; 1 where all are matches.

    Source:
        Kalinin et al. 2025; copairs 0.5.5 `expected_ap`.
    """
    harmonic = np.r_[0.0, np.cumsum(1 / np.arange(1, max(total.max(initial=0), 1) + 1))][total]
    share = (matches - 1) / np.maximum(total - 1, 1)
    return np.where(matches >= total, 1.0, (share * (total - harmonic) + harmonic) / np.maximum(total, 1))


def normalised(value: Floats, matches: Counts, total: Counts) -> Floats:
    """Average precision on a scale on which chance is 0: (AP - μ0) / (1 - μ0), not below -1.

    Args:
        value: (q,) average precisions.
        matches: (q,).
        total: (q,).

    Returns:
        (q,); NaN where all are matches: no order is better than another. (copairs 0.5.5 has 0 there.)
    """
    mean = expected(matches, total)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mean < 1, np.maximum((value - mean) / (1 - mean), -1.0), np.nan)


class Null:
    """Draws of average precision by chance.

    Args:
        size: of draws for each number of matches and total.
        seed: of the draws.

    Raises:
        EvaluationError: the size or seed is negative.
    """

    def __init__(self, size: int = 10_000, seed: int = 0) -> None:
        if size < 0 or seed < 0:
            message = f"null={size}, seed={seed}: give whole numbers from 0 on (null=0: no p-values)"
            raise EvaluationError(message)
        self.size = size
        self.seed = seed
        self._tables: dict[int, Draws] = {}
        self._made: dict[tuple[int, int], Draws] = {}

    def draws(self, matches: int, total: int) -> Draws:
        """Average precision of random orders of `total` with `matches` matches, (size,) float32.

        The first ranks are ⌈L·u⌉ of one table of uniforms for all totals; where two fall on one place, later draws
        take the place of the second until all differ, which is how a set is drawn without replacement. So that
        different totals are independent, draw by draw, each begins elsewhere in the table.

        From 128 matches on, where every query may have numbers of its own and each would cost a million ranks and
        more, draws are those of the nearest numbers in steps of 10 %, moved to have the mean of these.

        Raises:
            EvaluationError: there are no matches, or more than there are places.
        """
        if not 0 < matches <= total:
            message = f"{matches} matches among {total}: there must be one at least, and no more than all"
            raise EvaluationError(message)
        key = (matches, total)
        if key not in self._made:
            if len(self._made) * self.size > KEPT:
                self._made.clear()
            near = _near(matches, total)
            if near == key:
                self._made[key] = self._draw(matches, total)
            else:
                means = expected(np.array([matches, near[0]]), np.array([total, near[1]]))
                offset = int(np.random.default_rng([self.seed, matches, total]).integers(max(self.size, 1)))
                moved = np.roll(self.draws(*near), offset) + np.float32(means[0] - means[1])
                self._made[key] = np.minimum(moved, np.float32(1))
        return self._made[key]

    def _draw(self, matches: int, total: int) -> Draws:
        if matches == total:
            return np.ones(self.size, np.float32)
        rng = np.random.default_rng([self.seed, matches, total])
        offset = int(rng.integers(self.size)) if self.size else 0
        made = np.empty(self.size, np.float32)
        step = max(1, AT_ONCE // matches)
        for first in range(0, self.size, step):
            part = slice(first, min(first + step, self.size))
            if 2 * matches > total:
                ranks = _shuffled(rng, part.stop - part.start, matches, total)
            else:
                ranks = _distinct(rng, self._uniforms(matches)[:, part], total)
            # In place: i-th match over its rank.
            ranks += 1
            np.divide(np.arange(1, matches + 1, dtype=ranks.dtype)[:, None], ranks, out=ranks)
            made[part] = ranks.sum(axis=0) / matches
        return np.roll(made, offset)

    def _uniforms(self, matches: int) -> Draws:
        """Sorted uniforms, (matches, size), of this number of matches, whatever the total."""
        if matches not in self._tables:
            if sum(table.size for table in self._tables.values()) > KEPT:
                self._tables.clear()
            rng = np.random.default_rng([self.seed, matches])
            table = np.sort(rng.random((self.size, matches), dtype=np.float32), axis=1)
            # So far below 1 that L·u never rounds to L.
            self._tables[matches] = np.ascontiguousarray(np.minimum(table, np.float32(1 - 2**-22)).T)
        return self._tables[matches]

    def p_values(
        self, groups: Counts, values: Floats, matches: Counts, total: Counts, *, count_equal: bool = False
    ) -> Floats:
        """How often chance gives a larger mean average precision.

        A group's null is the mean over its queries of their draws, draw by draw: queries with the same numbers of
        matches and total have the same draws, as if they were one, which asks more of a group than independent
        ones would.

        Args:
            groups: (q,) group of each query, 0 to g - 1.
            values: (g,) mean average precision of each group.
            matches: (q,).
            total: (q,).
            count_equal: count draws that equal the value too. Without, as in copairs, a perfect group has
                1 / (size + 1), even where a random order is often perfect, as with one match among three.

        Returns:
            (g,) p = (#{null > value} + 1) / (size + 1); all NaN where the size is 0.

        Source:
            copairs 0.5.5 `get_map_pvalue`; with `count_equal`, Phipson & Smyth 2010.
        """
        p_values = np.full(len(values), np.nan)
        if self.size == 0 or len(groups) == 0:
            return p_values
        keys = np.stack([groups, matches, total], axis=1)
        configurations, counts = np.unique(keys, axis=0, return_counts=True)
        starts = np.flatnonzero(np.r_[True, configurations[1:, 0] != configurations[:-1, 0]])
        ends = [*starts[1:].tolist(), len(configurations)]
        for start, end in zip(starts.tolist(), ends, strict=True):
            group = int(configurations[start, 0])
            null: Floats = self.draws(*configurations[start, 1:].tolist()) * np.float64(counts[start])
            for row in range(start + 1, end):
                null += counts[row] * self.draws(*configurations[row, 1:].tolist())
            null /= counts[start:end].sum()
            bound = values[group] + (-LARGER if count_equal else LARGER)
            p_values[group] = (np.count_nonzero(null > bound) + 1) / (self.size + 1)
        return p_values


def _near(matches: int, total: int) -> tuple[int, int]:
    """The numbers that the draws are made for: these, or from `MANY` matches on the nearest in steps."""
    others = total - matches
    if matches < MANY or others < MANY:
        return matches, total
    made = [round(float(np.exp(STEP * round(np.log(number) / STEP)))) for number in (matches, others)]
    return made[0], made[0] + made[1]


def _distinct(rng: np.random.Generator, uniforms: Draws, total: int) -> NDArray[Any]:
    """Sets of places from 0 on, (matches, draws), each sorted: the uniforms' own, with new ones where two are one."""
    places: NDArray[Any]
    if total < 2**14:
        places = np.floor(uniforms * np.float32(total))
    else:
        # Single precision has too few numbers for so many places to be equally likely: digits are added.
        places = np.floor((uniforms + rng.random(uniforms.shape) * 2**-24) * total)
    again = np.flatnonzero((places[1:] <= places[:-1]).any(axis=0))
    while len(again):
        some = np.sort(places[:, again].T, axis=1)
        double = np.zeros(some.shape, dtype=bool)
        double[:, 1:] = some[:, 1:] == some[:, :-1]
        some[double] = rng.integers(0, total, int(double.sum()))
        some.sort(axis=1)
        places[:, again] = some.T
        again = again[(some[:, 1:] == some[:, :-1]).any(axis=1)]
    return places


def _shuffled(rng: np.random.Generator, draws: int, matches: int, total: int) -> NDArray[Any]:
    """The same, (matches, draws), where more than half of the places hold matches."""
    left_out = rng.random((draws, total), dtype=np.float32).argpartition(total - matches - 1, axis=1)
    return np.sort(left_out[:, total - matches :], axis=1).T.astype(np.float64)
