"""How far treatments are from the negative controls of their plates, and which of them are active by that."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import combinations, product
from math import comb, prod

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.learning import Floats, Rows, finite_profiles
from warehouse.metrics.registry import Metric
from warehouse.metrics.score import Score, check_length, count_reasons, require_queries
from warehouse.names import unknown
from warehouse.nearest.statistics import adjusted, empirical_p

POOLS = ("plates", "all")
#: Controls on a plate that `activity` needs: one aside, the others must still have a spread.
FEWEST = 3
#: Draws of a null, which are held at once.
MOST_DRAWS = 1_000_000
# What rounding leaves of a spread of equal distances, relative to them.
_EQUAL = 1e-9
_NO_TREATMENT = "no treatment"


@dataclass(frozen=True)
class _Plate:
    """One plate: its treated wells and their z-scores, and the z-scores of its controls where they were asked for."""

    wells: Rows
    z: Floats
    null: Floats


def treatment_strength(
    X: NDArray[np.floating],
    treatments: Sequence[Hashable],
    plates: Sequence[Hashable],
    controls: Sequence[bool] | NDArray[np.bool_],
    ids: Sequence[str] | None = None,
) -> Score:
    """Mean over treatments of how many standard deviations their wells are farther from the controls than controls.

    On each plate: the element-wise median of the negative controls; the Euclidean distance of every well to it; of a
    treated well's distance, the mean of the controls' distances off, divided by their standard deviation (ddof 0). A
    treatment's strength is the mean over its wells, on whatever plates.

    Args:
        X: (n, d) wells, corrected beforehand (the paper: sphered, 1e-2).
        treatments: n treatments, None for a well without one; what a control has here does not matter.
        plates: n plates.
        controls: n booleans, true for a negative control.
        ids: n names for messages.

    Returns:
        A score over treatments: `per_group` has treatment, value (strength), n_wells, by treatment; `per_query` has
        row, value (z-score of the well), treatment. Wells on a plate without controls, or whose controls are all
        equally far, are left out.

    Raises:
        EvaluationError: a profile is not finite, a length differs, or no well is left.

    Source:
        Moshkov et al. 2024, Methods, "Measuring treatment effect", steps 1–5.
    """
    made, left = _plates(X, treatments, plates, controls, ids, leave_one_out=False)
    per_query = _wells(made, treatments)
    require_queries("treatment_strength", len(per_query), left)
    table = (
        per_query.group_by("treatment")
        .agg(pl.col("value").mean(), n_wells=pl.len().cast(pl.Int64))
        .sort(pl.col("treatment").cast(pl.String))
    )
    return Score(float(table["value"].to_numpy().mean()), len(table), None, per_query, table, left, "group")


def activity(
    X: NDArray[np.floating],
    treatments: Sequence[Hashable],
    plates: Sequence[Hashable],
    controls: Sequence[bool] | NDArray[np.bool_],
    ids: Sequence[str] | None = None,
    *,
    alpha: float = 0.05,
    draws: int = 10_000,
    pool: str = "plates",
    seed: int = 0,
) -> Score:
    """Share of treatments that are stronger than as many negative controls of their plates would be.

    A control is held against the others of its plate: its distance to *their* median, less the mean of the others'
    such distances, by their standard deviation (ddof 0). A treated well is held against all controls by the same
    distances. The statistic of a treatment is the mean over its wells; its null, the same mean over as many
    controls of the same plates, no control twice: all such choices where there are at most `draws`, else `draws`
    of them. The draw depends on the z-scores of these plates' controls and the seed alone: a treatment's p-value
    does not change with what else is in the call.

    Args:
        X: (n, d) wells.
        treatments: n treatments, None for a well without one; what a control has here does not matter.
        plates: n plates.
        controls: n booleans, true for a negative control.
        ids: n names for messages.
        alpha: a treatment is active where its q-value is below.
        draws: of the null, at the most.
        pool: which controls are drawn. `plates`: of the plates that the treatment is on. `all`: controls of every
            plate stand for each other, for plates of few controls; then the p-value does depend on which plates are
            in the call.
        seed: of the draws.

    Returns:
        A score over treatments: `per_group` has treatment, value (1 active, 0 not), strength, p_value (the treatment
        itself counted in, so never 0), q_value (Benjamini–Hochberg over the treatments), is_active, n_wells, n_null;
        `per_query` has row, value (z-score of the well), treatment. Wells on a plate with fewer than 3 controls, or
        whose controls are all equally far, are left out; so are treatments with more wells on a plate than controls.

    Raises:
        EvaluationError: a profile is not finite, a length differs, a parameter does not fit, or no treatment is left.
        UnknownNameError: `pool` is in no list.

    Source:
        Strength: Moshkov et al. 2024, "Measuring treatment effect". p-values: Phipson & Smyth 2010; q-values:
        Benjamini & Hochberg 1995. The null is ours.
    """
    if pool not in POOLS:
        raise unknown(pool, "pool of controls", POOLS)
    if not 0 < alpha < 1 or not 1 <= draws <= MOST_DRAWS:
        message = (
            f"activity: alpha is {alpha} and draws {draws}: take alpha between 0 and 1, and 1 to {MOST_DRAWS} "
            "draws"
        )
        raise EvaluationError(message)
    made, left = _plates(X, treatments, plates, controls, ids, leave_one_out=True)
    per_query = _wells(made, treatments)
    plate_of = {row: number for number, plate in enumerate(made) for row in plate.wells.tolist()}
    every = np.sort(np.concatenate([plate.null for plate in made])) if made else np.empty(0)
    nulls: dict[tuple[tuple[int, int], ...], Floats] = {}
    found: list[dict[str, object]] = []
    crowded: list[int] = []
    for (treatment,), wells in per_query.group_by("treatment", maintain_order=True):
        on, counts = np.unique([plate_of[row] for row in wells["row"].to_list()], return_counts=True)
        parts = (
            tuple(zip(on.tolist(), counts.tolist(), strict=True)) if pool == "plates" else ((-1, len(wells)),)
        )
        drawn_from = [every if number < 0 else np.sort(made[number].null) for number, _ in parts]
        if any(len(there) < count for there, (_, count) in zip(drawn_from, parts, strict=True)):
            crowded += wells["row"].to_list()
            continue
        if parts not in nulls:
            nulls[parts] = _null(drawn_from, [count for _, count in parts], draws, seed)
        strength = float(np.round(np.sort(wells["value"].to_numpy()).mean(), 9))
        p_value = float(empirical_p(np.array([strength]), nulls[parts])[0])
        found.append(
            {
                "treatment": treatment,
                "strength": strength,
                "p_value": p_value,
                "n_wells": len(wells),
                "n_null": len(nulls[parts]),
            }
        )
    if crowded:
        left = dict(
            sorted((left | {"more wells of the treatment than controls on a plate": len(crowded)}).items())
        )
    require_queries("activity", len(found), left)
    table = pl.DataFrame(found).sort(pl.col("treatment").cast(pl.String))
    q_values = adjusted(table["p_value"].to_numpy())
    table = table.with_columns(
        pl.Series("q_value", q_values),
        pl.Series("is_active", q_values < alpha),
        pl.Series("value", (q_values < alpha).astype(np.float64)),
    ).select("treatment", "value", "strength", "p_value", "q_value", "is_active", "n_wells", "n_null")
    per_query = per_query.filter(~pl.col("row").is_in(crowded))
    active = int(table["is_active"].sum())
    return Score(active / len(table), len(table), active, per_query, table, left, "group")


def _plates(
    X: NDArray[np.floating],
    treatments: Sequence[Hashable],
    plates: Sequence[Hashable],
    controls: Sequence[bool] | NDArray[np.bool_],
    ids: Sequence[str] | None,
    leave_one_out: bool,
) -> tuple[list[_Plate], dict[str, int]]:
    """Z-score the treated wells of every plate that has the controls for it; count the wells that are left out."""
    for what, values in (("treatments", treatments), ("plates", plates), ("controls", controls)):
        check_length(what, values, len(X))
    is_control = np.asarray(controls, dtype=bool)
    reasons: list[str | None] = [
        _NO_TREATMENT if treatment is None and not control else None
        for treatment, control in zip(treatments, is_control, strict=True)
    ]
    used = np.array([reason is None for reason in reasons], dtype=bool)
    profiles = finite_profiles(X, ids, used)
    on: dict[Hashable, list[int]] = {}
    for row in np.flatnonzero(used).tolist():
        on.setdefault(plates[row], []).append(row)
    made = []
    for _, rows in sorted(on.items(), key=lambda item: str(item[0])):
        there = np.array(rows)
        treated, control = there[~is_control[there]], there[is_control[there]]
        fewest = FEWEST if leave_one_out else 1
        fault = None if len(control) else "no negative control on its plate"
        if fault is None and len(control) < fewest:
            fault = f"fewer than {FEWEST} negative controls on its plate"
        plate = None
        if fault is None:
            plate = (_against_others if leave_one_out else _against_all)(profiles, treated, control)
            fault = "negative controls of its plate all equally far" if plate is None else None
        if plate is not None:
            made.append(plate)
        for row in treated:
            reasons[row] = fault
    return made, count_reasons(reasons)


def _against_all(X: Floats, treated: Rows, control: Rows) -> _Plate | None:
    """Z-score distances to the median of all controls by those of the controls; None: these are all equal."""
    median = np.median(X[control], axis=0)
    own = np.linalg.norm(X[control] - median, axis=1)
    z = _z(np.linalg.norm(X[treated] - median, axis=1), own)
    return None if z is None else _Plate(treated, z, np.empty(0))


def _against_others(X: Floats, treated: Rows, control: Rows) -> _Plate | None:
    """Do the same with each control's distance to the median of the others, and z-score the controls too."""
    aside = ~np.eye(len(control), dtype=bool)
    own = np.array(
        [
            np.linalg.norm(X[one] - np.median(X[control[rest]], axis=0))
            for one, rest in zip(control, aside, strict=True)
        ]
    )
    z = _z(np.linalg.norm(X[treated] - np.median(X[control], axis=0), axis=1), own)
    each = [_z(own[[i]], own[rest]) for i, rest in enumerate(aside)]
    # A control against others that are all equally far has no z-score; without any, nor has the plate.
    there = [part for part in each if part is not None]
    if z is None or not there:
        return None
    null = np.asarray(np.round(np.concatenate(there), 9), np.float64)
    return _Plate(treated, z, null)


