"""Treatment strength and activity, against naive loops over the paper's steps, exact counts and SciPy."""

from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_profiles import bbbc021_wells
from scipy.stats import false_discovery_control

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics.strength import activity, treatment_strength


def screen(seed, plates=3, controls=6, treatments=4, d=5, effect=2.0):
    """Wells of some plates: the first treatments have an effect that grows with their number, then controls."""
    rng = np.random.default_rng(seed)
    names, on, is_control, X = [], [], [], []
    direction = rng.normal(size=(treatments, d))
    for plate in range(plates):
        shift = rng.normal(size=d)
        for well in range(treatments + controls):
            treated = well < treatments
            names.append(f"t{well}" if treated else None)
            on.append(f"p{plate}")
            is_control.append(not treated)
            X.append(rng.normal(size=d) + shift + (direction[well] * well * effect if treated else 0))
    return np.array(X), names, on, is_control


def naive_strength(X, treatments, plates, controls):
    """The five steps of the paper, by loops."""
    scores = {}
    for row in range(len(X)):
        if controls[row]:
            continue
        own = [r for r in range(len(X)) if plates[r] == plates[row] and controls[r]]
        median = np.median(X[own], axis=0)
        distances = [np.sqrt(((X[r] - median) ** 2).sum()) for r in own]
        distance = np.sqrt(((X[row] - median) ** 2).sum())
        scores.setdefault(treatments[row], []).append((distance - np.mean(distances)) / np.std(distances))
    return {name: np.mean(values) for name, values in sorted(scores.items())}


def test_strength_equals_the_papers_steps():
    X, treatments, plates, controls = screen(1)
    score = treatment_strength(X, treatments, plates, controls)
    expected = naive_strength(X, treatments, plates, controls)
    assert score.per_group["treatment"].to_list() == list(expected)
    np.testing.assert_allclose(score.per_group["value"], list(expected.values()), atol=1e-12)
    assert score.per_group["n_wells"].to_list() == [3] * 4
    assert score.value == pytest.approx(np.mean(list(expected.values())))
    assert (score.n, score.unit, score.left_out) == (4, "group", {})
    assert score.per_query["row"].to_list() == [r for r in range(30) if not controls[r]]


def test_strength_worked_by_hand():
    # Controls 0, 1, 3 in one dimension: median 1, distances 1, 0, 2, mean 1, variance 2/3; a well at 6 is 5 away.
    X = np.array([[0.0], [1], [3], [6], [-4]])
    score = treatment_strength(X, [None, None, None, "t", "t"], ["p"] * 5, [True] * 3 + [False] * 2)
    assert score.per_query.select("row", "value").rows() == [
        (3, pytest.approx(4 / np.sqrt(2 / 3))),
        (4, pytest.approx(4 / np.sqrt(2 / 3))),
    ]
    assert score.value == pytest.approx(4 * np.sqrt(1.5))


def test_wells_that_cannot_be_scored_are_counted():
    X = np.arange(14.0)[:, None]
    X[13] = np.nan  # without a treatment: never looked at
    plates = ["p"] * 4 + ["none"] + ["two"] * 3 + ["same"] * 4 + ["p", "p"]
    controls = [True, True, True, False, False, True, True, False, True, True, True, False, False, False]
    X[8:11] = 5
    treatments = [None] * 3 + ["a", "a", None, None, "a"] + ["c"] * 3 + ["b", "b", None]
    score = treatment_strength(X, treatments, plates, controls)
    assert score.left_out == {
        "negative controls of its plate all equally far": 2,  # two controls always are, and so are equal ones
        "no negative control on its plate": 1,
        "no treatment": 1,
    }
    assert score.per_query.select("row", "treatment").rows() == [(3, "a"), (12, "b")]
    again = activity(X, treatments, plates, controls)
    assert again.left_out == {
        "fewer than 3 negative controls on its plate": 1,
        "negative controls of its plate all equally far": 1,
        "no negative control on its plate": 1,
        "no treatment": 1,
    }
    for function in (treatment_strength, activity):
        with pytest.raises(
            EvaluationError, match=r"no query is left \(1 with no negative control on its plate\)"
        ):
            function(X[3:5], ["a", None], ["p", "q"], [False, True])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_neither_order_nor_scale_nor_shift_nor_names_change_anything(seed, scale):
    X, treatments, plates, controls = screen(2)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(X))
    shift = rng.normal(size=5) * 3
    same = {"treatments": [treatments[i] for i in order], "controls": [controls[i] for i in order]}
    score = treatment_strength(X, treatments, plates, controls)
    again = treatment_strength(X[order] * scale, plates=[plates[i] + "x" for i in order], **same)
    np.testing.assert_allclose(again.per_group["value"], score.per_group["value"], rtol=1e-9)
    moved = treatment_strength(X + shift, treatments, plates, controls)
    np.testing.assert_allclose(moved.per_group["value"], score.per_group["value"], rtol=1e-9)
    called = activity(X, treatments, plates, controls)
    again = activity(X[order] * scale, plates=[plates[i] + "x" for i in order], **same)
    assert again.per_group["p_value"].to_list() == called.per_group["p_value"].to_list()


