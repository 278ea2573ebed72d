"""Cell to field to well, against hand-worked values, naive loops and pycytominer."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import trim_mean

from warehouse.aggregate import aggregate
from warehouse.errors import ProfileError, UnknownNameError

NAN = float("nan")


def naive(codes, profiles, operator):
    function = {"mean": np.mean, "median": np.median, "trimmed_mean": lambda v: trim_mean(v, 0.1)}[operator]
    rows = []
    for code in sorted(set(codes.tolist())):
        row = []
        for feature in range(profiles.shape[1]):
            values = [float(v) for v in profiles[codes == code, feature] if not np.isnan(v)]
            row.append(function(values) if values else NAN)
        rows.append(row)
    return np.array(rows, dtype=np.float64).reshape(-1, profiles.shape[1])


def test_values_worked_by_hand():
    codes = np.array([7, 3, 7, 3, 7, 3, 3])
    profiles = np.array(
        [[1, NAN], [10, 1], [2, NAN], [20, NAN], [6, NAN], [40, 3], [80, 8]], dtype=np.float32
    )
    groups, mean = aggregate(codes, profiles, "mean")
    assert groups.tolist() == [3, 7]
    np.testing.assert_array_equal(mean, np.array([[37.5, 4], [3, NAN]], np.float32))
    groups, median = aggregate(codes, profiles, "median")
    assert groups.tolist() == [3, 7]
    np.testing.assert_array_equal(median, np.array([[30, 3], [2, NAN]], np.float32))
    assert mean.dtype == median.dtype == np.float32


@settings(max_examples=60, deadline=None)
@given(data=st.data(), operator=st.sampled_from(["mean", "median", "trimmed_mean"]))
def test_equals_a_naive_loop_in_any_row_order(data, operator):
    n = data.draw(st.integers(0, 30))
    d = data.draw(st.integers(1, 4))
    codes = data.draw(hnp.arrays(np.int64, n, elements=st.integers(-3, 3)))
    values = st.one_of(st.just(NAN), st.floats(-1000, 1000, width=32))
    profiles = data.draw(hnp.arrays(np.float32, (n, d), elements=values))
    groups, result = aggregate(codes, profiles, operator)
    assert groups.tolist() == sorted(set(codes.tolist()))
    np.testing.assert_allclose(result, naive(codes, profiles, operator), rtol=1e-6, atol=1e-6)
    order = np.array(data.draw(st.permutations(range(n))), dtype=np.int64)
    _, shuffled = aggregate(codes[order], profiles[order], operator)
    np.testing.assert_allclose(shuffled, result, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operator", ["mean", "median"])
def test_equals_pycytominer(operator):
    from pycytominer import aggregate as reference

    rng = np.random.default_rng(20_240_501)
    codes = rng.integers(0, 90, 3000)
    profiles = rng.normal(3, 5, (3000, 12)).astype(np.float32)
    profiles[rng.random(profiles.shape) < 0.03] = NAN
    profiles[codes == 4, 2] = NAN
    names = [f"Cells_f{i}" for i in range(12)]
    frame = pd.DataFrame(profiles, columns=names).assign(Metadata_Well=codes)
    expected = reference(frame, strata=["Metadata_Well"], features=names, operation=operator)
    groups, result = aggregate(codes, profiles, operator)
    assert groups.tolist() == expected["Metadata_Well"].tolist()
    np.testing.assert_allclose(result, expected[names].to_numpy(), rtol=1e-6, atol=1e-6)
    assert np.isnan(result[4, 2])


def test_a_mean_is_accumulated_in_double_precision():
    # In float32 the sum of these stops growing at 2**24.
    profiles = np.ones((2**24 + 4096, 1), np.float32)
    profiles[0] = 2.0**24
    _, result = aggregate(np.zeros(len(profiles), np.int64), profiles, "mean")
    assert result[0, 0] == np.float32((2.0**24 + len(profiles) - 1) / len(profiles))


@pytest.mark.parametrize("operator", ["mean", "median", "trimmed_mean"])
def test_does_not_depend_on_threads_nor_change_its_input(operator):
    rng = np.random.default_rng(5)
    codes = np.sort(rng.integers(0, 400, 40_000))
    profiles = rng.normal(size=(40_000, 3)).astype(np.float32)
    before = profiles.copy()
    one = aggregate(codes, profiles, operator, threads=1)
    many = aggregate(codes, profiles, operator, threads=5)
    np.testing.assert_array_equal(one[1], many[1])
    np.testing.assert_array_equal(profiles, before)


def test_an_infinite_value_is_a_value():
    profiles = np.array([[np.inf], [1], [NAN], [2]], np.float32)
    codes = np.zeros(4, np.int64)
    assert aggregate(codes, profiles, "mean")[1].tolist() == [[np.inf]]
    assert aggregate(codes, profiles, "median")[1].tolist() == [[2]]


def test_unknown_operator_is_named():
    with pytest.raises(
        UnknownNameError,
        match=r"operator 'medain'. Did you mean 'median'\? Known: mean, median, trimmed_mean",
    ):
        aggregate(np.zeros(1, np.int64), np.zeros((1, 1)), "medain")


def test_codes_that_do_not_fit_are_named():
    with pytest.raises(ProfileError, match=r"\(3,\) codes do not fit profiles of shape \(4, 2\)"):
        aggregate(np.zeros(3, np.int64), np.zeros((4, 2)), "mean")
