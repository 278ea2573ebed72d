"""Replicates against non-replicates and controls: plain loops from the definitions, scikit-learn, SciPy, by hand."""

import math
import tracemalloc
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics import against_controls, directions, replicates
from warehouse.metrics.order import Sharing
from warehouse.metrics.replicates import (
    grit,
    mp_value,
    percent_matching,
    percent_replicating,
    replicate_reproducibility,
)


def screen(seed, treatments=12, wells=4, controls=16, width=20, effect=1.0):
    """Wells of treatments, half of which do something, and controls: X, labels, controls, plates."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(treatments, width)) * effect
    centres[::2] = 0
    which = np.repeat(np.arange(treatments), wells)
    X = np.concatenate([centres[which], np.zeros((controls, width))]) + rng.normal(
        size=(len(which) + controls, width)
    )
    labels = [{f"t{i}"} for i in which] + [set() for _ in range(controls)]
    is_control = np.arange(len(X)) >= len(which)
    plates = [f"p{i % 2}" for i in range(len(X))]
    return X, labels, is_control, plates


def similarities(X, kind):
    return 1 - cdist(X, X, kind)


# --- percent replicating and matching


@pytest.mark.parametrize("kind", ["correlation", "cosine"])
def test_percent_replicating_equals_a_loop_over_its_own_draws(monkeypatch, kind):
    X, labels, _, _ = screen(1, wells=3)
    drawn = []
    medians = replicates.medians
    monkeypatch.setattr(
        replicates, "medians", lambda v, rows, *apart: drawn.append(rows) or medians(v, rows, *apart)
    )
    score = percent_replicating(X, labels, similarity=kind, nulls=300)
    near = similarities(X, kind)
    null = np.concatenate([rows[:, 0] for rows in drawn if len(rows) > 1])
    assert null.shape == (300, 3)
    # No draw holds two replicates, or a control.
    assert all(len({min(labels[row]) for row in rows}) == 3 for rows in null)
    threshold = np.percentile(
        [np.median([near[a, b] for a, b in combinations(rows, 2)]) for rows in null], 95
    )
    for label, value, median, above, n in score.per_group.rows():
        rows = [row for row, own in enumerate(labels) if label in own]
        expected = np.median([near[a, b] for a, b in combinations(rows, 2)])
        assert median == pytest.approx(expected, abs=1e-9)
        assert above == pytest.approx(threshold, abs=1e-9)
        assert (value, n) == (float(expected > threshold), 3)
    assert score.left_out == {"no label": 16}
    assert (score.unit, score.n) == ("group", 12)
    assert score.value == score.per_group["value"].mean()


def test_treatments_that_do_something_replicate_and_others_do_not():
    X, labels, _, _ = screen(2, treatments=60, effect=2.0)
    score = percent_replicating(X, labels)
    by_label = dict(score.per_group.select("label", "value").rows())
    active = [by_label[f"t{i}"] for i in range(1, 60, 2)]
    idle = [by_label[f"t{i}"] for i in range(0, 60, 2)]
    assert np.mean(active) == 1
    assert np.mean(idle) < 0.2  # 5 % by its definition
    # Another null, about the same.
    assert abs(percent_replicating(X, labels, seed=1).value - score.value) < 0.1


def test_each_number_of_replicates_has_a_null_of_its_own():
    X, labels, _, _ = screen(3, treatments=10, wells=4)
    labels[0] = labels[1] = set()  # t0 keeps two wells
    labels[4], labels[5], labels[6] = set(), set(), set()  # t1 keeps one
    score = percent_replicating(X, labels)
    sizes = score.per_group["n"].to_list()
    assert sorted(sizes) == [2, 4, 4, 4, 4, 4, 4, 4, 4]
    assert score.left_out == {"no label": 16 + 5, "no replicate": 1}
    thresholds = score.per_group.group_by("n").agg(pl.col("threshold").unique())
    assert thresholds["threshold"].list.len().to_list() == [1, 1]
    two, four = (thresholds.filter(pl.col("n") == n)["threshold"][0][0] for n in (2, 4))
    assert two > four  # a median of one pair spreads more than one of six
    # A null does not depend on which other numbers of replicates are asked for.
    whole = screen(3, treatments=10, wells=4)
    assert percent_replicating(whole[0][8:], whole[1][8:]).per_group["threshold"].n_unique() == 1


def test_more_wells_than_treatments_still_have_a_null():
    X, labels, _, _ = screen(4, treatments=2, wells=6, controls=0, effect=3)
    score = percent_replicating(X, labels)
    # Only pairs of one treatment with the other are in the null.
    between = similarities(X, "correlation")[:6, 6:]
    assert between.min() <= score.per_group["threshold"][0] <= between.max()
    with pytest.raises(EvaluationError, match=r"all 6 profiles have one label"):
        percent_replicating(X[:6], labels[:6])


def test_of_a_large_group_a_bounded_number_of_pairs_is_compared(monkeypatch):
    """Up to 128 wells all; of more, those within up to 8 teams of 64, in the treatment and in its null."""
    X, labels, _, _ = screen(13, treatments=2, wells=300, controls=0, width=8)
    X[:300] += np.linspace(-1, 1, 8)
    labels[300 + 128 :] = [{f"u{i // 2}"} for i in range(172)]
    compared = []
    grams = directions.grams
    monkeypatch.setattr(
        directions, "grams", lambda v, rows: compared.append(rows.size * rows.shape[1]) or grams(v, rows)
    )
    score = percent_replicating(X, labels, nulls=30)
    assert sum(compared) == 31 * 4 * 64**2 + 31 * 128**2 + 86 * 4 + 30 * 4
    near = similarities(X, "correlation")
    by_label = {label: (median, value) for label, value, median, _, _ in score.per_group.rows()}
    assert by_label["t1"][0] == pytest.approx(
        np.median(near[300:428, 300:428][np.triu_indices(128, 1)]), abs=1e-9
    )
    # 8,064 of 44,850 pairs: four standard deviations of a median.
    own = near[:300, :300][np.triu_indices(300, 1)]
    assert by_label["t0"][0] == pytest.approx(np.median(own), abs=4 * 1.25 * own.std() / 8064**0.5)
    assert (by_label["t0"][1], score.n) == (1, 88)
    # The order of rows does not matter.
    turned = np.random.default_rng(0).permutation(len(X))
    assert percent_replicating(X[turned], [labels[row] for row in turned], nulls=30).per_group.equals(
        score.per_group
    )


def test_the_few_pairs_of_two_compounds_in_a_large_label_are_found():
    X, labels, _, _ = screen(14, treatments=2, wells=400, controls=0, width=8)
    compounds = ["a"] * 399 + ["b"] + [f"c{i}" for i in range(400)]
    score = percent_matching(X, labels, compounds, nulls=20, seed=3)
    near = similarities(X, "correlation")
    # A pair that the teams hold, or all there are.
    first = score.per_group["median"][0]
    assert np.abs(near[399, :399] - first).min() < 0.1
    monkeyed = pytest.MonkeyPatch()
    monkeyed.setattr(directions, "medians", lambda *_: np.array([np.nan]))
    score = percent_matching(X, labels, compounds, nulls=20)
    monkeyed.undo()
    assert score.per_group["median"][0] == pytest.approx(np.median(near[399, :399]), abs=1e-9)


def test_one_profile_of_many_labels_is_quickly_compared():
    """Sets with shared labels are found by their labels, not by their pairs."""
    X, labels, _, _ = screen(15, treatments=150, wells=2, controls=0, width=6)
    labels[0] = {f"x{i}" for i in range(300)} | {"t0"}
    labels[7] = {"t3", "x5"}
    sharing = Sharing.of_sets(labels)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.integers(0, 9, (30, 6)), rng.integers(0, 300, (200, 6))])
    expected = [
        [any(labels[row] & labels[other] for other in own[:i]) for i, row in enumerate(own)] for own in drawn
    ]
    np.testing.assert_array_equal(sharing.repeated(drawn), expected)
    score = percent_matching(X, labels, list(range(300)), nulls=50)
    assert (score.n, score.per_group.filter(pl.col("label") == "x5")["n"][0]) == (151, 2)


def test_percent_matching_leaves_out_the_same_compound():
    rng = np.random.default_rng(5)
    compounds = np.repeat(np.arange(30), 2)  # two concentrations each
    # Three compounds a label; labels of even number say nothing but who the compound is.
    label = compounds // 3
    X = rng.normal(size=(30, 25))[compounds] * 2 + rng.normal(size=(60, 25))
    X += np.where(label[:, None] % 2, 3 * rng.normal(size=(10, 25))[label], 0)
    labels = [{f"m{i}"} for i in label]
    labels[0] = labels[1] = {"alone"}
    labels[2] = set()
    score = percent_matching(X, labels, compounds.tolist())
    near = similarities(X, "correlation")
    for name, value, median, threshold, n in score.per_group.rows():
        rows = [row for row, own in enumerate(labels) if name in own]
        pairs = [near[a, b] for a, b in combinations(rows, 2) if compounds[a] != compounds[b]]
        assert median == pytest.approx(np.median(pairs), abs=1e-9)
        assert (value, n) == (float(median > threshold), len(rows))
    assert score.left_out == {"no label": 1, "no other compound of its label": 2}
    values = dict(score.per_group.select("label", "value").rows())
    assert "alone" not in values
    assert np.mean([values[f"m{i}"] for i in range(1, 10, 2)]) == 1
    assert np.mean([values[f"m{i}"] for i in range(0, 10, 2)]) < 0.5
    # With the compound known to be the cause, the same pairs would match.
    assert percent_replicating(X, [{str(c)} for c in compounds]).value == 1


def test_a_profile_with_several_labels_counts_for_each():
    X, _, _, _ = screen(6, treatments=8, wells=3, controls=0)
    labels = [{f"a{i // 6}", f"b{i // 8}"} for i in range(24)]
    score = percent_matching(X, labels, list(range(24)))
    near = similarities(X, "correlation")
    medians = dict(score.per_group.select("label", "median").rows())
    assert sorted(medians) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2"]
    assert medians["b1"] == pytest.approx(np.median([near[a, b] for a, b in combinations(range(8, 16), 2)]))


# --- replicate reproducibility


@pytest.mark.parametrize("kind", ["correlation", "cosine"])
@pytest.mark.parametrize("wells", [2, 5])
def test_replicate_reproducibility_equals_a_loop(kind, wells):
    X, labels, _, _ = screen(7, wells=wells)
    score = replicate_reproducibility(X, labels, similarity=kind)
    near = similarities(X, kind)
    own, rest = [], []
    for a, b in combinations(range(len(X)), 2):
        if labels[a] and labels[b]:
            (own if labels[a] & labels[b] else rest).append(near[a, b])
    above = np.array(own) > np.percentile(rest, 95)
    assert (score.correct, score.n, score.unit) == (above.sum(), len(own), None)
    assert 0 < score.value < 1
    assert score.left_out == {"no label": 16}
    groups = score.per_group
    assert groups["n_pairs"].to_list() == [wells * (wells - 1) // 2] * 12
    assert (groups["value"] * groups["n_pairs"]).sum() == pytest.approx(above.sum())


@pytest.mark.parametrize("several", [False, True])
def test_pairs_that_are_too_many_to_list_are_counted_in_passes(monkeypatch, several):
    X, labels, _, _ = screen(16, treatments=7, wells=9, controls=5)
    X[3] = X[4] = X[5]
    if several:
        labels = [own | ({"t0"} if row % 5 == 0 and own else set()) for row, own in enumerate(labels)]
    listed = replicate_reproducibility(X, labels)
    monkeypatch.setattr(replicates, "LISTED", 100)
    monkeypatch.setattr(replicates, "OF_GROUP", 50)
    passed = replicate_reproducibility(X, labels)
    assert (passed.value, passed.n, passed.correct) == (listed.value, listed.n, listed.correct)
    assert passed.per_group.equals(listed.per_group)
    assert 0 < passed.value < 1


def test_on_a_real_screen(data_dir):
    path = data_dir / "moa_screen" / "Batch1_normalized_feature_select_negcon_batch.csv.gz"
    wells = pl.read_csv(path, infer_schema_length=None).filter(pl.col("Metadata_Plate") == "BR00122250")
    X = wells.select(name for name in wells.columns if not name.startswith("Metadata_")).to_numpy()
    controls = (wells["Metadata_control_type"] == "negcon").fill_null(False).to_numpy()
    names = wells["Metadata_broad_sample"].to_list()
    labels = [None if control else name for name, control in zip(names, controls, strict=True)]
    score = replicate_reproducibility(X, labels)
    treated = np.flatnonzero(~controls)
    near = np.corrcoef(X[treated])
    code = np.unique(np.array(names)[treated], return_inverse=True)[1]
    upper = np.triu(np.ones(near.shape, dtype=bool), 1)
    same = code[:, None] == code
    above = near[same & upper] > np.percentile(near[~same & upper], 95)
    assert (score.correct, score.n) == (above.sum(), len(above))
    # The plate's mAP against DMSO is .74: most compounds replicate, and stand apart from the controls.
    assert 0.5 < percent_replicating(X, labels).value < 1
    assert 0.5 < mp_value(X, labels, controls).value <= 1
    assert grit(X, labels, controls, ["p"] * len(X)).value > 1


def test_replicate_reproducibility_worked_by_hand():
    # Cosines of non-replicates, by angle: 60, 70, 50, 60 -> the 95th percentile lies just below cos 50°.
    angle = np.deg2rad([0.0, 10, 60, 70])
    X = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    score = replicate_reproducibility(X, list("aabb"), similarity="cosine")
    assert (score.value, score.n, score.correct) == (1, 2, 2)
    swapped = replicate_reproducibility(X, list("abab"), similarity="cosine")
    # Non-replicates at 10 (twice), 70 and 50 degrees; replicates at 60.
    assert (swapped.value, swapped.n) == (0, 2)
    with pytest.raises(EvaluationError, match=r"all wells are of one treatment"):
        replicate_reproducibility(X, list("aaaa"), similarity="cosine")
    with pytest.raises(EvaluationError, match=r"no query is left \(4 with no replicate\)"):
        replicate_reproducibility(X, list("abcd"), similarity="cosine")


# --- grit


@pytest.mark.parametrize("kind", ["correlation", "cosine"])
@pytest.mark.parametrize("same_plate", [False, True])
def test_grit_equals_a_loop(kind, same_plate):
    X, labels, is_control, plates = screen(8)
    labels[5] = {"t1", "t2"}
    labels[-1] = {"t1"}  # a control's label does not matter
    score = grit(X, labels, is_control, plates, similarity=kind, same_plate=same_plate)
    near = similarities(X, kind)
    expected = {}
    for q in range(len(X)):
        there = [c for c in range(len(X)) if c != q and (not same_plate or plates[c] == plates[q])]
        own = [near[q, c] for c in there if labels[c] & labels[q] and not is_control[c]]
        against = np.array([near[q, c] for c in there if is_control[c]])
        if own and not is_control[q]:
            expected[q] = np.mean((np.array(own) - against.mean()) / against.std())
    assert score.per_query["row"].to_list() == list(expected)
    np.testing.assert_allclose(score.per_query["value"], list(expected.values()), atol=1e-8)
    assert score.value == pytest.approx(np.mean(list(expected.values())))
    assert score.left_out["negative control"] == 16
    by_label = dict(score.per_group.select("label", "value").rows())
    t2 = [value for row, value in expected.items() if "t2" in labels[row]]
    assert by_label["t2"] == pytest.approx(np.mean(t2))
    assert np.mean([by_label[f"t{i}"] for i in range(1, 12, 2)]) > 1
    assert abs(np.mean([by_label[f"t{i}"] for i in range(4, 12, 2)])) < 0.5


def test_grit_says_who_has_nothing_to_be_held_against():
    angle = np.deg2rad([0.0, 60, 30, 90, 45, 45])
    X = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    controls = [False, False, True, True, False, False]
    score = grit(X, ["a", "a", None, None, "b", None], controls, ["p"] * 6, similarity="cosine")
    # 0: controls at cos 30 and cos 90; its replicate at cos 60: z = (.5 - .433) / .433.
    first = (0.5 - math.sqrt(3) / 4) / (math.sqrt(3) / 4)
    assert score.per_query["value"][0] == pytest.approx(first)
    # 1 is as far from both controls: they do not spread. 4 has no replicate, 5 no label.
    assert score.per_query["row"].to_list() == [0]
    assert score.left_out == {
        "controls all alike": 1, "negative control": 2, "no label": 1, "no replicate": 1
    }  # fmt: skip
    with pytest.raises(
        EvaluationError, match=r"no query is left \(2 with fewer than two controls, 1 with neg"
    ):
        grit(X[[0, 1, 2]], ["a", "a", None], [False, False, True], ["p"] * 3, similarity="cosine")


# --- mp-value


def by_scikit_learn(wells, controls, deals):
    """Squared distances of a treatment, the first of `deals` and the permuted ones, as cytominer-eval has them."""
    both = np.concatenate([wells, controls])
    scores = PCA(n_components=0.9, svd_solver="full").fit_transform(both)
    found = []
    for own in deals:
        rest = np.setdiff1d(np.arange(len(both)), own)
        fitted = EmpiricalCovariance().fit(scores[rest])
        found.append(fitted.mahalanobis(scores[own].mean(axis=0, keepdims=True))[0])
    return np.array(found)


@pytest.mark.parametrize(("wells", "controls", "width"), [(4, 24, 60), (1, 16, 10), (6, 40, 8), (8, 6, 30)])
def test_mp_value_equals_scikit_learn(monkeypatch, wells, controls, width):
    X, labels, is_control, _ = screen(9, treatments=6, wells=wells, controls=controls, width=width)
    seen = []
    distances = against_controls._distances
    monkeypatch.setattr(
        against_controls,
        "_distances",
        lambda both, deals: seen.append((both, deals, distances(both, deals))) or seen[-1][2],
    )
    score = mp_value(X, labels, is_control)
    assert len(seen) == 6
    for (both, deals, found), group in zip(seen, score.per_group.iter_rows(named=True), strict=True):
        assert deals.shape == (101, wells)
        assert deals[0].tolist() == list(range(wells))
        expected = by_scikit_learn(both[:wells], both[wells:], deals)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert group["distance"] == pytest.approx(expected[0])
        assert group["mp_value"] == np.mean(expected[1:] >= expected[0] * (1 - 1e-7))
        assert group["value"] == float(group["mp_value"] < 0.05)
    assert score.left_out == {"negative control": controls}


def test_mp_value_by_the_pseudo_inverse_where_a_feature_of_the_controls_is_constant():
    rng = np.random.default_rng(3)
    X = np.zeros((14, 2))
    X[:, 0] = 1 + 0.3 * rng.normal(size=14)
    X[10:, 1] = 0.5
    score = mp_value(X, [set()] * 10 + [{"t"}] * 4, [True] * 10 + [False] * 4)
    # By definition, over the directions in which the controls vary; both components are kept.
    far = X[10:].mean(axis=0) - X[:10].mean(axis=0)
    expected = far @ np.linalg.pinv(np.cov(X[:10].T, bias=True), rcond=1e-10) @ far
    assert score.per_group["distance"][0] == pytest.approx(expected, rel=1e-9)
    assert expected < 10
    # A deal with wells among the controls sees the shift, and is as far or farther.
    assert score.per_group["mp_value"][0] > 0.05


@pytest.mark.parametrize(("wells", "controls", "width"), [(40, 60, 8), (6, 60, 30), (25, 60, 26)])
def test_deals_in_parts_and_the_smaller_side_change_nothing(monkeypatch, wells, controls, width):
    rng = np.random.default_rng(4)
    both = rng.normal(size=(wells + controls, width))
    deals = np.stack([rng.permutation(len(both))[:wells] for _ in range(7)])
    expected = by_scikit_learn(both[:wells], both[wells:], deals)
    for held in (2**22, wells * width * 3, 1):
        monkeypatch.setattr(against_controls, "DEALT", held)
        np.testing.assert_allclose(against_controls._distances(both, deals), expected, rtol=1e-9)


def test_a_large_group_takes_no_more_memory_than_a_block():
    rng = np.random.default_rng(5)
    both = rng.normal(size=(900, 10))
    deals = np.stack([rng.permutation(900)[:600] for _ in range(40)])
    tracemalloc.start()
    against_controls._distances(both, deals)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 2**20  # 40 matrices of 600 x 600 are 110 MiB


def test_mp_values_are_small_for_what_does_something_and_spread_for_what_does_not():
    X, labels, is_control, _ = screen(10, treatments=80, controls=60, width=10, effect=3.0)
    score = mp_value(X, labels, is_control)
    by_label = dict(score.per_group.select("label", "mp_value").rows())
    assert np.median([by_label[f"t{i}"] for i in range(1, 80, 2)]) < 0.03
    idle = np.array([by_label[f"t{i}"] for i in range(0, 80, 2)])
    assert 0.3 < idle.mean() < 0.7
    # A treatment's mp-value depends on itself and the controls, not on what else is in the call.
    alone = mp_value(
        X[[*range(4, 8), *range(320, 380)]], labels[4:8] + labels[320:], [False] * 4 + [True] * 60
    )
    assert alone.per_group["mp_value"][0] == by_label["t1"]


# --- all of them

CALLS = {
    "percent_replicating": lambda X, labels, controls, plates, ids=None, **k: percent_replicating(
        X, labels, ids, nulls=60, **k
    ),
    "percent_matching": lambda X, labels, controls, plates, ids=None, **k: percent_matching(
        X, labels, [None] * len(X), ids, nulls=60, **k
    ),
    "replicate_reproducibility": lambda X, labels, controls, plates, ids=None, **k: replicate_reproducibility(
        X, labels, ids, **k
    ),
    "grit": lambda X, labels, controls, plates, ids=None, **k: grit(
        X, labels, controls, plates, ids, same_plate=True, **k
    ),
    "mp_value": lambda X, labels, controls, plates, ids=None: mp_value(
        X, labels, controls, ids, permutations=30
    ),
}


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_order_of_rows_names_and_scale_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    X, labels, controls, plates = screen(seed, treatments=6, wells=3, controls=12, width=6)
    turned = rng.permutation(len(X))
    # Names in another order than before.
    other_names = [{"label " + one[::-1] + str(9 - int(one[1:]))} if (one := next(iter(labels[i]), "")) else set()
                   for i in turned]  # fmt: skip
    for name, call in CALLS.items():
        score = call(X, labels, controls, plates)
        scale = 3.7 if name == "mp_value" else rng.uniform(0.1, 9, (len(X), 1))
        other = call((X * scale)[turned] if name == "mp_value" else X[turned] * scale, other_names,
                     controls[turned], [f"plate {plates[i]}" for i in turned])  # fmt: skip
        assert other.value == pytest.approx(score.value, abs=1e-9)
        assert (other.n, other.left_out) == (score.n, score.left_out)
        again = call(X, labels, controls, plates)
        assert again.per_group.equals(score.per_group)


@pytest.mark.parametrize("name", CALLS)
def test_a_profile_without_direction_is_named(name):
    X, labels, controls, plates = screen(11, treatments=5, wells=3, controls=8)
    ids = [f"w{i}" for i in range(len(X))]
    for bad, message in [(0, r"profile 'w2' is all zeros"), (np.nan, r"profile 'w2' has nan in feature 1")]:
        broken = X.copy()
        broken[2] = bad
        with pytest.raises(EvaluationError, match=message):
            CALLS[name](broken, labels, controls, plates, ids)
        unlabelled = [set() if row == 2 else own for row, own in enumerate(labels)]
        assert CALLS[name](broken, unlabelled, controls, plates, ids).left_out["no label"] >= 1
    with pytest.raises(EvaluationError, match=r"22 labels for 23 profiles"):
        CALLS[name](X, labels[1:], controls, plates)
    with pytest.raises(EvaluationError, match=name + r": no query is left \("):
        CALLS[name](X, [set()] * 23, controls, plates)
    if name != "mp_value":
        X[2] = 7
        with pytest.raises(EvaluationError, match=r"profile 'w2' is the same in every feature"):
            CALLS[name](X, labels, controls, plates, ids)
        assert CALLS[name](X, labels, controls, plates, ids, similarity="cosine").n > 0
        with pytest.raises(UnknownNameError, match=r"similarity 'correlations'. Did you mean 'correlation'"):
            CALLS[name](X, labels, controls, plates, similarity="correlations")


def test_wrong_parameters_and_missing_controls_are_explained():
    X, labels, controls, plates = screen(12, treatments=5, wells=3, controls=8)
    with pytest.raises(EvaluationError, match=r"percent_replicating: nulls is 0"):
        percent_replicating(X, labels, nulls=0)
    with pytest.raises(EvaluationError, match=r"mp_value: permutations is 0"):
        mp_value(X, labels, controls, permutations=0)
    for alpha in (5, 0, 1, -0.1, np.nan):
        with pytest.raises(EvaluationError, match=rf"mp_value: alpha is {alpha}: take one between 0 and 1"):
            mp_value(X, labels, controls, alpha=alpha)
    with pytest.raises(EvaluationError, match=r"mp_value: 1 negative controls among 23 wells"):
        mp_value(X, labels, np.arange(23) == 22)
    X[controls] = 1
    with pytest.raises(EvaluationError, match=r"all 8 negative controls are alike"):
        mp_value(X, labels, controls)
    with pytest.raises(EvaluationError, match=r"22 compounds for 23 profiles"):
        percent_matching(X, labels, list(range(22)))
    with pytest.raises(EvaluationError, match=r"22 plates for 23 profiles"):
        grit(X, labels, controls, plates[1:])
