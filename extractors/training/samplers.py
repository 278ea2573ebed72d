"""Which cells an epoch shows, and in which batches: rows drawn by NumPy, the same for the same generator.

Labels are int64 codes from 0; a row with a negative label is never drawn. `rng` is a `numpy.random.Generator`, made
anew each epoch from the seed and the epoch, so that every epoch draws other cells and a resumed training the same.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import TrainingError

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def balanced(labels: Ints, per_label: int | None, rng: np.random.Generator) -> Ints:
    """Draw the same number of cells of each label, in a random order.

    A label with more cells than are drawn gives each at most once; one with fewer gives all of them, again and again,
    none more than once more than another.

    Args:
        labels: (n,).
        per_label: cells of each label; None: the median of the labels' numbers of cells, rounded down.
        rng: of this epoch.

    Returns:
        (labels · per_label,) rows.

    Raises:
        TrainingError: no row has a label.

    Source:
        Moshkov et al. 2024, "Training cell painting models".
    """
    members = _members(labels)
    wanted = per_label or _median(members)
    return rng.permutation(np.concatenate([_dealt(rows, wanted, rng) for rows in members]))


def bags(
    labels: Ints,
    is_control: Bools,
    bag_size: int,
    least: int,
    most: int,
    bags_per_label: int | None,
    rng: np.random.Generator,
) -> tuple[Ints, Ints]:
    """Make bags of cells for multiple instance learning, the same number for each label, in a random order.

    A bag of a treatment holds `least` to `most` of its cells (each number equally often) and else negative controls; a
    bag of a control's label holds cells of that label alone. A bag holds no cell twice where there are enough.

    Args:
        labels: (n,); negative controls have labels of their own.
        is_control: (n,) negative controls.
        bag_size: cells in a bag; the paper: 16.
        least: cells of the treatment in its bag; the paper: 4.
        most: the same, at most; the paper: 12.
        bags_per_label: None: as many as hold the median of the labels' numbers of cells, at least 1.
        rng: of this epoch.

    Returns:
        Rows (bags, bag_size), the treatment's first, and labels (bags,).

    Raises:
        TrainingError: no row has a label, there is no control, or the numbers of cells contradict each other.

    Source:
        Moshkov et al. 2024, "Multiple instance learning with attention".
    """
    if not 1 <= least <= most <= bag_size:
        message = f"bags of {bag_size} cells with {least} to {most} of the treatment: take 1 ≤ least ≤ most ≤ the bag"
        raise TrainingError(message)
    members = _members(labels)
    controls = np.flatnonzero(is_control & (labels >= 0))
    if not len(controls):
        message = "bags mix treated cells with negative controls, and none of these cells is one: keep them in --where"
        raise TrainingError(message)
    each = bags_per_label or max(1, _median(members) // bag_size)
    drawn, of = [], []
    for rows in members:
        for _ in range(each):
            own = bag_size if is_control[rows[0]] else int(rng.integers(least, most + 1))
            drawn.append(np.concatenate([_dealt(rows, own, rng), _dealt(controls, bag_size - own, rng)]))
            of.append(labels[rows[0]])
    order = rng.permutation(len(drawn))
    return np.stack(drawn)[order], np.array(of, dtype=np.int64)[order]


def pairs_across(
    labels: Ints,
    groups: Ints,
    batch_size: int,
    cells_per_label: int,
    per_label: int | None,
    rng: np.random.Generator,
    *,
    compounds: Ints | None = None,
    doses: Ints | None = None,
) -> Ints:
    """Make batches of P labels with K cells each, from different groups (plates) where there are.

    All labels of a batch prefer the groups in one order drawn for the batch, so that cells of different labels share
    plates too: a label's cells come from its first K groups in that order, then again from the first. Labels are
    dealt in turn, each about as often as another. With compounds and doses, a label and the same compound's next
    dose are dealt together.

    Args:
        labels: (n,), a treatment each.
        groups: (n,) plates.
        batch_size: cells of a batch: P is batch_size // K, at least 2, at most the labels there are.
        cells_per_label: K; a label with fewer cells shows some twice.
        per_label: cells of each label in an epoch, about; None: the median of the labels' numbers of cells.
        rng: of this epoch.
        compounds: (n,), equal within a label.
        doses: (n,) ranks within the compound, equal within a label.

    Returns:
        (batches, P · K) rows, the cells of a label together.

    Raises:
        TrainingError: no row has a label.

    Source:
        The P × K batch is Hermans, Beyer & Leibe 2017, section 2; the rest is ours.
    """
    members = _members(labels)
    size = min(max(2, batch_size // cells_per_label), len(members))
    wanted = (per_label or _median(members)) * len(members)
    batches = max(1, round(wanted / (size * cells_per_label)))
    first = np.array([rows[0] for rows in members])
    kin = None if compounds is None or doses is None else (compounds[first], doses[first])
    parts = [_by_group(rows, groups) for rows in members]
    dealer = _deal(len(members), kin, rng)
    drawn = np.empty((batches, size, cells_per_label), dtype=np.int64)
    for batch in drawn:
        rank = rng.permutation(int(groups.max()) + 1)
        for place, number in enumerate(_distinct(dealer, size)):
            batch[place] = _across(*parts[number], rank, cells_per_label, rng)
    return drawn.reshape(batches, -1)


def dose_ranks(compounds: Ints, concentrations: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Number the doses of each compound from its lowest.

    Args:
        compounds: (n,) codes.
        concentrations: (n,) in one unit within a compound; NaN where there is none.

    Returns:
        Ranks (n,): 0 the lowest, −1 where there is none; levels (n,): doses that the compound has.
    """
    ranks, levels = np.empty((2, len(compounds)), dtype=np.int64)
    if not len(compounds):
        return ranks, levels
    order = np.lexsort((concentrations, compounds))  # NaN comes last within its compound
    own, doses = compounds[order], concentrations[order]
    is_first = np.append(True, own[1:] != own[:-1])
    is_known = ~np.isnan(doses)
    is_new = is_known & (is_first | np.append(True, doses[1:] != doses[:-1]))
    number, starts = np.cumsum(is_new), np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(order)))
    levels_of = np.add.reduceat(is_new, starts, dtype=np.int64)
    before = np.repeat(number[starts] - is_new[starts], sizes)
    ranks[order] = np.where(is_known, number - before - 1, -1)
    levels[order] = np.repeat(levels_of, sizes)
    return ranks, levels


