"""The shared pass: blocks on the host and by torch, what is asked of them, and which rows are multiplied."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors import torch_blocks
from extractors.base import SettingError
from extractors.torch_blocks import TorchArrays
from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics import passes
from warehouse.metrics.passes import Block, Host, Vectors, feed, one_pass
from warehouse.metrics.precision import map_labels, map_replicates, plan_map, plan_replicates
from warehouse.metrics.score import Score

DEVICES = [
    "host",
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason="no GPU here: cannot compare with one"
        ),
    ),
]


def arrays(device):
    return Host() if device == "host" else TorchArrays(device)


def made(n, d=24, seed=0):
    return Vectors.of(np.random.default_rng(seed).normal(size=(n, d)))


class Seen:
    """A plan that keeps what it was given."""

    def __init__(self, rows=None, columns=None):
        self.blocks = []
        if rows is not None:
            self.rows_needed, self.columns_needed = rows, columns

    def take(self, block):
        self.blocks.append((block.rows.copy(), block.columns, block.host().copy()))

    def score(self):
        return Score(0.0, 0, None, None, None, {})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [2**24, 70])
def test_blocks_hold_all_products_in_order(device, size, monkeypatch):
    monkeypatch.setattr(passes, "BLOCK", size)
    monkeypatch.setattr(torch_blocks, "BLOCK", {"cpu": size, "cuda": size})
    vectors, seen = made(30), Seen()
    one_pass(vectors, [seen], arrays(device))
    assert len(seen.blocks) == (1 if size > 900 else 15)
    np.testing.assert_array_equal(np.concatenate([rows for rows, _, _ in seen.blocks]), np.arange(30))
    whole = np.concatenate([similarity for _, _, similarity in seen.blocks])
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, vectors.exact_unit @ vectors.exact_unit.T, rtol=0, atol=vectors.slack)


@pytest.mark.parametrize("device", DEVICES)
def test_a_pass_of_no_rows_or_no_columns_ends(device):
    vectors, none, every = made(9), np.zeros(9, dtype=bool), np.ones(9, dtype=bool)
    for rows, columns in [(none, every), (none, none)]:
        seen = Seen(rows, columns)
        one_pass(vectors, [seen], arrays(device))
        assert seen.blocks == []
    seen = Seen(every, none)
    one_pass(vectors, [seen], arrays(device))
    assert np.concatenate([rows for rows, _, _ in seen.blocks]).tolist() == list(range(9))
    assert {similarity.shape[1] for _, _, similarity in seen.blocks} == {0}


@pytest.mark.parametrize("device", DEVICES)
def test_rows_and_columns_that_no_plan_needs_are_left_out(device):
    vectors = made(9)
    rows, columns = np.zeros(9, dtype=bool), np.zeros(9, dtype=bool)
    rows[[2, 5]] = True
    columns[[1, 5, 7]] = True
    alone = Seen(rows, columns)
    one_pass(vectors, [alone], arrays(device))
    ((given_rows, given_columns, similarity),) = alone.blocks
    assert given_rows.tolist() == [2, 5]
    assert given_columns.tolist() == [1, 5, 7]
    exact = vectors.exact_unit @ vectors.exact_unit.T
    np.testing.assert_allclose(similarity, exact[[2, 5]][:, [1, 5, 7]], atol=vectors.slack)
    # Beside one that says nothing, all are given.
    both = [Seen(rows, columns), Seen()]
    one_pass(vectors, both, arrays(device))
    assert both[0].blocks[0][0].tolist() == list(range(9))
    assert both[0].blocks[0][1] is None


def test_a_metric_that_has_no_score_leaves_the_others_theirs():
    vectors = made(6)
    good = plan_map(vectors, list("aabbcc"), null=0)
    bad = plan_map(vectors, list("abcdef"), null=0)
    feed(vectors, [good, bad])
    assert good.score().n == 6
    with pytest.raises(EvaluationError, match=r"map: no query is left \(6 with no match\)"):
        bad.score()


def blocks(device, vectors):
    (block,) = arrays(device).blocks(vectors, np.arange(len(vectors)), None)
    return block


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_what_is_asked_of_a_block_is_what_its_array_says(device, seed):
    rng = np.random.default_rng(seed)
    vectors = made(40, 4, seed)
    block = blocks(device, vectors)
    near = block.host()
    places, others = rng.integers(0, 40, 9), rng.integers(0, 40, 9)
    np.testing.assert_array_equal(block.at(places, others), near[places, others])
    # Some rows with windows near the top only: the rest of the row is not looked at.
    places = np.sort(rng.integers(0, 40, 60))
    low = np.where(places % 2, near[places, rng.integers(0, 40, 60)], np.float32(0.95)).astype(np.float32)
    high = low + np.float32(rng.uniform(0, 0.3))
    above, number, column = block.windows(places, low, high)
    np.testing.assert_array_equal(above, (near[places] > high[:, None]).sum(axis=1))
    inside = np.argwhere((near[places] > low[:, None]) & (near[places] <= high[:, None]))
    np.testing.assert_array_equal(np.stack([number, column], axis=1), inside)
    some, kept = np.array([3, 8]), np.array([0, 2, 39])
    part = block.only(some, kept)
    np.testing.assert_array_equal(part.host(), near[some][:, kept])
    assert part.rows.tolist() == [3, 8]
    assert part.columns.tolist() == [0, 2, 39]
    again = part.only(np.array([1]), np.array([2]))
    assert (again.rows.tolist(), again.columns.tolist()) == ([8], [39])
    exact = vectors.exact_unit @ vectors.exact_unit.T
    np.testing.assert_allclose(part.products(np.array([1])), exact[8:9, kept], rtol=0, atol=1e-14)
    np.testing.assert_allclose(block.products(some), exact[some], rtol=0, atol=1e-14)


@pytest.mark.parametrize("device", DEVICES)
def test_a_block_without_questions(device):
    block = blocks(device, made(5))
    none = np.empty(0, np.int64)
    above, number, column = block.windows(none, none.astype(np.float32), none.astype(np.float32))
    assert (len(above), len(number), len(column)) == (0, 0, 0)


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("kinds", [3, 60])
def test_a_metric_is_the_same_on_any_device(device, kinds):
    rng = np.random.default_rng(4)
    X = rng.normal(size=(250, 16))
    X[200:] = 3 * X[:50]  # equals
    labels = rng.integers(0, kinds, 250).astype(str)
    labels[:20] = ""
    vectors = Vectors.of(X)
    plans = [plan_map(vectors, labels.tolist(), null=0), plan_replicates(vectors, labels.tolist(), null=0)]
    there = one_pass(vectors, plans, TorchArrays(device))
    assert there[0].per_query.equals(map_labels(X, labels.tolist(), null=0).per_query)
    assert there[1].per_query.equals(map_replicates(X, labels.tolist(), null=0).per_query)


@pytest.mark.parametrize("make", ["random", "equal", "one large", "alternating"])
@pytest.mark.parametrize("d", [3, 384, 3000])
def test_single_precision_is_off_by_less_than_the_slack(make, d):
    rng = np.random.default_rng(5)
    X = rng.normal(size=(60, d))
    if make == "equal":
        X = np.ones((60, d)) + 1e-3 * X
    elif make == "one large":
        X[:, 0] += 50
    elif make == "alternating":
        X = np.abs(X) * (-1) ** np.arange(d)
    vectors = Vectors.of(X)
    for device in ("host", "cpu"):
        off = np.abs(blocks(device, vectors).host() - vectors.exact_unit @ vectors.exact_unit.T)
        assert off.max() < vectors.slack / 2


def test_exact_cosines_are_the_same_both_ways_and_wherever_a_row_stands():
    vectors = made(500, 384)
    rng = np.random.default_rng(6)
    a, b = rng.integers(0, 500, 2000), rng.integers(0, 500, 2000)
    forth = vectors.exact(a, b)
    np.testing.assert_array_equal(forth, vectors.exact(b, a))
    np.testing.assert_array_equal(forth[5:77], vectors.exact(a[5:77], b[5:77]))
    np.testing.assert_allclose(
        forth, np.einsum("ij,ij->i", vectors.exact_unit[a], vectors.exact_unit[b]), atol=1e-15
    )


def test_only_rows_that_are_compared_need_a_direction():
    X = np.ones((4, 3))
    X[1], X[2, 0] = 0, np.nan
    vectors = Vectors.of(X, list("abcd"))
    vectors.require(np.array([True, False, False, True]))
    with pytest.raises(EvaluationError, match=r"profile 'b' is all zeros \(1 such profiles\)"):
        vectors.require(np.array([True, True, False, True]))
    with pytest.raises(EvaluationError, match=r"profile 'c' has nan in feature 1 \(1 such profiles\)"):
        vectors.require()


def test_what_a_pass_lacks_is_explained():
    with pytest.raises(EvaluationError, match=r"there are no profiles to compare"):
        one_pass(Vectors.of(np.empty((0, 3))), [Seen()])
    with pytest.raises(UnknownNameError, match=r"unknown device 'gpu'"):
        TorchArrays("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_explained():
    with pytest.raises(SettingError, match=r"device='cuda': torch finds no GPU here"):
        TorchArrays("cuda")
    assert TorchArrays().device == "cpu"


def test_a_block_of_the_host_needs_no_vectors():
    block = Block(np.arange(2), np.array([[1, 0.5], [0.5, 1]], dtype=np.float32))
    above, number, column = block.windows(np.arange(2), *np.float32([[0.4, 0.7], [0.7, 1]]))
    assert (above.tolist(), number.tolist(), column.tolist()) == ([1, 0], [0, 1], [1, 1])
