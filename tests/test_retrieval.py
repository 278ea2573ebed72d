"""Retrieval of matches, against the papers' formulas in plain loops, SciPy, scikit-learn, and worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_profiles import bbbc021
from scipy.stats import fisher_exact
from sklearn.metrics import precision_recall_curve

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics import order, retrieval
from warehouse.metrics.nearest import knn, knn_plan
from warehouse.metrics.passes import Block, Vectors, one_pass
from warehouse.metrics.retrieval import (
    enrichment_folds,
    f1_at_k,
    hit_at_k,
    interpolated_map,
    known_pairs_recall,
    precision_at_k,
)


def circle(*degrees):
    angle = np.deg2rad(np.array(degrees, dtype=float))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def cosines(X):
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    return np.round(unit @ unit.T, 12)


def screen(seed, n=60, ties=False, labels="abcdef", width=5):
    """Profiles, some alike, with one to two labels each, or none."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, width))
    if ties:
        X = rng.integers(1, 3, (n, width)).astype(float)
    sets = [set(rng.choice(list(labels), rng.integers(1, 3), replace=False).tolist()) for _ in range(n)]
    centres = rng.normal(size=(len(labels), width))
    X = (
        X + 0.0
        if ties
        else X + np.stack([centres[[labels.index(one) for one in own]].mean(0) for own in sets])
    )
    sets[3] = set()
    return X, sets


def queries(X, sets):
    """Row, similarities with the library and matches, of each query."""
    cosine = cosines(X)
    for q in range(len(X)):
        library = [c for c in range(len(X)) if c != q and sets[c]]
        match = np.array([bool(sets[c] & sets[q]) for c in library])
        if sets[q] and match.any():
            yield q, cosine[q, library], match


# --- interpolated mean average precision


def test_interpolated_precision_worked_by_hand():
    # From 0°: a at 10, b at 20, a at 30, a at 40: precision 1, 2/3, 3/4 at recall 1/3, 2/3, 1.
    X = circle(0, 10, 20, 30, 40)
    score = interpolated_map(X, list("aabaa"))
    # Recall points 0, 1/2 and 1: the envelope is 1 up to 1/3, then 3/4.
    assert score.per_query["value"][0] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    assert score.per_query["n_matches"].to_list() == [3, 3, 3, 3]
    assert score.left_out == {"no match": 1}
    # One recall point: the precision that is best.
    assert interpolated_map(X, list("aabaa"), points=1).per_query["value"][0] == 1
    # All found first.
    assert interpolated_map(circle(0, 5, 10, 90, 95), list("aaabb")).value == 1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("points", [0, 37])
def test_interpolated_map_equals_the_formula_over_scikit_learns_curve(ties, points):
    X, sets = screen(1, ties=ties)
    found = list(queries(X, sets))
    recalls = np.linspace(0, 1, points or max(match.sum() for _, _, match in found))
    expected = []
    for _, near, match in found:
        precision, recall, _ = precision_recall_curve(match, near)
        # The last point of scikit-learn's curve is none of the list: precision 1 at recall 0.
        precision, recall = precision[:-1], recall[:-1]
        expected.append(np.mean([precision[recall >= r - 1e-9].max() for r in recalls]))
    score = interpolated_map(X, sets, points=points)
    assert score.per_query["row"].to_list() == [q for q, _, _ in found]
    np.testing.assert_allclose(score.per_query["value"], expected, atol=1e-12)
    assert score.value == pytest.approx(np.mean(expected))
    assert score.left_out == {"no label": 1}


# --- folds of enrichment


def folds(X, sets, top):
    rows, odds, chance, cells = [], [], [], []
    for q, near, match in queries(X, sets):
        threshold = np.percentile(near, 100 * (1 - top))
        above = near > threshold
        table = [
            [(above & match).sum(), (above & ~match).sum()],
            [(~above & match).sum(), (~above & ~match).sum()],
        ]
        result = fisher_exact(table, alternative="greater")
        rows.append(q)
        odds.append(result.statistic)
        chance.append(result.pvalue)
        cells.append(table[1][1])
    return np.array(rows), np.array(odds), np.array(chance), np.array(cells, dtype=float)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "top"), [(60, 0.1), (60, 0.01), (103, 0.01), (52, 0.05), (22, 0.01)])