def _z(distance: Floats, own: Floats) -> Floats | None:
    spread = own.std()
    if not spread > _EQUAL * max(own.max(), np.finfo(np.float64).tiny):
        return None
    z: Floats = (distance - own.mean()) / spread
    return z


def _wells(made: Sequence[_Plate], treatments: Sequence[Hashable]) -> pl.DataFrame:
    rows = np.concatenate([plate.wells for plate in made]) if made else np.empty(0, np.int64)
    z = np.concatenate([plate.z for plate in made]) if made else np.empty(0)
    table = pl.DataFrame({"row": rows, "value": z, "treatment": [treatments[row] for row in rows]})
    return table.sort("row")


def _null(pools: Sequence[Floats], counts: Sequence[int], draws: int, seed: int) -> Floats:
    """Mean z-scores of controls, so many of each plate: of all choices, or of some drawn with a seed of their own."""
    wells = sum(counts)
    if prod(comb(len(pool), count) for pool, count in zip(pools, counts, strict=True)) <= draws:
        sums = [
            [sum(chosen) for chosen in combinations(pool.tolist(), count)]
            for pool, count in zip(pools, counts, strict=True)
        ]
        return np.round([sum(parts) / wells for parts in product(*sums)], 9)
    total = np.zeros(draws)
    seen: dict[bytes, int] = {}
    for pool, count in sorted(zip(pools, counts, strict=True), key=lambda part: (part[0].tobytes(), part[1])):
        content = pool.tobytes() + f"{count} {seed}".encode()
        # Plates with the same controls, twice in the call, are drawn from apart.
        seen[content] = seen.get(content, 0) + 1
        digest = blake2b(content + bytes([seen[content] % 256]), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        if count == 1:
            total += pool[rng.integers(len(pool), size=draws)]
            continue
        step = max(1, 2**20 // len(pool))
        for first in range(0, draws, step):
            part = total[first : first + step]
            chosen = np.argpartition(rng.random((len(part), len(pool))), count - 1, axis=1)[:, :count]
            part += pool[chosen].sum(axis=1)
    return np.round(total / wells, 9)


_NEEDS = ("treatments", "plates", "controls")

METRICS: tuple[Metric, ...] = (
    Metric(
        name="treatment_strength",
        function=treatment_strength,
        needs=_NEEDS,
        higher_is_better=True,
        range=(-np.inf, np.inf),
        paper="Moshkov et al. 2024 (treatment effect)",
        level="well",
    ),
    Metric(
        name="activity",
        function=activity,
        needs=_NEEDS,
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Moshkov et al. 2024 (treatment effect), called by a null of controls",
        level="well",
    ),
)
