"""The null of average precision, against all orders, the closed form of its mean, and copairs 0.5.5."""

from itertools import combinations

import numpy as np
import pytest

from warehouse.errors import EvaluationError
from warehouse.metrics.null import Null, expected, normalised


def every_order(matches, total):
    """Average precision of each set of ranks."""
    return np.array(
        [
            np.mean([(i + 1) / rank for i, rank in enumerate(ranks)])
            for ranks in combinations(range(1, total + 1), matches)
        ]
    )


@pytest.mark.parametrize(
    ("matches", "total"), [(1, 1), (1, 4), (2, 5), (3, 7), (2, 12), (4, 6), (5, 10), (6, 12), (8, 9)]
)
def test_draws_are_all_orders_equally_often(matches, total):
    exact = every_order(matches, total)
    values, counts = np.unique(exact.round(6), return_counts=True)
    size = 100_000
    drawn = Null(size, 3).draws(matches, total)
    place = np.searchsorted(values, drawn - 2e-6)
    np.testing.assert_allclose(values[place], drawn, atol=2e-6)
    share = counts / len(exact)
    # Five standard errors of each share.
    bound = 5 * np.sqrt(share * (1 - share) / size) + 1e-12
    assert (np.abs(np.bincount(place, minlength=len(values)) / size - share) <= bound).all()
    assert expected(np.array([matches]), np.array([total]))[0] == pytest.approx(exact.mean(), abs=1e-12)


@pytest.mark.parametrize(("matches", "total"), [(3, 40_000), (30, 200), (200, 20_000), (60, 100)])
def test_the_mean_of_many_is_the_closed_form(matches, total):
    drawn = Null(20_000, 1).draws(matches, total)
    mean = expected(np.array([matches]), np.array([total]))[0]
    assert drawn.mean(dtype=float) == pytest.approx(mean, abs=5 * drawn.std() / np.sqrt(len(drawn)))
    assert (drawn > 0).all()
    assert (drawn <= 1).all()


@pytest.mark.parametrize(("matches", "total"), [(3, 50), (20, 300), (40, 70)])
def test_draws_are_distributed_as_those_of_copairs(matches, total):
    from copairs.compute import random_ap
    from scipy.stats import ks_2samp

    drawn, theirs = Null(20_000, 0).draws(matches, total), random_ap(20_000, matches, total, 0)
    assert ks_2samp(drawn.round(5), theirs.round(5)).pvalue > 0.001


def test_p_values_are_those_of_copairs(tmp_path):
    import pandas as pd
    from copairs.map import mean_average_precision

    rng = np.random.default_rng(0)
    n, groups = 240, 40
    group = np.repeat(np.arange(groups), 6)
    # Of one size in a group, and of several.
    matches = np.where(group < 20, 5, rng.integers(1, 9, n))
    total = np.where(group < 20, 150, rng.integers(100, 103, n))
    value = np.clip(expected(matches, total) + rng.uniform(0, 0.25, n), 0, 1)
    frame = pd.DataFrame(
        {
            "group": group,
            "average_precision": value,
            "normalized_average_precision": value,
            "n_pos_pairs": matches,
            "n_total_pairs": total,
        }
    )
    size = 5000
    theirs = mean_average_precision(
        frame, ["group"], size, 0.05, seed=0, progress_bar=False, cache_dir=tmp_path
    )
    means = np.bincount(group, weights=value) / 6
    ours = Null(size, 0).p_values(group, means, matches, total)
    p = theirs["p_value"].to_numpy()
    assert ((p > 0.01) & (p < 0.9)).sum() > 20
    # Both are drawn: five standard errors of a difference.
    assert (np.abs(ours - p) <= 5 * np.sqrt(2 * p * (1 - p) / size) + 2 / size).all()


def test_a_p_value_does_not_depend_on_what_else_is_in_the_call():
    group, matches, total = np.array([0, 0, 1, 2]), np.array([2, 3, 2, 5]), np.array([30, 31, 40, 30])
    values = np.array([0.3, 0.2, 0.4])
    whole = Null(5000, 7).p_values(group, values, matches, total)
    alone = Null(5000, 7).p_values(np.array([0]), values[1:2], matches[2:3], total[2:3])
    assert alone[0] == whole[1]
    turned = Null(5000, 7).p_values(2 - group[::-1], values[::-1], matches[::-1], total[::-1])
    np.testing.assert_array_equal(turned[::-1], whole)
    assert (Null(5000, 8).p_values(group, values, matches, total) != whole).any()


def test_draws_are_the_same_in_another_order_and_after_the_store_is_full(monkeypatch):
    first = Null(100, 0)
    one, two = first.draws(3, 20).copy(), first.draws(3, 21).copy()
    monkeypatch.setattr("warehouse.metrics.null.KEPT", 0)
    second = Null(100, 0)
    np.testing.assert_array_equal(second.draws(3, 21), two)
    np.testing.assert_array_equal(second.draws(3, 20), one)
    assert (one != two).mean() > 0.5  # not the same rows of the table


def test_equal_draws_count_where_it_is_asked_for():
    # One match among four: a random order is perfect in a quarter of the draws.
    group, values = np.array([0, 0]), np.array([1.0])
    matches, total = np.array([1, 1]), np.array([4, 4])
    assert Null(999, 0).p_values(group, values, matches, total)[0] == 1 / 1000
    valid = Null(20_000, 0).p_values(group, values, matches, total, count_equal=True)[0]
    assert valid == pytest.approx(0.25, abs=0.02)
    # A third, one in three, is not taken for larger than itself for its last digits.
    third = np.array([1 / 3])
    larger = Null(20_000, 0).p_values(np.array([0]), third, np.array([1]), np.array([4]))[0]
    assert larger == pytest.approx(0.5, abs=0.02)


def test_no_draws_no_p_values():
    assert np.isnan(Null(0).p_values(np.array([0]), np.array([0.5]), np.array([1]), np.array([2]))).all()


def test_normalised_is_that_of_copairs_and_missing_where_all_match():
    from copairs.map.normalization import normalize_ap

    rng = np.random.default_rng(1)
    matches, others = rng.integers(1, 9, 50), rng.integers(1, 40, 50)
    value = rng.uniform(0, 1, 50)
    np.testing.assert_allclose(
        normalised(value, matches, matches + others), normalize_ap(value, matches, others), atol=1e-12
    )
    assert np.isnan(normalised(np.array([1.0]), np.array([3]), np.array([3])))[0]


def test_what_cannot_be_drawn_is_explained():
    with pytest.raises(EvaluationError, match=r"5 matches among 4"):
        Null(10).draws(5, 4)
    with pytest.raises(EvaluationError, match=r"0 matches among 4"):
        Null(10).draws(0, 4)
    with pytest.raises(EvaluationError, match=r"null=-1, seed=0"):
        Null(-1)


@pytest.mark.parametrize(("matches", "total"), [(150, 1000), (210, 4000), (700, 1400)])
def test_draws_of_many_matches_are_near_those_of_copairs(matches, total):
    from copairs.compute import random_ap

    drawn, theirs = Null(4000, 0).draws(matches, total), random_ap(4000, matches, total, 0)
    assert drawn.mean() == pytest.approx(theirs.mean(), abs=5 * theirs.std() / np.sqrt(4000))
    assert drawn.std() == pytest.approx(theirs.std(), rel=0.1)
    assert np.quantile(drawn, 0.99) - drawn.mean() == pytest.approx(
        np.quantile(theirs, 0.99) - theirs.mean(), rel=0.15
    )