def test_enrichment_equals_scipys_fisher_test(n, top, ties):
    X, sets = screen(2, n=n, ties=ties)
    rows, odds, chance, cells = folds(X, sets, top)
    defined = ~np.isnan(odds)
    score = enrichment_folds(X, sets, top=top)
    assert score.per_query["row"].to_list() == rows[defined].tolist()
    np.testing.assert_allclose(score.per_query["p_value"], chance[defined], atol=1e-9)
    np.testing.assert_allclose(score.per_query["value"], np.where(np.isinf(odds), cells, odds)[defined])
    assert score.left_out.get("no odds ratio", 0) == (~defined).sum()
    kept = defined & ~np.isinf(odds)
    score = enrichment_folds(X, sets, top=top, inf="drop")
    np.testing.assert_allclose(score.per_query["value"], odds[kept])
    assert score.left_out.get("infinite odds ratio", 0) == np.isinf(odds).sum() > 0
    assert score.value == pytest.approx(odds[kept].mean())


def test_enrichment_worked_by_hand():
    # 0's nearest, at 1°, is a match, and alone in the top 1 % of five; 1 of 4 others is one too.
    X = circle(0, 1, 20, 40, 60, 80)
    score = enrichment_folds(X, list("aaabbc"))
    first = score.per_query.row(0, named=True)
    assert (first["in_top"], first["of_top"], first["n_matches"]) == (1, 1, 2)
    assert first["value"] == 3  # infinite: 1 × 3 / (0 × 1), so the others in the rest
    assert first["p_value"] == pytest.approx(2 / 5)
    # 2's nearest is 1, at 19°. Nothing is strictly above what ties: 2 and 4 from 3, 3 and 5 from 4, at 20°.
    assert score.per_query["row"].to_list() == [0, 1, 2]
    assert score.left_out == {"no match": 1, "no odds ratio": 2}
    assert score.value == 3


def test_enrichment_on_a_real_screen_equals_scipys(data_dir):
    X, treatments, _ = bbbc021(data_dir)
    sets = [{moa} for moa in treatments["moa"]]
    _, odds, chance, cells = folds(X, sets, 0.01)
    score = enrichment_folds(X, sets)
    np.testing.assert_allclose(score.per_query["value"], np.where(np.isinf(odds), cells, odds))
    np.testing.assert_allclose(score.per_query["p_value"], chance, atol=1e-9)
    assert np.isinf(odds).sum() > 40  # with 102 others, all two of the top often match: the rule decides
    assert score.n == 103


# --- the first k


@pytest.mark.parametrize("ties", [False, True])
def test_the_first_k_equal_a_naive_loop(ties):
    X, sets = screen(4, ties=ties)
    found = list(queries(X, sets))
    for k in (1, 3, 10, 500):
        hits, precisions, f1s = [], [], []
        for _, near, match in found:
            first = match[np.argsort(-near, kind="stable")][:k]
            hits.append(float(first.any()))
            precisions.append(first.mean())
            recall = first.sum() / match.sum()
            f1s.append(0 if not first.any() else 2 * first.mean() * recall / (first.mean() + recall))
        for metric, expected in ((hit_at_k, hits), (precision_at_k, precisions), (f1_at_k, f1s)):
            score = metric(X, sets, k=k)
            np.testing.assert_allclose(score.per_query["value"], expected, atol=1e-12)
            curve = dict(score.per_group.select("k", "value").rows())
            assert list(curve) == list(range(1, min(max(k, 50), len(found) - 1) + 1))
            assert curve[min(k, len(found) - 1)] == pytest.approx(score.value)
            assert metric(X, sets, k=k, longest=1).value == score.value


# --- known pairs


def ranks(X, pairs, share=0.05):
    """Both ranks by their definition, over a sorted list of all cosines."""
    cosine = cosines(X)
    every = np.sort(cosine[np.triu_indices(len(X), 1)])
    own = cosine[tuple(np.array(pairs).T)]
    low = np.searchsorted(every, own, side="right") / len(every)
    high = np.searchsorted(every, own, side="left") / len(every)
    return low <= share, high >= 1 - share