# --- activity


def naive_null(X, treatments, plates, controls):
    """Leave-one-out z-scores of controls and z-scores of treated wells, by plate, by loops."""
    null, wells = {}, {}
    for plate in sorted(set(plates)):
        own = [r for r in range(len(X)) if plates[r] == plate and controls[r]]
        aside = [np.linalg.norm(X[r] - np.median(X[[o for o in own if o != r]], axis=0)) for r in own]
        null[plate] = []
        for i in range(len(own)):
            others = np.delete(aside, i)
            null[plate].append((aside[i] - others.mean()) / others.std())
        median = np.median(X[own], axis=0)
        for r in range(len(X)):
            if plates[r] == plate and not controls[r]:
                wells.setdefault(treatments[r], []).append(
                    (np.linalg.norm(X[r] - median) - np.mean(aside)) / np.std(aside)
                )
    return null, wells


def test_activity_counts_all_choices_of_controls_where_they_are_few():
    X, treatments, plates, controls = screen(3, effect=0.5)
    null, wells = naive_null(X, treatments, plates, controls)
    score = activity(X, treatments, plates, controls)
    choices = [np.mean(chosen) for chosen in product(*null.values())]
    assert len(choices) == 6**3
    for row in score.per_group.iter_rows(named=True):
        strength = np.mean(wells[row["treatment"]])
        reached = sum(choice >= strength - 1e-9 for choice in choices)
        assert row["strength"] == pytest.approx(strength, abs=1e-8)
        assert row["p_value"] == pytest.approx((1 + reached) / (1 + 216))
        assert (row["n_wells"], row["n_null"]) == (3, 216)
    table = score.per_group
    np.testing.assert_allclose(
        table["q_value"], false_discovery_control(table["p_value"].to_numpy()), atol=1e-12
    )
    assert table["is_active"].to_list() == (table["q_value"] < 0.05).to_list()
    assert table["value"].to_list() == table["is_active"].cast(pl.Float64).to_list()
    assert score.value == table["value"].mean()
    assert 0 < score.correct < 4


def test_drawn_choices_come_near_all_choices():
    X, treatments, plates, controls = screen(4, effect=0.3)
    exact = activity(X, treatments, plates, controls, draws=216)
    drawn = activity(X, treatments, plates, controls, draws=215)
    assert exact.per_group["n_null"][0] == 216
    assert drawn.per_group["n_null"][0] == 215
    close = activity(np.concatenate([X] * 2), treatments * 2, plates * 2, controls * 2, draws=20_000)
    assert close.per_group["n_null"].to_list() == [20_000] * 4
    np.testing.assert_allclose(drawn.per_group["p_value"], exact.per_group["p_value"], atol=0.1)


def test_two_wells_of_a_plate_take_two_controls():
    # Leave-one-out distances of 0, 1, 2, 4, 8 by hand would be long: what matters is how many pairs there are.
    rng = np.random.default_rng(5)
    X = rng.normal(size=(9, 3))
    controls = [True] * 5 + [False] * 4
    score = activity(X, [None] * 5 + ["a", "a", "b", "b"], ["p"] * 9, controls)
    assert score.per_group["n_null"].to_list() == [10, 10]  # 5 choose 2
    null, wells = naive_null(X, [None] * 5 + ["a", "a", "b", "b"], ["p"] * 9, controls)
    pairs = [(null["p"][i] + null["p"][j]) / 2 for i in range(5) for j in range(i)]
    reached = sum(pair >= np.mean(wells["a"]) - 1e-9 for pair in pairs)
    assert score.per_group["p_value"][0] == pytest.approx((1 + reached) / 11)
    more = activity(X, [None] * 3 + ["a", "a", "b", "b", "b", "b"], ["p"] * 9, [True] * 3 + [False] * 6)
    assert more.left_out == {"more wells of the treatment than controls on a plate": 4}
    assert more.per_group["treatment"].to_list() == ["a"]
    assert more.per_query["row"].to_list() == [3, 4]


def test_a_p_value_does_not_change_with_what_else_is_in_the_call():
    X, treatments, plates, controls = screen(6, controls=20, effect=0.4)
    whole = activity(X, treatments, plates, controls, draws=500)
    alone = [t in (None, "t2") for t in treatments]
    part = activity(
        X[alone],
        [t for t, a in zip(treatments, alone, strict=True) if a],
        [p for p, a in zip(plates, alone, strict=True) if a],
        [c for c, a in zip(controls, alone, strict=True) if a],
        draws=500,
    )
    column = "p_value"
    assert part.per_group[column].to_list() == whole.per_group.filter(treatment="t2")[column].to_list()
    other = activity(X, treatments, plates, controls, draws=500, seed=1)
    assert other.per_group[column].to_list() != whole.per_group[column].to_list()