def _members(labels: Ints) -> list[Ints]:
    """Rows of each label that occurs, by label."""
    rows = np.argsort(labels, kind="stable")
    rows = rows[labels[rows] >= 0]
    if not len(rows):
        message = f"none of the {len(labels)} cells has a label to learn from: widen --where"
        raise TrainingError(message)
    return np.split(rows, np.flatnonzero(np.diff(labels[rows])) + 1)


def _median(members: list[Ints]) -> int:
    return max(1, int(np.median([len(rows) for rows in members])))


def _dealt(rows: Ints, amount: int, rng: np.random.Generator) -> Ints:
    """Some of the rows, without replacement as far as they go, then all of them anew."""
    whole, rest = divmod(amount, len(rows))
    return np.concatenate([np.tile(rows, whole), rng.choice(rows, rest, replace=False)])


def _by_group(rows: Ints, groups: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Sort the rows by group: rows, the groups that there are, where each begins, how many rows it has."""
    rows = rows[np.argsort(groups[rows], kind="stable")]
    return rows, *np.unique(groups[rows], return_index=True, return_counts=True)


def _across(
    rows: Ints, groups: Ints, starts: Ints, sizes: Ints, rank: Ints, amount: int, rng: np.random.Generator
) -> Ints:
    """Draw rows from the groups of lowest rank in turn; what a group lacks comes from the label's other rows first."""
    there = np.argsort(rank[groups])[:amount]
    if len(there) == amount:
        return rows[starts[there] + (rng.random(amount) * sizes[there]).astype(np.int64)]
    counts = np.bincount(np.arange(amount) % len(there))
    taken = np.concatenate(
        [
            rng.choice(
                rows[starts[group] : starts[group] + sizes[group]], min(count, sizes[group]), replace=False
            )
            for group, count in zip(there, counts, strict=True)
        ]
    )
    missing = amount - len(taken)
    if not missing:
        return taken
    left = np.setdiff1d(rows, taken)
    more = rng.choice(left, min(missing, len(left)), replace=False)
    return np.concatenate([taken, more, _dealt(rows, missing - len(more), rng)])


def _deal(labels: int, kin: tuple[Ints, Ints] | None, rng: np.random.Generator) -> Iterator[int]:
    """Numbers of labels without end, all of them in a random order before one comes again; neighbours in pairs."""
    while True:
        if kin is None:
            yield from rng.permutation(labels).tolist()
            continue
        compounds, doses = kin
        runs: list[Ints] = []
        for compound in np.unique(compounds):
            own = np.flatnonzero(compounds == compound)
            own = own[np.argsort(doses[own], kind="stable")]
            # Which doses make a pair changes from deal to deal.
            runs += [run for run in np.split(own, range(int(rng.integers(1, 3)), len(own), 2)) if len(run)]
        for number in rng.permutation(len(runs)):
            yield from runs[number].tolist()


def _distinct(dealer: Iterator[int], size: int) -> list[int]:
    """Take `size` different labels; one that would come twice in a batch is passed over."""
    taken: dict[int, None] = {}
    while len(taken) < size:
        taken[next(dealer)] = None
    return list(taken)