@pytest.mark.parametrize("n", [21, 60, 120])
@pytest.mark.parametrize("kind", ["random", "ties", "near"])
def test_known_pairs_equal_a_sorted_list_of_all(kind, n):
    rng = np.random.default_rng(n)
    X = {
        "random": rng.normal(size=(n, 8)),
        "ties": rng.integers(-1, 2, (n, 3)) + 0.5,
        # All cosines in a few of the bins.
        "near": rng.normal(size=8) + 1e-4 * rng.normal(size=(n, 8)),
    }[kind]
    pairs = np.unique(np.sort(np.stack([rng.permutation(n)[:2] for _ in range(150)]), axis=1), axis=0)
    bottom, top = ranks(X, pairs)
    score = known_pairs_recall(X, pairs)
    assert score.per_group["end"].to_list() == [
        "top" if t else "bottom" if b else None for b, t in zip(bottom, top, strict=True)
    ]
    assert score.value == (bottom | top).mean()
    assert (score.n, score.unit, score.left_out) == (len(pairs), "group", {})
    again = known_pairs_recall(X, np.concatenate([pairs[:, ::-1], pairs[:3], [[1, 1]]]))
    assert again.value == score.value
    assert again.left_out == {"named twice": 3, "pair with itself": 1}


def test_known_pairs_worked_by_hand():
    # Twenty-one pairs of seven profiles; one of them is 1/21 < 5 %: only the very nearest and farthest count.
    X = circle(0, 1, 5, 12, 25, 50, 120)
    score = known_pairs_recall(X, np.array([[0, 1], [1, 2], [0, 6]]), ids=list("tuvwxyz"))
    assert score.per_group.select("first", "second", "value", "end").rows() == [
        ("t", "u", 1.0, "top"), ("t", "z", 1.0, "bottom"), ("u", "v", 0.0, None)
    ]  # fmt: skip
    assert score.value == pytest.approx(2 / 3)


def test_the_second_pass_is_asked_for_only_where_it_matters(monkeypatch):
    X = np.random.default_rng(5).normal(size=(80, 6))
    every = cosines(X)
    i, j = np.unravel_index(np.argmax(every - 2 * np.eye(80)), every.shape)
    monkeypatch.setattr(order.PairOrder, "at", lambda *_: pytest.fail("a second pass"))
    assert known_pairs_recall(X, np.array([[i, j]])).value == 1


# --- all of them

PAIRS = np.array([[0, 1], [2, 4], [5, 6], [7, 8], [9, 10], [11, 12]])
CALLS = {
    "interpolated_map": interpolated_map,
    "enrichment_folds": lambda X, sets, ids=None: enrichment_folds(X, sets, ids, top=0.1),
    "hit_at_k": lambda X, sets, ids=None: hit_at_k(X, sets, ids, k=2),
    "precision_at_k": lambda X, sets, ids=None: precision_at_k(X, sets, ids, k=2),
    "f1_at_k": lambda X, sets, ids=None: f1_at_k(X, sets, ids, k=2),
}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_order_of_rows_names_and_scale_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    X, sets = screen(seed, n=24)
    turned = rng.permutation(24)
    scaled = X[turned] * rng.uniform(0.1, 9, (24, 1))
    renamed = [{"label " + one for one in sets[i]} for i in turned]
    for call in CALLS.values():
        score, other = call(X, sets), call(scaled, renamed)
        assert other.value == pytest.approx(score.value, abs=1e-12)
        assert other.left_out == score.left_out
    place = np.argsort(turned)
    score, other = known_pairs_recall(X, PAIRS), known_pairs_recall(scaled, place[PAIRS])
    assert other.value == score.value


