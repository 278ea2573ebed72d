"""Exact search with filters and ties, against brute force in NumPy."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.errors import SearchError, UnknownNameError
from warehouse.search import Index, faiss_build, structures
from warehouse.search import index as index_of_search
from warehouse.search.gpu import FlatOnGpu


def brute_force(index, query, k, mask):
    unit = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
    similarity = (
        (index.vectors(range(len(index))).astype(np.float64) * unit.astype(np.float32))
        .sum(axis=1)
        .astype(np.float32)
    )
    similarity = np.clip(similarity, -1, 1)
    ranked = sorted(np.flatnonzero(mask), key=lambda row: (-similarity[row], index.keys["id"][int(row)]))[:k]
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
    index = Index.of(vectors, names(n, seed=1))
    kind = data.draw(st.sampled_from(["none", "one", "each"]))
    masks = {
        "none": np.ones((q, n), bool),
        "one": np.tile(rng.random(n) < 0.4, (q, 1)),
        "each": rng.random((q, n)) < 0.4,
    }
    excluded = None if kind != "each" else [[np.flatnonzero(~mask)] for mask in masks["each"]]
    similarity, rows = index.search(queries, k, masks["one"][0] if kind == "one" else None, excluded)
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
    index = Index.of(vectors, names(3000))
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
    index = Index.of(0.5 * query + 0.75**0.5 * aside, names(2000))
    similarity, rows = index.search(query[None, :], 10)
    expected = brute_force(index, query.astype(np.float32), 10, np.ones(2000, bool))
    assert rows[0].tolist() == expected[1].tolist()
    np.testing.assert_array_equal(similarity[0], expected[0])


def test_a_tie_far_longer_than_k_is_resolved_by_id():
    vectors = np.ones((500, 3), np.float32)
    vectors[100] = [1, 1, 1.5]
    index = Index.of(vectors, names(500))
    _, rows = index.search(np.ones((1, 3)), 5)
    expected = sorted(set(range(500)) - {100}, key=lambda row: index.keys["id"][row])[:5]
    assert rows[0].tolist() == expected


def test_a_filter_acts_before_the_ranking():
    # The 400 nearest are forbidden: a filter after the ranking would return nothing.
    angle = np.linspace(0, np.pi / 2, 401)
    index = Index.of(np.stack([np.cos(angle), np.sin(angle)], axis=1), names(401))
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
    one, other = Index.of(vectors, ids.tolist()), Index.of(vectors[order], ids[order].tolist())
    first, second = one.search(vectors[:4], 7), other.search(vectors[:4], 7)
    np.testing.assert_array_equal(first[0], second[0])
    assert ids[first[1]].tolist() == ids[order][second[1]].tolist()


def test_similarity_is_the_cosine_and_at_most_one():
    index = Index.of(np.array([[3e30, 0], [0, 2e-30], [1, 1]]), ["a", "b", "c"])
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
        Index.of(np.array(vectors, dtype=float), ids)


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
        Index.of(np.eye(2), ["a", "b"]).search(np.array(queries), k, allowed)


def test_absent_faiss_names_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    faiss_build.load.cache_clear()
    with pytest.raises(SearchError, match=r"pip install 'wellhouse\[cpu\]', or 'wellhouse\[gpu\]', not both"):
        Index.of(np.eye(2), ["a", "b"])


def test_two_builds_of_faiss_are_refused(monkeypatch):
    monkeypatch.setattr(faiss_build, "installed", lambda: ["faiss-cpu", "faiss-gpu-cu12"])
    faiss_build.load.cache_clear()
    with pytest.raises(
        SearchError, match="both installed and overwrite each other: pip uninstall faiss-cpu faiss-gpu-cu12"
    ):
        Index.of(np.eye(2), ["a", "b"])
    monkeypatch.undo()
    assert "faiss-cpu" in faiss_build.installed() or any("gpu" in one for one in faiss_build.installed())


@pytest.mark.skipif(faiss_build.gpus() > 0, reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error_and_no_fallback():
    with pytest.raises(SearchError, match=r"device 'gpu': .*(pip install 'wellhouse\[gpu\]'|sees no GPU)"):
        Index.of(np.eye(2), ["a", "b"], device="gpu")
    with pytest.raises(UnknownNameError, match=r"unknown device 'cuda'\. Known: cpu, gpu"):
        Index.of(np.eye(2), ["a", "b"], device="cuda")


# ----------------------------------------------------------------- many queries, each with rows of its own left out


N, D = 3000, 24


@pytest.fixture(scope="module")
def crowd():
    """Clustered vectors, a tenth of them doubled, and an index of them; batches of 300 rows, families of 5."""
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(60, D))[rng.integers(0, 60, N)] + 0.5 * rng.normal(size=(N, D))
    vectors[:300] = vectors[1000:1300]
    return vectors.astype(np.float32), Index.of(vectors.astype(np.float32), names(N, seed=2))


def left_out(queries):
    batches = [np.flatnonzero(np.arange(N) % 3 == batch) for batch in range(3)]
    families = [np.arange(5 * i, 5 * i + 5) for i in range(N // 5)]
    return [[families[row // 5], batches[row % 3]] if row % 2 else [families[row // 5]] for row in queries]


def check_exactly(index, found, queries, k, mask, excluded):
    for i, row in enumerate(queries):
        allowed = np.ones(N, bool) if mask is None else mask.copy()
        for rows in excluded[i]:
            allowed[rows] = False
        expected = brute_force(index, index.vectors([row])[0], k, allowed)
        filled = len(expected[1])
        assert found.rows[i, :filled].tolist() == expected[1].tolist()
        np.testing.assert_array_equal(found.similarities[i, :filled], expected[0])
        assert (found.rows[i, filled:] == -1).all()


@pytest.mark.parametrize("share", [None, 0.95, 0.5, 0.05, 0.004])
def test_many_queries_equal_brute_force_whatever_is_left_out(crowd, share):
    vectors, index = crowd
    rng = np.random.default_rng(4)
    queries = rng.integers(0, N, 60)
    mask = None if share is None else rng.random(N) < share
    excluded = left_out(queries)
    found = index.search(vectors[queries], 15, mask, excluded)
    check_exactly(index, found, queries, 15, mask, excluded)
    alone = [index.search(vectors[[row]], 15, mask, [excluded[i]]) for i, row in enumerate(queries)]
    np.testing.assert_array_equal(found.rows, np.concatenate([one.rows for one in alone]))


def test_rows_that_are_gone_never_come_back(crowd):
    vectors, index = crowd
    gone = np.arange(0, N, 4)
    without = Index(index.vectors(np.arange(N)), index.keys, gone=gone)
    queries = np.arange(40)
    mask = np.ones(N, bool)
    mask[gone] = False
    check_exactly(without, without.search(vectors[queries], 10), queries, 10, mask, [[]] * 40)
    assert not without.alive[gone].any()
    assert without.alive.sum() == N - len(gone)


def halves(dim):
    """Make FAISS's index of halves on the CPU: it rounds as the GPU's does, and is given no selector."""
    faiss = faiss_build.load()
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


@pytest.mark.parametrize("share", [None, 0.5, 0.05])
def test_the_path_of_the_gpu_is_exact_though_it_has_halves_and_no_selector(crowd, share):
    vectors, index = crowd
    rng = np.random.default_rng(5)
    queries = rng.integers(0, N, 40)
    mask = None if share is None else rng.random(N) < share
    by_halves = Index(index.vectors(np.arange(N)), index.keys)
    by_halves._flat = FlatOnGpu(by_halves._vectors, halves=halves)
    excluded = left_out(queries)
    check_exactly(
        by_halves, by_halves.search(vectors[queries], 12, mask, excluded), queries, 12, mask, excluded
    )


@pytest.mark.skipif(faiss_build.gpus() == 0, reason="there is no GPU")
@pytest.mark.parametrize("share", [None, 0.5, 0.05])
def test_on_a_gpu_answers_are_those_of_brute_force(crowd, share):
    vectors, index = crowd
    queries = np.arange(40)
    mask = None if share is None else np.random.default_rng(5).random(N) < share
    there = Index(index.vectors(np.arange(N)), index.keys, device="gpu")
    excluded = left_out(queries)
    check_exactly(there, there.search(vectors[queries], 12, mask, excluded), queries, 12, mask, excluded)


# ------------------------------------------------------------------------------------------ structures


@pytest.mark.parametrize("kind", structures.KINDS[1:])
def test_a_structure_reaches_its_recall_fills_k_and_gives_nothing_that_is_left_out(crowd, kind, tmp_path):
    vectors, index = crowd
    unit = index.vectors(np.arange(N))
    made = structures.build(unit, kind, 0.95)
    assert made.settings.recall >= 0.95
    made.save(tmp_path / "structure")
    loaded = structures.Structure.load(tmp_path / "structure", made.settings, made.width)
    by = Index(unit, index.keys, structure=loaded)
    queries = np.arange(0, N, 50)
    for share in (None, 0.5, 0.02):
        mask = None if share is None else np.random.default_rng(6).random(N) < share
        excluded = left_out(queries)
        found, exact = (one.search(vectors[queries], 20, mask, excluded) for one in (by, index))
        assert ((found.rows >= 0) == (exact.rows >= 0)).all()
        for i, rows in enumerate(found.rows):
            there = rows[rows >= 0]
            assert mask is None or mask[there].all()
            assert not np.isin(there, np.concatenate(excluded[i])).any()
        # The similarities are the exact ones, and in order; the share that is found is what was measured.
        known = exact.similarities >= 0
        np.testing.assert_array_equal(
            found.similarities[:, 0][found.rows[:, 0] == exact.rows[:, 0]],
            exact.similarities[:, 0][found.rows[:, 0] == exact.rows[:, 0]],
        )
        recall = np.mean([np.isin(a[a >= 0], b).mean() for a, b in zip(exact.rows, found.rows, strict=True)])
        assert recall > 0.9, (kind, share, recall, known.sum())


@pytest.mark.parametrize("kind", structures.KINDS[1:])
def test_recall_holds_where_a_filter_takes_away_what_is_near(kind):
    """Rows of a batch are alike: without them, what is left is far from where a graph or a list would look."""
    rng = np.random.default_rng(9)
    batch = rng.integers(0, 10, 4000)
    vectors = rng.normal(size=(4000, 32)) + 2.5 * rng.normal(size=(10, 32))[batch]
    index = Index.of(vectors, names(4000))
    by = Index(
        index.vectors(np.arange(4000)),
        index.keys,
        structure=structures.build(index.vectors(range(4000)), kind, 0.99),
    )
    of_batch = [np.flatnonzero(batch == number) for number in range(10)]
    queries = np.arange(0, 4000, 80)
    excluded = [[of_batch[batch[row]]] for row in queries]
    found, exact = (one.search(vectors[queries], 20, None, excluded) for one in (by, index))
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact.rows, found.rows, strict=True)])
    assert recall > 0.95
    assert (found.rows >= 0).all()


@pytest.mark.parametrize("kind", structures.KINDS[1:])
def test_k_is_filled_where_what_is_left_out_was_not_allowed_either(crowd, kind):
    vectors, index = crowd
    by = Index(
        index.vectors(np.arange(N)),
        index.keys,
        structure=structures.build(index.vectors(range(N)), kind, 0.9),
    )
    mask = np.zeros(N, bool)
    mask[:450] = True
    found = by.search(vectors[:20], 400, mask, [[np.arange(2000, 2400)]] * 20)
    assert (found.rows >= 0).all()


def test_many_short_arrays_of_one_query_do_not_weigh_on_the_others(crowd):
    vectors, index = crowd
    excluded = left_out(np.arange(40))
    excluded[7] = [np.arange(i, i + 100) for i in range(0, 2500, 100)]
    check_exactly(index, index.search(vectors[:40], 10, None, excluded), np.arange(40), 10, None, excluded)


def test_rows_added_after_a_structure_was_made_are_found(crowd):
    vectors, index = crowd
    unit = index.vectors(np.arange(N))
    made = structures.build(unit[:2800], "ivf", 0.99)
    found = Index(unit, index.keys, structure=made).search(vectors[2800:2850], 1)
    assert found.rows[:, 0].tolist() == list(range(2800, 2850))


def test_a_structure_that_cannot_be_is_named(crowd, tmp_path):
    _, index = crowd
    unit = index.vectors(np.arange(300))
    with pytest.raises(UnknownNameError, match=r"unknown kind of structure 'hsnw'\. Did you mean 'hnsw'"):
        structures.build(unit, "hsnw", 0.9)
    with pytest.raises(SearchError, match="recall 99: give a share above 0 and at most 1"):
        structures.build(unit, "hnsw", 99)
    made = structures.build(unit, "hnsw", 0.9)
    made.save(tmp_path / "x")
    with pytest.raises(SearchError, match="holds 300 vectors of 24, not 301 of 24"):
        structures.Structure.load(tmp_path / "x", replace(made.settings, covered=301), 24)
    (tmp_path / "x").write_bytes(b"nonsense")
    with pytest.raises(SearchError, match=r"index .*x cannot be read"):
        structures.Structure.load(tmp_path / "x", made.settings, 24)


def test_few_rows_can_have_any_structure():
    for kind in structures.KINDS[1:]:
        made = structures.build(Index.of(np.eye(6) + 0.1, list("abcdef")).vectors(range(6)), kind, 0.99)
        assert made.settings.recall == 1


@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("values", [3, 10_000])
@pytest.mark.parametrize("share", [1.0, 0.1, 0.001])
def test_at_least_k_products_reach_the_bar(k, values, share):
    rng = np.random.default_rng(k)
    products = (rng.integers(0, values, 20_000) / values).astype(np.float32)
    products[rng.random(20_000) >= share] = -np.inf
    products[5000:9000] = -np.inf
    bar = index_of_search._bar(products, k)
    there = int((products > -np.inf).sum())
    assert (products >= bar).sum() >= min(k, there)
    assert bar <= np.sort(products)[-k]
    if values == 10_000:  # with few values ties are many
        assert (products[products > -np.inf] >= bar).sum() <= 4 * k + 64
