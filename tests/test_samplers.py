"""Samplers and splits: what a draw must hold, counted by loops; choices against the rules written out."""

import re
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.training.samplers import bags, balanced, dose_ranks, pairs_across
from extractors.training.splits import cap_control_wells, combined, leave_cells_out, leave_plates_out
from warehouse.errors import TrainingError

LABELS = st.lists(st.integers(-1, 4), min_size=1, max_size=40).filter(lambda labels: max(labels) >= 0)


def rng(seed=0):
    return np.random.default_rng(seed)


def of(labels):
    return np.array(labels, dtype=np.int64)


# ------------------------------------------------------------------------------------------------ balanced


@given(labels=LABELS, per_label=st.one_of(st.none(), st.integers(1, 30)), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_each_label_gives_as_many_and_no_cell_more_than_once_more_than_another(labels, per_label, seed):
    rows = balanced(of(labels), per_label, rng(seed))
    sizes = Counter(label for label in labels if label >= 0)
    wanted = per_label or int(np.median(list(sizes.values())))
    assert Counter(labels[row] for row in rows) == dict.fromkeys(sizes, wanted)
    for label in sizes:
        times = [np.count_nonzero(rows == row) for row, own in enumerate(labels) if own == label]
        assert max(times) - min(times) <= 1


def test_an_epoch_draws_what_its_generator_says_and_the_next_epoch_other_cells():
    labels = np.repeat([0, 1, 2], [200, 10, 50])
    first, again, second = (balanced(labels, None, rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(first) == 150
    assert set(first[labels[first] == 1]) == set(range(200, 210))
    controls = [set(rows[labels[rows] == 0]) for rows in (first, second)]
    assert len(controls[0]) == 50
    assert len(controls[0] & controls[1]) < 25
    assert np.count_nonzero(np.diff(labels[first])) > 50  # labels are mixed, not one after the other


def test_all_cells_of_a_large_label_have_the_same_chance():
    labels = np.repeat([0, 1], [20, 5])
    times = sum(np.bincount(balanced(labels, 5, rng(seed)), minlength=25) for seed in range(2000))
    np.testing.assert_array_equal(times[20:], 2000)
    assert times[:20].sum() == 10_000
    np.testing.assert_allclose(times[:20], 500, atol=100)  # five standard deviations


@pytest.mark.parametrize(
    "draw",
    [
        lambda labels: balanced(labels, None, rng()),
        lambda labels: bags(labels, labels < 0, 16, 4, 12, None, rng()),
        lambda labels: pairs_across(labels, labels, 32, 4, None, rng()),
    ],
)
def test_cells_without_any_label_are_refused(draw):
    with pytest.raises(TrainingError, match="none of the 3 cells has a label to learn from"):
        draw(of([-1, -1, -1]))


# ------------------------------------------------------------------------------------------------ bags


def test_bags_hold_what_the_paper_says():
    labels = np.repeat([0, 1, 2, 3, -1], [300, 60, 64, 100, 9])
    is_control = labels == 0
    rows, of_bags = bags(labels, is_control, 16, 4, 12, None, rng(3))
    assert Counter(of_bags.tolist()) == dict.fromkeys(
        range(4), 5
    )  # the median label has 82 cells: 5 bags of 16
    for bag, label in zip(rows, of_bags, strict=True):
        assert len(set(bag)) == 16
        own = int((labels[bag] == label).sum())
        if label == 0:
            assert own == 16
        else:
            assert 4 <= own <= 12
            assert is_control[bag[own:]].all()
            assert (labels[bag[:own]] == label).all()
    assert of_bags.tolist() != sorted(of_bags.tolist())
    again, _ = bags(labels, is_control, 16, 4, 12, None, rng(3))
    np.testing.assert_array_equal(rows, again)


def test_each_number_of_treated_cells_comes_equally_often():
    labels = np.repeat([0, 1], [40, 40])
    rows, of_bags = bags(labels, labels == 0, 8, 2, 6, 2000, rng())
    counts = Counter((labels[rows[of_bags == 1]] == 1).sum(axis=1).tolist())
    assert sorted(counts) == [2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(counts.values()), 400, atol=90)  # five standard deviations


def test_a_treatment_of_few_cells_is_shown_again_in_its_bag():
    labels = of([0] * 20 + [1])
    rows, of_bags = bags(labels, labels == 0, 16, 4, 12, 1, rng())
    bag = rows[of_bags == 1][0]
    assert 4 <= np.count_nonzero(bag == 20) <= 12


@pytest.mark.parametrize(("least", "most"), [(0, 12), (5, 4), (4, 17)])
def test_bags_that_cannot_be_filled_are_refused(least, most):
    text = f"bags of 16 cells with {least} to {most} of the treatment: take 1 ≤ least ≤ most ≤ the bag"
    with pytest.raises(TrainingError, match=re.escape(text)):
        bags(of([0, 1]), np.array([True, False]), 16, least, most, None, rng())


def test_bags_without_controls_are_refused():
    with pytest.raises(
        TrainingError, match="bags mix treated cells with negative controls, and none of these"
    ):
        bags(of([0, 1]), np.zeros(2, bool), 16, 4, 12, None, rng())


# ------------------------------------------------------------------------------------------------ pairs


def test_a_batch_has_cells_of_each_label_from_different_plates():
    labels, plates = np.repeat(np.arange(6), 40), np.tile(np.arange(5), 48)
    batches = pairs_across(labels, plates, 12, 4, None, rng())
    assert batches.shape == (6 * 40 // 12, 12)
    for batch in batches:
        for own in batch.reshape(3, 4):
            assert len(set(labels[own])) == 1
            assert len(set(plates[own])) == 4
            assert len(set(own)) == 4
        # Labels share their plates, so that a cell of another label stands on each cell's plate.
        assert len(set(plates[batch])) == 4
        assert len(set(labels[batch])) == 3
    shown = Counter(labels[batches[:, ::4]].ravel().tolist())
    assert max(shown.values()) - min(shown.values()) <= 2
    assert sum(shown.values()) == 60


@given(labels=LABELS, data=st.data(), cells=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_plates_are_as_many_and_repeats_as_few_as_can_be(labels, data, cells, seed):
    labels = of(labels)
    plates = of(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    batches = pairs_across(labels, plates, 12, cells, 10, rng(seed))
    there = sorted(set(labels[labels >= 0].tolist()))
    wanted = min(max(2, 12 // cells), len(there))
    assert batches.shape[1] == wanted * cells
    for batch in batches:
        groups = batch.reshape(wanted, cells)
        assert len({labels[own[0]] for own in groups}) == wanted
        for own in groups:
            (label,) = set(labels[own].tolist())
            mine = np.flatnonzero(labels == label)
            assert label >= 0
            assert len(set(plates[own])) == min(cells, len(set(plates[mine])))
            assert len(set(own)) == min(cells, len(mine))
    np.testing.assert_array_equal(batches, pairs_across(labels, plates, 12, cells, 10, rng(seed)))


def test_neighbouring_doses_come_together():
    labels = np.repeat(np.arange(40), 8)
    compounds, doses, plates = labels // 4, labels % 4, np.tile(np.arange(2), 160)
    with_dose = pairs_across(labels, plates, 32, 4, None, rng(), compounds=compounds, doses=doses)
    without = pairs_across(labels, plates, 32, 4, None, rng())

    def accompanied(batches):
        """Share of a batch's labels whose compound is there at the next dose up or down."""
        there = [set(labels[batch].tolist()) for batch in batches]
        return np.mean([any(b // 4 == a // 4 for b in (a - 1, a + 1) if b in p) for p in there for a in p])

    assert accompanied(with_dose) > 0.7
    assert accompanied(without) < 0.4
    # Which dose goes with which changes: 0-1, 2-3 and also 1-2.
    joined = {
        (doses[own[0]], doses[other[0]])
        for batch in with_dose
        for own, other in zip(batch.reshape(8, 4), batch.reshape(8, 4)[1:], strict=False)
        if compounds[own[0]] == compounds[other[0]]
    }
    assert {(0, 1), (1, 2), (2, 3)} <= joined
    assert set(labels[with_dose].ravel().tolist()) == set(range(40))


def test_doses_are_ranked_within_their_compound():
    compounds = of([0, 0, 0, 1, 1, 2, 0])
    ranks, levels = dose_ranks(compounds, np.array([3.0, 0.1, 3.0, 7.0, np.nan, np.nan, 1.0]))
    assert ranks.tolist() == [2, 0, 2, 0, -1, -1, 1]
    assert levels.tolist() == [3, 3, 3, 1, 1, 0, 3]
    ranks, levels = dose_ranks(of([]), np.array([]))
    assert ranks.shape == levels.shape == (0,)


@pytest.mark.parametrize("seed", range(20))
def test_doses_are_ranked_as_one_compound_after_the_other_is(seed):
    made = np.random.default_rng(seed)
    compounds = made.integers(0, 12, 90)
    concentrations = made.choice([np.nan, np.inf, -0.0, 0.0, 0.1, 1.0, 10.0], 90)
    ranks, levels = np.full(90, -1), np.zeros(90, int)
    for compound in set(compounds.tolist()):
        own = compounds == compound
        doses = sorted({value for value in concentrations[own].tolist() if value == value})
        levels[own] = len(doses)
        for place in np.flatnonzero(own):
            if concentrations[place] == concentrations[place]:
                ranks[place] = doses.index(concentrations[place])
    found = dose_ranks(compounds, concentrations)
    np.testing.assert_array_equal(found, (ranks, levels))


def test_doses_of_many_compounds_are_ranked_in_one_go():
    compounds = np.arange(600_000) // 3
    start = time.process_time()
    ranks, levels = dose_ranks(compounds, np.tile([3.0, 1.0, np.nan], 200_000))
    assert time.process_time() - start < 5  # compound by compound: minutes
    assert (ranks.reshape(-1, 3) == [1, 0, -1]).all()
    assert (levels == 2).all()


# ------------------------------------------------------------------------------------------------ splits


@given(wells=st.lists(st.integers(0, 6), min_size=1, max_size=60), share=st.sampled_from([0.1, 0.4, 0.9]))
@settings(max_examples=60, deadline=None)
def test_each_well_leaves_out_its_share_and_keeps_a_cell(wells, share):
    is_validation = leave_cells_out(of(wells), share, rng())
    for well in set(wells):
        own = is_validation[np.array(wells) == well]
        assert own.sum() == min(len(own) - 1, int(len(own) * share + 0.5))
    np.testing.assert_array_equal(is_validation, leave_cells_out(of(wells), share, rng()))


def test_about_60_percent_of_cells_train_and_which_is_chance():
    wells = rng(1).integers(0, 50, 5000)
    first, second = leave_cells_out(wells, 0.4, rng(1)), leave_cells_out(wells, 0.4, rng(2))
    assert first.mean() == pytest.approx(0.4, abs=0.005)
    assert (first & second).mean() == pytest.approx(0.16, abs=0.03)


def test_whole_plates_are_left_out_and_every_treatment_keeps_one():
    # Ten weeks of three plates; a week's treatments are on its three plates, controls on all.
    plates = np.repeat(np.arange(30), 9)
    labels = np.where(np.arange(270) % 9 == 8, 0, 1 + plates // 3 * 8 + np.arange(270) % 9)
    is_validation, on_one = leave_plates_out(labels, plates, 0.4, rng())
    out = set(plates[is_validation].tolist())
    assert out.isdisjoint(plates[~is_validation].tolist())
    assert len(out) == 12
    assert on_one == 0
    assert set(labels[~is_validation]) == set(labels)
    assert set(labels[is_validation]) == set(labels)  # 12 plates for 10 weeks: every treatment is validated
    np.testing.assert_array_equal(is_validation, leave_plates_out(labels, plates, 0.4, rng())[0])
    assert (is_validation != leave_plates_out(labels, plates, 0.4, rng(5))[0]).any()


def test_a_plate_with_a_treatment_of_its_own_trains_and_is_counted():
    labels, plates = of([0, 0, 0, 1, 1, 2, -1]), of([7, 8, 9, 7, 8, 9, 8])
    for seed in range(10):
        is_validation, on_one = leave_plates_out(labels, plates, 0.9, rng(seed))
        assert on_one == 1
        assert not is_validation[plates == 9].any()
        assert (
            len(set(plates[is_validation])) == 1
        )  # plates 7 and 8 share treatment 1: only one of them can go


@given(
    cells=st.lists(st.tuples(st.integers(-1, 5), st.integers(0, 5)), min_size=1, max_size=40),
    share=st.sampled_from([0.1, 0.4, 0.8]),
)
@settings(max_examples=100, deadline=None)
def test_no_treatment_is_ever_left_without_training(cells, share):
    labels, plates = of([label for label, _ in cells]), of([plate for _, plate in cells])
    on = {label: set(plates[labels == label]) for label in set(labels[labels >= 0])}
    can_go = [p for p in set(plates) if len(set(plates)) > 1 and all(own != {p} for own in on.values())]
    if not can_go:
        with pytest.raises(TrainingError):
            leave_plates_out(labels, plates, share, rng())
        return
    is_validation, on_one = leave_plates_out(labels, plates, share, rng())
    assert is_validation.any()
    assert not set(plates[is_validation]) & set(plates[~is_validation])
    assert all(own - set(plates[is_validation]) for own in on.values())
    assert len(set(plates[is_validation])) <= max(1, int(share * len(set(plates)) + 0.5))
    assert on_one == sum(len(own) == 1 for own in on.values())


def test_plates_of_which_none_can_go_are_refused():
    text = (
        "leave plates out: none of the 2 plates can be left out, as each holds a label that no other plate has "
        "(2 of 3 labels are on one plate): leave cells out instead"
    )
    with pytest.raises(TrainingError, match=re.escape(text)):
        leave_plates_out(of([0, 0, 1, 2]), of([0, 1, 0, 1]), 0.4, rng())


# ------------------------------------------------------------------------------------------------ combined set


def naive_combined(table, strongest, shared_first, least_cells):
    """The three rules one after another, over {(source, treatment): (strength, cells)}."""
    sources = sorted({source for source, _ in table})
    quota, ranked = {}, {}
    for source in sources:
        known = [(-s, t) for (own, t), (s, _) in table.items() if own == source and not np.isnan(s)]
        ranked[source] = [treatment for _, treatment in sorted(known)]
        is_share = isinstance(strongest, float)
        quota[source] = int(np.ceil(round(strongest * len(known), 9))) if is_share else strongest
    taken = set()
    if shared_first:
        strong = {t for source in sources for t in ranked[source][: quota[source]]}
        taken = {(s, t) for s, t in table if t in strong and sum(other == t for _, other in table) > 1}
    shared = {treatment for _, treatment in taken}
    for source in sources:
        room = max(0, quota[source] - sum(own == source for own, _ in taken))
        taken |= {(source, t) for t in [t for t in ranked[source] if t not in shared][:room]}
    cells = Counter()
    for source, treatment in taken:
        cells[treatment] += table[source, treatment][1]
    return {(source, treatment) for source, treatment in taken if cells[treatment] >= least_cells}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strongest", [3, 0.25, 1.0])
@pytest.mark.parametrize("shared_first", [True, False])
def test_the_combined_set_follows_the_rules_written_out(seed, strongest, shared_first):
    draw = rng(seed)
    table = {}
    for source in "abc":
        for treatment in draw.choice(20, 12, replace=False):
            strength = np.nan if draw.random() < 0.1 else float(draw.integers(0, 8))
            table[source, f"t{treatment:02}"] = (strength, int(draw.integers(10, 120)))
    keys = list(table)
    chosen = combined(
        np.array([source for source, _ in keys]), np.array([treatment for _, treatment in keys]),
        np.array([table[key][0] for key in keys]), of([table[key][1] for key in keys]),
        strongest=strongest, shared_first=shared_first, least_cells=60,
    )  # fmt: skip
    expected = naive_combined(table, strongest, shared_first, 60)
    assert {key for key, is_in in zip(keys, chosen.is_chosen, strict=True) if is_in} == expected
    assert chosen.treatments.tolist() == sorted({treatment for _, treatment in expected})
    everything = {treatment for _, treatment in keys}
    assert sum(chosen.left_out.values()) == len(everything) - len(chosen.treatments)


def test_the_combined_set_worked_by_hand():
    # Source 1 has a, b, c, d; source 2 has b, e, f. One of each is strong: a and b. b is shared: in from both, and
    # fills source 2; source 1 has no room left for its strongest of all.
    chosen = combined(
        of([1, 1, 1, 1, 2, 2, 2]), np.array(["a", "b", "c", "d", "b", "e", "f"]),
        np.array([9.0, 5, 1, np.nan, 8, 2, 1]), of([200, 60, 200, 200, 50, 200, 200]), strongest=1,
    )  # fmt: skip
    assert chosen.is_chosen.tolist() == [False, True, False, False, True, False, False]
    weak, shared = "not among the strongest", "strong, and in several sources"
    assert chosen.reasons == (weak, shared, weak, "no strength known", shared, weak, weak)
    assert chosen.left_out == {weak: 4, "no strength known": 1}
    two = combined(
        of([1, 1, 1, 1, 2, 2, 2]), np.array(["a", "b", "c", "d", "b", "e", "f"]),
        np.array([9.0, 5, 1, np.nan, 8, 2, 1]), of([200, 60, 200, 200, 39, 99, 200]), strongest=2, least_cells=100,
    )  # fmt: skip
    strong, few = "among the strongest of its source", "fewer than 100 cells"
    assert two.reasons == (strong, few, weak, "no strength known", few, few, weak)
    assert two.treatments.tolist() == ["a"]
    assert two.left_out == {few: 2, weak: 2, "no strength known": 1}


def test_control_wells_of_a_plate_are_capped_and_treated_wells_stay():
    plates = np.repeat([0, 1], [50, 20])
    wells = np.concatenate([np.repeat(np.arange(10), 5), 100 + np.repeat(np.arange(4), 5)])
    is_control = (wells < 6) | (wells >= 102)
    kept = cap_control_wells(plates, wells, is_control, 3, rng())
    assert kept[~is_control].all()
    for plate, expected in ((0, 3), (1, 2)):
        mine = is_control & (plates == plate)
        assert len(set(wells[mine & kept])) == expected
        assert all(
            len(set(kept[mine & (wells == well)])) == 1 for well in set(wells[mine])
        )  # wells are whole
    drawn = {
        tuple(set(wells[is_control & kept & (plates == 0)]))
        for kept in (cap_control_wells(plates, wells, is_control, 3, rng(seed)) for seed in range(20))
    }
    assert len(drawn) > 5
    assert cap_control_wells(plates, wells, np.zeros(70, bool), 3, rng()).all()