@pytest.mark.parametrize("pool", ["plates", "all"])
def test_p_values_of_treatments_without_effect_are_uniform(pool):
    rng = np.random.default_rng(7)
    X = rng.normal(size=(4 * 96, 10))
    plates = np.repeat(np.arange(4), 96).astype(str).tolist()
    controls = [well < 32 for _ in range(4) for well in range(96)]
    treatments = [f"t{well}" for _ in range(4) for well in range(96)]
    score = activity(X, treatments, plates, controls, pool=pool, draws=2000)
    p_values = score.per_group["p_value"].to_numpy()
    assert len(p_values) == 64
    assert abs(p_values.mean() - 0.5) < 0.12
    assert 0.0 <= np.mean(p_values < 0.1) < 0.25
    assert score.value < 0.05
    X[[not c for c in controls]] += 3
    assert activity(X, treatments, plates, controls, pool=pool, draws=2000).value == 1


def test_pooled_controls_are_as_many_as_the_wells():
    X, treatments, plates, controls = screen(8, plates=2, controls=3)
    few = activity(X, treatments, plates, controls)
    pooled = activity(X, treatments, plates, controls, pool="all")
    assert few.per_group["n_null"].to_list() == [9] * 4
    assert pooled.per_group["n_null"].to_list() == [15] * 4  # 6 choose 2
    assert pooled.per_group["strength"].to_list() == few.per_group["strength"].to_list()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pool": "plate"}, UnknownNameError, r"unknown pool of controls 'plate'. Did you mean 'plates'"),
        ({"alpha": 0.0}, EvaluationError, r"alpha is 0.0 and draws 10000: take alpha between 0 and 1"),
        ({"draws": 0}, EvaluationError, r"alpha is 0.05 and draws 0"),
        (
            {"draws": 10**30},
            EvaluationError,
            r"draws 10{30}: take alpha between 0 and 1, and 1 to 1000000 draws",
        ),
        ({"alpha": float("nan")}, EvaluationError, r"alpha is nan"),
        (
            {"X": np.full((30, 6), 1e200)},
            EvaluationError,
            r"has 1e\+200 in feature 1 \(30 such profiles\), beyond",
        ),
        (
            {"X": np.full((30, 6), 1e-200)},
            EvaluationError,
            r"no element of 30 profiles is larger than 1e-200: b",
        ),
        ({"plates": ["p"]}, EvaluationError, r"1 plates for 30 profiles"),
        ({"controls": [False] * 30}, EvaluationError, r"18 with no treatment.*|12 with no negative control"),
    ],
)
def test_what_it_lacks_is_said(changes, error, message):
    X, treatments, plates, controls = screen(9)
    with pytest.raises(error, match=message):
        activity(**({"X": X, "treatments": treatments, "plates": plates, "controls": controls} | changes))


def test_a_profile_that_is_not_finite_is_named_and_zeros_are_welcome():
    X, treatments, plates, controls = screen(10)
    X[0] = 0
    assert np.isfinite(treatment_strength(X, treatments, plates, controls).value)
    X[1, 4] = np.inf
    with pytest.raises(EvaluationError, match=r"profile 'w1' has inf in feature 5"):
        treatment_strength(X, treatments, plates, controls, ids=[f"w{i}" for i in range(30)])


def test_bbbc021_has_strong_treatments(data_dir, capsys):
    X, groups, _ = bbbc021_wells(data_dir)
    is_control = pl.col("control_type") == "negative"
    treatments = groups.select(
        pl.when(is_control).then(None).otherwise(pl.format("{} {}", "compound", "concentration"))
    ).to_series()
    controls = (groups["control_type"] == "negative").to_numpy()
    score = treatment_strength(X, treatments.to_list(), groups["plate"].to_list(), controls)
    called = activity(X, treatments.to_list(), groups["plate"].to_list(), controls)
    with capsys.disabled():
        print(
            f"\nbbbc021: mean strength {score.value:.1f}, median {score.per_group['value'].median():.1f}, "
            f"of {score.n}; active {called.correct}/{called.n}, left out {called.left_out}",
            end="",
        )
    assert (score.n, len(score.per_query), score.left_out) == (103, 302, {})
    plate = groups["plate"][int(np.argmax(controls))]
    on = (groups["plate"] == plate).to_numpy()
    distances = np.linalg.norm(X[on] - np.median(X[on & controls], axis=0), axis=1)
    treated = np.flatnonzero(on & ~controls)
    own = distances[controls[on]]
    mine = score.per_query.filter(pl.col("row").is_in(treated.tolist()))["value"].to_numpy()
    np.testing.assert_allclose(mine, (distances[~controls[on]] - own.mean()) / own.std(), rtol=1e-9)
    # Annotated because they are strong: most treatments of this set are far from DMSO.
    assert score.per_group["value"].median() > 5
    assert called.value > 0.5
