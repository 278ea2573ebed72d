"""Which cells train and which validate, and which treatments and wells take part at all: pure functions over arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from extractors.training.samplers import Bools, Ints
from warehouse.errors import TrainingError

#: Names, or codes.
Names = NDArray[np.generic]


def leave_cells_out(wells: Ints, share: float, rng: np.random.Generator) -> Bools:
    """Choose cells of every well for validation.

    Args:
        wells: (n,) codes of wells (of all plates).
        share: of each well's cells that validate; to the nearest cell, but every well keeps one that trains.
        rng: of the training's seed.

    Returns:
        (n,) true for validation.

    Source:
        Moshkov et al. 2024, "Leave cells out": about 60 % of the cells of each well train.
    """
    order = np.lexsort((rng.random(len(wells)), wells))
    _, first, sizes = np.unique(wells[order], return_index=True, return_counts=True)
    wanted = np.minimum(np.floor(sizes * share + 0.5).astype(np.int64), sizes - 1)
    rank = np.arange(len(wells)) - np.repeat(first, sizes)
    is_validation = np.zeros(len(wells), dtype=bool)
    is_validation[order] = rank < np.repeat(wanted, sizes)
    return is_validation


def leave_plates_out(labels: Ints, plates: Ints, share: float, rng: np.random.Generator) -> tuple[Bools, int]:
    """Choose whole plates for validation.

    Plate by plate, the one that validates most labels that nothing validates yet (of several, one by chance), among
    those of which every label is on another plate that trains; so a plate with a label of its own always trains.

    Args:
        labels: (n,) codes; a row with a negative label has no say.
        plates: (n,) codes.
        share: of the plates that validate, to the nearest plate, at least 1; fewer where no more can.
        rng: of the training's seed.

    Returns:
        (n,) true for validation; and how many labels are on one plate only: they train, and nothing validates them.

    Raises:
        TrainingError: no plate can validate.

    Source:
        Moshkov et al. 2024, "Leave plates out"; how the plates are chosen is ours.
    """
    names, plate_of = np.unique(plates, return_inverse=True)
    label_names, label_of = np.unique(labels, return_inverse=True)
    holds = np.zeros((len(names), len(label_names)), dtype=bool)
    holds[plate_of, label_of] = True
    holds = holds[:, label_names >= 0]
    trains = np.ones(len(names), dtype=bool)
    order = rng.permutation(len(names))
    for _ in range(max(1, int(share * len(names) + 0.5))):
        spare = holds[trains].sum(axis=0) > 1
        open_to = order[trains[order] & ~(holds[order] & ~spare).any(axis=1)]
        if trains.sum() < 2 or not len(open_to):
            break
        waiting = ~holds[~trains].any(axis=0)
        trains[open_to[np.argmax((holds[open_to] & waiting).sum(axis=1))]] = False
    on = holds.sum(axis=0)
    if trains.all():
        message = (
            f"leave plates out: none of the {len(names)} plates can be left out, as each holds a label that no other "
            f"plate has ({int((on == 1).sum())} of {len(on)} labels are on one plate): leave cells out instead"
        )
        raise TrainingError(message)
    return ~trains[plate_of], int((on == 1).sum())


@dataclass(frozen=True)
class Combined:
    """Treatments chosen for a combined training set.

    Args:
        treatments: chosen from a source or more, ascending.
        is_chosen: (n,) rows (a treatment in a source).
        reasons: n texts, why a row is in or out.
        left_out: treatments that are in no row chosen, by reason.
    """

    treatments: NDArray[np.generic]
    is_chosen: Bools
    reasons: tuple[str, ...]
    left_out: dict[str, int]


SHARED = "strong, and in several sources"
STRONG = "among the strongest of its source"
WEAK = "not among the strongest"
UNKNOWN = "no strength known"
FEW = "fewer than {least_cells} cells"


def combined(
    sources: Names,
    treatments: Names,
    strengths: NDArray[np.float64],
    cells: Ints,
    *,
    strongest: float | int = 500,
    shared_first: bool = True,
    least_cells: int = 100,
) -> Combined:
    """Choose treatments over sources, the strong first and of these the ones in several sources.

    1. A treatment among the `strongest` of any of its sources, which is in two sources or more, is taken from all of
       them. 2. Each source is filled up to `strongest` treatments with its strongest others. 3. Treatments with fewer
       than `least_cells` cells, over all sources that they are taken from, are left out again.
    Of equally strong ones the one whose name comes first goes first.

    Args:
        sources: (n,) names or codes; a row is a treatment in a source, once.
        treatments: (n,) names or codes, the same for the same treatment in every source; no controls.
        strengths: (n,) mean z-score of the distance to the controls (`warehouse.metrics.strength`), NaN unknown.
        cells: (n,) cells of the treatment in the source.
        strongest: treatments of a source that are strong: a whole number of them, or (a float) a share, rounded up, of
            those whose strength is known.
        shared_first: False leaves step 1 out.
        least_cells: of a treatment.

    Returns:
        The choice, with a reason for every row.

    Source:
        Moshkov et al. 2024, "Combined Cell Painting dataset": 500 strongest, 301 of them in a second source, some of
        one source alone, 100 cells. Their numbers differ by source and some were drawn at random: one rule is ours.
    """
    codes, code = np.unique(treatments, return_inverse=True)
    source = np.unique(sources, return_inverse=True)[1]
    is_known = ~np.isnan(strengths)
    known = np.bincount(source, weights=is_known)
    quota = (
        np.ceil(np.round(strongest * known, 9))
        if isinstance(strongest, float)
        else np.full(len(known), strongest)
    )
    is_strong = is_known & (_rank(source, code, strengths, is_known) < quota[source])
    is_shared = np.zeros(len(code), dtype=bool)
    if shared_first:
        is_shared = (np.bincount(code, weights=is_strong) > 0)[code] & (np.bincount(code) > 1)[code]
    others = is_known & ~is_shared
    room = quota - np.bincount(source, weights=is_shared)
    is_taken = is_shared | (others & (_rank(source, code, strengths, others) < room[source]))
    total = np.bincount(code, weights=cells * is_taken)
    is_few = is_taken & (total < least_cells)[code]
    few = FEW.format(least_cells=least_cells)
    reasons = np.select([is_few, is_shared, is_taken, ~is_known], [few, SHARED, STRONG, UNKNOWN], WEAK)
    is_chosen = is_taken & ~is_few
    # A treatment counts once, by what its rows say that comes first here.
    left_out: dict[str, int] = {}
    open_to = np.bincount(code, weights=is_chosen) == 0
    for reason in (few, WEAK, UNKNOWN):
        here = open_to & (np.bincount(code, weights=reasons == reason) > 0)
        open_to &= ~here
        if here.any():
            left_out[reason] = int(here.sum())
    chosen = codes[np.bincount(code, weights=is_chosen) > 0]
    return Combined(chosen, is_chosen, tuple(reasons.tolist()), left_out)


def _rank(sources: Ints, treatments: Ints, strengths: NDArray[np.float64], counts: Bools) -> Ints:
    """Rank within the source of each row that counts, 0 the strongest; other rows come after all."""
    order = np.lexsort((treatments, -strengths, ~counts, sources))
    _, first, sizes = np.unique(sources[order], return_index=True, return_counts=True)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(first, sizes)
    return rank


def cap_control_wells(
    plates: Ints, wells: Ints, is_control: Bools, most: int, rng: np.random.Generator
) -> Bools:
    """Keep the cells of at most so many control wells a plate, drawn by chance, and all treated cells.

    Args:
        plates: (n,) codes.
        wells: (n,) codes of wells (of all plates).
        is_control: (n,), the same for all cells of a well.
        most: control wells a plate.
        rng: of the training's seed.

    Returns:
        (n,) true for a cell that stays.

    Source:
        Moshkov et al. 2024, "Combined Cell Painting dataset": three control wells a plate of LINCS.
    """
    controls, first = np.unique(wells[is_control], return_index=True)
    plate = plates[is_control][first]
    order = np.lexsort((rng.random(len(controls)), plate))
    _, start, sizes = np.unique(plate[order], return_index=True, return_counts=True)
    kept = controls[order][np.arange(len(controls)) - np.repeat(start, sizes) < most]
    return ~is_control | np.isin(wells, kept)
