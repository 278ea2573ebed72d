"""Exact search with filters and ties, against brute force in NumPy."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.errors import SearchError
from warehouse.search import FlatIndex


def brute_force(index, query, k, mask):
    unit = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
    similarity = (
        (index.vectors(range(len(index))).astype(np.float64) * unit.astype(np.float32))
        .sum(axis=1)
        .astype(np.float32)
    )
    similarity = np.clip(similarity, -1, 1)
    ranked = sorted(np.flatnonzero(mask), key=lambda row: (-similarity[row], index.ids[row]))[:k]
    return similarity[ranked], np.array(ranked, dtype=np.int64)


def names(n, seed=0):
    """Ids whose order is not the rows'."""
    return [f"t{i:05d}" for i in np.random.default_rng(seed).permutation(n)]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_equals_brute_force_with_ties_and_filters(data):
    n, d = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 4))
    k, q = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    # Few distinct directions, some of them scaled: ties wherever k ends.
    pool = rng.normal(size=(data.draw(st.integers(1, 5)), d)).astype(np.float32)
    vectors = pool[rng.integers(0, len(pool), n)]
    if data.draw(st.booleans()):
        vectors = vectors * rng.choice([1, 2, 4], (n, 1)).astype(np.float32)
    queries = pool[rng.integers(0, len(pool), q)]
    index = FlatIndex(vectors, names(n, seed=1))
    kind = data.draw(st.sampled_from(["none", "one", "each"]))
    masks = {
        "none": np.ones((q, n), bool),
        "one": np.tile(rng.random(n) < 0.4, (q, 1)),
        "each": rng.random((q, n)) < 0.4,
    }
    allowed = {"none": None, "one": masks["one"][0], "each": list(masks["each"])}[kind]
    similarity, rows = index.search(queries, k, allowed)
    assert similarity.shape == rows.shape == (q, k)
    for i in range(q):
        expected = brute_force(index, queries[i], k, masks[kind][i])
        filled = len(expected[1])
        assert filled == min(k, masks[kind][i].sum())
        assert rows[i, :filled].tolist() == expected[1].tolist()
        np.testing.assert_array_equal(similarity[i, :filled], expected[0])
        assert (rows[i, filled:] == -1).all()
        assert np.isnan(similarity[i, filled:]).all()


def test_equals_brute_force_on_profiles_that_are_all_near():
    # Similarities around .9999: float32 sums alone would shuffle them.
    rng = np.random.default_rng(6)
    vectors = (10 + 0.1 * rng.normal(size=(3000, 64))).astype(np.float32)
    index = FlatIndex(vectors, names(3000))
    mask = rng.random(3000) < 0.5
    similarity, rows = index.search(vectors[:30], 20, mask)
    for i in range(30):
        expected = brute_force(index, vectors[i], 20, mask)
        assert rows[i].tolist() == expected[1].tolist()
        np.testing.assert_array_equal(similarity[i], expected[0])


def test_equals_brute_force_where_only_rounding_tells_rows_apart():
    # 2,000 vectors at 60° from the query: FAISS's float32 sums disagree with the exact order on most of them.
    rng = np.random.default_rng(7)
    query = rng.normal(size=300)
    query /= np.linalg.norm(query)
    aside = rng.normal(size=(2000, 300))
    aside -= np.outer(aside @ query, query)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    index = FlatIndex(0.5 * query + 0.75**0.5 * aside, names(2000))
    similarity, rows = index.search(query[None, :], 10)
    expected = brute_force(index, query.astype(np.float32), 10, np.ones(2000, bool))
    assert rows[0].tolist() == expected[1].tolist()
    np.testing.assert_array_equal(similarity[0], expected[0])


def test_a_tie_far_longer_than_k_is_resolved_by_id():
    vectors = np.ones((500, 3), np.float32)
    vectors[100] = [1, 1, 1.5]
    index = FlatIndex(vectors, names(500))
    _, rows = index.search(np.ones((1, 3)), 5)
    expected = sorted(set(range(500)) - {100}, key=lambda row: index.ids[row])[:5]
    assert rows[0].tolist() == expected


def test_a_filter_acts_before_the_ranking():
    # The 400 nearest are forbidden: a filter after the ranking would return nothing.
    angle = np.linspace(0, np.pi / 2, 401)
    index = FlatIndex(np.stack([np.cos(angle), np.sin(angle)], axis=1), names(401))
    similarity, rows = index.search(np.array([[1.0, 0]]), 3, np.arange(401) == 400)
    assert rows.tolist() == [[400, -1, -1]]
    assert similarity[0, 0] == pytest.approx(0, abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_rows_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (40, 3)) + np.array([3, 0, 0])
    ids = np.array(names(40, seed))
    order = rng.permutation(40)
    one, other = FlatIndex(vectors, ids.tolist()), FlatIndex(vectors[order], ids[order].tolist())
    first, second = one.search(vectors[:4], 7), other.search(vectors[:4], 7)
    np.testing.assert_array_equal(first[0], second[0])
    assert ids[first[1]].tolist() == ids[order][second[1]].tolist()