def test_the_size_of_a_block_and_the_rest_of_the_call_do_not_matter(monkeypatch):
    X, sets = screen(6, n=70)
    whole = {name: call(X, sets) for name, call in CALLS.items()}
    pairs = known_pairs_recall(X, PAIRS)
    monkeypatch.setattr("warehouse.metrics.passes.BLOCK", 300)
    for name, call in CALLS.items():
        assert call(X, sets).per_query.equals(whole[name].per_query)
    vectors = Vectors.of(X)
    plans = [
        retrieval.InterpolatedPrecision(vectors, sets),
        retrieval.KnownPairs(vectors, PAIRS),
        retrieval.EnrichmentFolds(vectors, sets, top=0.1),
        retrieval.f1_plan(vectors, sets, k=2),
    ]
    together = one_pass(vectors, plans)
    assert together[0].per_query.equals(whole["interpolated_map"].per_query)
    assert together[1].per_group.equals(pairs.per_group)
    assert together[2].per_query.equals(whole["enrichment_folds"].per_query)
    assert together[3].per_query.equals(whole["f1_at_k"].per_query)


class OneBlock:
    """All similarities at once, as a GPU with much memory gives them."""

    def blocks(self, vectors, rows, columns):
        across = vectors.unit if columns is None else vectors.unit[columns]
        yield Block(rows, vectors.unit[rows] @ across.T, columns, vectors)


def test_a_large_block_is_taken_in_parts(monkeypatch):
    X, sets = screen(9, n=70)
    extra = [["c"] * 35 + [None] * 35, [{"x"}] * 70]
    expected = interpolated_map(X, sets), enrichment_folds(X, sets, top=0.1), knn(X, sets, *extra)
    known = known_pairs_recall(X, PAIRS)
    monkeypatch.setattr("warehouse.metrics.passes.BLOCK", 300)
    vectors = Vectors.of(X)
    plans = [
        retrieval.InterpolatedPrecision(vectors, sets),
        retrieval.EnrichmentFolds(vectors, sets, top=0.1),
        knn_plan(vectors, sets, *extra),
    ]
    for one, other in zip(one_pass(vectors, plans, OneBlock()), expected, strict=True):
        assert one.per_query.equals(other.per_query)
    assert one_pass(vectors, [retrieval.KnownPairs(vectors, PAIRS)], OneBlock())[0].per_group.equals(
        known.per_group
    )


@pytest.mark.parametrize("name", CALLS)
def test_a_profile_without_direction_is_named(name):
    X, sets = screen(7, n=20)
    ids = [f"w{i}" for i in range(20)]
    for bad, message in [(0, r"profile 'w2' is all zeros"), (np.nan, r"profile 'w2' has nan in feature 1")]:
        broken = X.copy()
        broken[2] = bad
        with pytest.raises(EvaluationError, match=message):
            CALLS[name](broken, sets, ids)
        with pytest.raises(EvaluationError, match=message):
            known_pairs_recall(broken, PAIRS, ids)
        unlabelled = [set() if row == 2 else own for row, own in enumerate(sets)]
        assert CALLS[name](broken, unlabelled, ids).left_out["no label"] == 2
    with pytest.raises(EvaluationError, match=r"19 labels for 20 profiles"):
        CALLS[name](X, sets[1:])
    with pytest.raises(EvaluationError, match=name + r": no query is left \(20 with no match\)"):
        CALLS[name](X, [{str(i)} for i in range(20)])


def test_wrong_parameters_are_explained():
    X, sets = screen(8, n=20)
    with pytest.raises(EvaluationError, match=r"interpolated_map: points is -1"):
        interpolated_map(X, sets, points=-1)
    with pytest.raises(UnknownNameError, match=r"rule for infinite odds 'cells'. Did you mean 'cell'"):
        enrichment_folds(X, sets, inf="cells")
    with pytest.raises(EvaluationError, match=r"enrichment_folds: top is 1.0"):
        enrichment_folds(X, sets, top=1.0)
    for metric, name in ((hit_at_k, "hit"), (precision_at_k, "precision"), (f1_at_k, "f1")):
        with pytest.raises(EvaluationError, match=name + r"_at_k: k is 0"):
            metric(X, sets, k=0)
    with pytest.raises(
        EvaluationError, match=r"known pair \(3, 20\) names a row that is not there: there are 20"
    ):
        known_pairs_recall(X, np.array([[0, 1], [3, 20]]))
    with pytest.raises(EvaluationError, match=r"share is 0.6"):
        known_pairs_recall(X, PAIRS, share=0.6)
    with pytest.raises(EvaluationError, match=r"no query is left \(1 with pair with itself\)"):
        known_pairs_recall(X, np.array([[1, 1]]))