def test_similarity_is_the_cosine_and_at_most_one():
    index = FlatIndex(np.array([[3e30, 0], [0, 2e-30], [1, 1]]), ["a", "b", "c"])
    similarity, rows = index.search(np.array([[5.0, 5.0]]), 3)
    assert rows.tolist() == [[2, 0, 1]]
    np.testing.assert_allclose(similarity, [[1, 0.5**0.5, 0.5**0.5]], rtol=1e-7)
    assert similarity.max() <= 1


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        ([[1, 0], [0, 0]], ["a", "b"], r"vector 'b' is all zeros \(1 such\)"),
        ([[1, 0], [np.nan, 0]], ["a", "b"], r"vector 'b' holds nan \(1 such\)"),
        ([[np.inf, 0], [np.nan, 0]], ["a", "b"], r"vector 'a' holds inf \(2 such\)"),
        ([[1, 0], [0, 1]], ["a", "a"], r"id 'a' names rows 0 and 1"),
        ([[1, 0]], ["a", "b"], r"vectors of shape \(1, 2\) and 2 ids: give one id per row"),
        (np.empty((0, 2)), [], r"vectors of shape \(0, 2\) and 0 ids"),
    ],
)
def test_what_cannot_be_indexed_is_named(vectors, ids, message):
    with pytest.raises(SearchError, match=message):
        FlatIndex(np.array(vectors, dtype=float), ids)


@pytest.mark.parametrize(
    ("queries", "k", "allowed", "message"),
    [
        ([[1.0, 0, 0]], 1, None, r"queries of shape \(1, 3\), k=1: give \(q, 2\) vectors"),
        ([[1.0, 0]], 0, None, r"k=0"),
        ([[1.0, 0], [0, 0]], 1, None, r"query '1' is all zeros"),
        ([[1.0, 0]], 1, np.ones(3, bool), r"allowed of shape \(3,\), bool: give \(2,\) booleans"),
        ([[1.0, 0]], 1, np.array([0, 1]), r"allowed of shape \(2,\), int64"),
    ],
)
def test_what_cannot_be_searched_is_named(queries, k, allowed, message):
    with pytest.raises(SearchError, match=message):
        FlatIndex(np.eye(2), ["a", "b"]).search(np.array(queries), k, allowed)


def test_a_saved_index_answers_the_same(tmp_path):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(50, 8)).astype(np.float32)
    index = FlatIndex(vectors, [*names(49), 'µM, "quoted"'])
    path = tmp_path / "new" / "treatments.index"
    index.save(path, {"feature_set": "dino", "snapshot": 7})
    loaded, sidecar = FlatIndex.load(path)
    assert sidecar == {"feature_set": "dino", "snapshot": 7}
    assert loaded.ids == index.ids
    assert len(loaded) == 50
    np.testing.assert_array_equal(loaded.vectors(range(50)), index.vectors(range(50)))
    assert FlatIndex.card(path) == sidecar
    for a, b in zip(index.search(vectors, 5), loaded.search(vectors, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [file.name for file in path.parent.iterdir()] == ["treatments.index"]


def test_a_failed_save_leaves_the_old_index(tmp_path, monkeypatch):
    path = tmp_path / "treatments.index"
    FlatIndex(np.eye(2), ["a", "b"]).save(path, {"snapshot": 1})

    def full_disk(*_args, **_kwargs):
        raise OSError("disk full")  # noqa: EM101

    monkeypatch.setattr("warehouse.search.np.savez", full_disk)
    with pytest.raises(OSError, match="disk full"):
        FlatIndex(np.eye(3), ["a", "b", "c"]).save(path, {"snapshot": 2})
    monkeypatch.undo()
    loaded, sidecar = FlatIndex.load(path)
    assert (loaded.ids, sidecar) == (["a", "b"], {"snapshot": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["treatments.index"]


def test_an_absent_or_damaged_index_is_named(tmp_path):
    with pytest.raises(SearchError, match=r"no index at .*gone.index: build it"):
        FlatIndex.load(tmp_path / "gone.index")
    with pytest.raises(SearchError, match=r"no index at .*gone.index: build it"):
        FlatIndex.card(tmp_path / "gone.index")
    broken = tmp_path / "broken.index"
    FlatIndex(np.eye(2), ["a", "b"]).save(broken, {})
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(SearchError, match=r"index .*broken.index cannot be read"):
        FlatIndex.load(broken)


def test_a_sidecar_that_is_no_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        FlatIndex(np.eye(2), ["a", "b"]).save(tmp_path / "x.index", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []
    assert json.dumps({"value": 1})


def test_absent_faiss_names_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SearchError, match=r"pip install 'wellhouse\[cpu\]', or 'wellhouse\[gpu\]', not both"):
        FlatIndex(np.eye(2), ["a", "b"])
