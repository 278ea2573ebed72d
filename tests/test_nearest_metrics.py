"""Accuracy of nearest neighbours, against published figures, naive loops of every rule, and scikit-learn."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_profiles import bbbc021
from sklearn.neighbors import KNeighborsClassifier

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics import nearest, passes
from warehouse.metrics.nearest import knn, nsb, nsb_wells, nsbp, nsc, nscb
from warehouse.metrics.passes import Vectors, one_pass


def circle(*degrees):
    angle = np.deg2rad(np.array(degrees, dtype=float))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_bbbc021_reaches_the_published_figures(data_dir):
    X, treatments, layout = bbbc021(data_dir)
    labels, compounds = treatments["moa"].to_list(), treatments["compound"].to_list()
    score = nsc(X, labels, compounds)
    assert (score.correct, score.n, score.left_out) == (85, 103, {})
    profiled = [set(row) for row in treatments["batches"].to_list()]
    score = nsb(X, labels, compounds, profiled)
    assert (score.correct, score.n) == (67, 92)
    assert score.left_out == {"label in one batch only": 11}
    assert nscb(X, labels, compounds, profiled).per_query.equals(score.per_query)
    # With the plates as batch, as Xun et al. have it, hardly anything more is left out than the compound.
    plates = [set(row) for row in treatments["plates"].to_list()]
    by_plate = nscb(X, labels, compounds, plates)
    assert by_plate.value > score.value
    # By every week a treatment was imaged in, taxol at 0.3 µM (on plates of all weeks) has no candidate.
    weeks = layout.group_by("compound", "concentration").agg(imaged=pl.col("batch").unique())
    imaged = treatments.join(weeks, on=["compound", "concentration"], how="left", maintain_order="left")[
        "imaged"
    ]
    score = nsb(X, labels, compounds, [set(row) for row in imaged.to_list()])
    assert (score.correct, score.n) == (67, 91)
    assert score.left_out == {"label in one batch only": 11, "no candidate": 1}
    assert knn(X, labels, compounds, profiled, k=1).correct == 85
    assert knn(X, labels, compounds, profiled, k=1, exclude="nsb").correct == 67


# --- by hand


def test_nsc_and_nsb_leave_out_the_same_compound_and_the_same_batch():
    X = circle(0, 1, 5, 20, 21)
    labels = [{"a"}, {"a"}, {"b"}, {"a", "c"}, {"b"}]
    compounds = ["k", "k", "l", "m", "n"]
    score = nsc(X, labels, compounds)
    assert score.per_query["neighbour"].to_list() == [2, 2, 1, 4, 3]
    assert (score.value, score.correct, score.n) == (0, 0, 5)
    np.testing.assert_allclose(score.per_query["similarity"][2], np.cos(np.deg2rad(4)), atol=1e-11)
    # Without the batches of 2: 0 and 1 go on to 3 (right), 3 is free to take 1 (right).
    batches = [{"x"}, {"x"}, {"x", "y"}, {"z"}, {"z", "y"}]
    score = nsb(X, labels, compounds, batches)
    assert score.per_query["row"].to_list() == [0, 1, 2, 3, 4]
    assert score.per_query["neighbour"].to_list() == [3, 3, 3, 2, 1]
    assert score.per_query["value"].to_list() == [1, 1, 0, 0, 0]
    assert score.left_out == {}
    # The other reading: 2 may answer 0 and 1 (another label), 4 may answer 3.
    score = nsb(X, labels, compounds, batches, reading="batch_and_label")
    assert score.per_query["neighbour"].to_list() == [2, 2, 1, 4, 3]


def test_nsb_drops_labels_of_one_batch_and_counts_who_is_left_out():
    X = circle(0, 2, 4, 6, 8, 40, 41)
    labels = [{"a"}, {"solo"}, {"a", "solo"}, set(), None, {"a"}, "a"]
    batches = [{"x"}, {"y"}, {"y"}, {"z"}, {"z"}, {"x", "y", "w"}, set()]
    score = nsb(X, labels, list("1234567"), batches)
    # 1 has only a label of batch y; 2 keeps "a"; 5 shares a batch with both others.
    assert score.left_out == {"label in one batch only": 1, "no batch": 1, "no candidate": 1, "no label": 2}
    cosine = pytest.approx(np.cos(np.deg2rad(4)))
    assert score.per_query.rows() == [(0, 1.0, 2, cosine), (2, 1.0, 0, cosine)]


def test_wells_without_a_match_are_left_out_or_wrong():
    X = circle(0, 10, 25, 60)
    labels, batches = ["t", "t", "u", "u"], [{"x"}, {"y"}, {"y"}, {"y"}]
    score = nsb_wells(X, labels, batches)
    # Only 0 and 1 have their treatment in another batch; u stands in y alone.
    assert score.per_query.select("row", "value", "neighbour").rows() == [(0, 1.0, 1), (1, 1.0, 0)]
    assert score.left_out == {"no candidate with its label": 2}
    score = nsb_wells(X, labels, batches, unmatched="wrong")
    assert (score.value, score.n, score.left_out) == (0.5, 4, {})


def test_nsbp_leaves_out_the_batch_and_the_perturbation():
    X = circle(0, 1, 2, 3, 50)
    labels = [{"a"}, {"a"}, {"a"}, {"b"}, {"a"}]
    treatments = ["t", "t", "v", "w", "v"]
    batches = [{"x"}, {"y"}, {"x"}, {"y"}, {"y"}]
    score = nsbp(X, labels, treatments, batches)
    # 0: not 1 (its treatment), not 2 (its batch): 3 is nearest, and wrong.
    assert score.per_query.select("row", "neighbour", "value").rows() == [
        (0, 3, 0.0), (1, 2, 1.0), (2, 1, 1.0), (4, 0, 1.0)
    ]  # fmt: skip
    assert score.left_out == {"no candidate with its label": 1}


def test_votes_and_their_ties():
    X = circle(0, 1, 2, 3, 40)
    batches = [set()] * 5
    score = knn(X, [{"a"}, {"b"}, {"a", "c"}, {"c"}, {"a"}], list("12345"), batches, k=3)
    found = dict(zip(score.per_query["row"], score.per_query["predicted"], strict=True))
    # Of 0: b, a and c, c: c has two. Of 1: a, (a c), c: a and c tie; a's nearest voter, 0, is nearest.
    assert found[0] == "c"
    assert found[1] == "a"
    assert score.per_query["votes"].to_list()[:2] == [2, 2]
    # All of k = 1's neighbour's labels count, and fewer than k vote where there are no more.
    assert knn(X[:2], ["a", "a"], list("12"), batches[:2], k=9).value == 1
    one = knn(X, [{"a"}, {"b"}, {"a", "c"}, {"c"}, {"a"}], list("12345"), batches, k=1)
    assert one.per_query["predicted"][3] == "a; c"


def test_wells_of_other_batches_and_perturbations_vote():
    X = circle(0, 1, 2, 3, 4, 5)
    labels = [{"a"}, {"a"}, {"b"}, {"a"}, {"a"}, {"b"}]
    treatments, batches = list("ttuvwu"), [{"x"}, {"y"}, {"y"}, {"y"}, {"z"}, {"x"}]
    one, three = (nsbp(X, labels, treatments, batches, k=k) for k in (1, 3))
    # 0 may not take 1, its own treatment, nor 5, its batch: 2 alone is wrong, outvoted by 3 and 4 it is right.
    assert one.per_query.filter(row=0).select("neighbour", "value").rows() == [(2, 0.0)]
    assert "votes" not in one.per_query.columns
    assert three.per_query.filter(row=0).select("neighbour", "value", "predicted", "votes").rows() == [
        (2, 1.0, "a", 2)
    ]
    # Its own treatment votes where only the batch is left out; u's wells have no other of their label.
    wells = nsb_wells(X, labels, batches, k=3)
    assert wells.per_query.filter(row=0).select("neighbour", "predicted", "votes").rows() == [(1, "a", 2)]
    assert three.left_out == {"no candidate with its label": 2}


def test_more_neighbours_than_there_are_are_all(monkeypatch):
    X, labels, batches, compounds = screen(5)
    most = knn(X, labels, compounds, batches, k=len(X) - 1)
    for k in (10**9, len(X)):
        assert knn(X, labels, compounds, batches, k=k).per_query.equals(most.per_query)
    # And where lists of neighbours, not similarities, decide how many rows are taken at a time.
    monkeypatch.setattr(passes, "BLOCK", 5000)
    assert knn(X, labels, compounds, batches, k=10**9).per_query.equals(most.per_query)


def test_ties_go_to_the_first_row():
    X = np.array([[1, 0], [1, 1], [3, 3], [0.1, 0.1]])
    assert nsc(X, list("abcd"), list("1234")).per_query["neighbour"].to_list() == [1, 2, 1, 1]
    # Multiples of one profile are equally near, though their last digits differ.
    rng = np.random.default_rng(1)
    X = rng.normal(size=(1, 50)) * rng.uniform(0.1, 9, (200, 1))
    assert nsc(X, ["a"] * 200, range(200)).per_query["neighbour"].to_list() == [1] + [0] * 199


def test_what_single_precision_cannot_tell_is_told():
    # Neighbours at angles of 1e-5 and less differ in the tenth decimal of the cosine.
    rng = np.random.default_rng(3)
    angles = rng.uniform(0, 1e-3, 60)
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    score = nsc(X, ["a"] * 60, range(60))
    gap = np.abs(angles[:, None] - angles)
    np.fill_diagonal(gap, 1)
    chosen = score.per_query["neighbour"].to_numpy()
    cosine = np.round(np.cos(gap), 12)
    assert (cosine[np.arange(60), chosen] == cosine.max(axis=1)).all()
    assert (chosen == gap.argmin(axis=1)).mean() > 0.9
    plain = (X.astype(np.float32) @ X.astype(np.float32).T).copy()
    np.fill_diagonal(plain, -np.inf)
    assert (plain.argmax(axis=1) == gap.argmin(axis=1)).mean() < 0.5


# --- naive loops


def by_loop(X, labels, k, left_out, keep=lambda row: True):
    """Predict by the definition, row by row."""
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosine = np.round(unit @ unit.T, 12)
    rows, right = [], []
    for q in range(len(X)):
        allowed = [c for c in range(len(X)) if c != q and keep(c) and not left_out(q, c)]
        if not keep(q) or not allowed:
            continue
        order = sorted(allowed, key=lambda c: (-cosine[q, c], c))[:k]
        votes = Counter(label for c in order for label in labels[c])
        best = max(votes.values())
        first = next(c for c in order if any(votes[label] == best for label in labels[c]))
        won = {label for label in labels[first] if votes[label] == best}
        rows.append(q)
        right.append(float(bool(won & labels[q])))
    return rows, right


def screen(seed, n=70, several=True):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4)).round(1) + 0.05
    most = 3 if several else 2
    labels = [set(rng.choice(list("abcd"), rng.integers(1, most), replace=False).tolist()) for _ in range(n)]
    batches = [
        set(rng.choice(list("uvwxyz"), rng.integers(1, most), replace=False).tolist()) for _ in range(n)
    ]
    compounds = rng.integers(0, 20, n).astype(str).tolist()
    return X, labels, batches, compounds


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("rule", ["none", "nsc", "batch", "batch_and_label", "wells", "nsbp", "nsbp_label"])
def test_every_exclusion_equals_a_naive_loop(rule, several):
    X, labels, batches, compounds = screen(11, several=several)

    def same(q, c):
        return compounds[q] == compounds[c]

    def together(q, c):
        return bool(batches[q] & batches[c])

    def alike(q, c):
        return bool(labels[q] & labels[c])

    rules = {
        "none": (lambda q, c: False, lambda k: knn(X, labels, compounds, batches, k=k, exclude="none")),
        "nsc": (same, lambda k: knn(X, labels, compounds, batches, k=k)),
        "batch": (
            lambda q, c: same(q, c) or together(q, c),
            lambda k: knn(X, labels, compounds, batches, k=k, exclude="nsb"),
        ),
        "batch_and_label": (
            lambda q, c: same(q, c) or (together(q, c) and alike(q, c)),
            lambda k: knn(X, labels, compounds, batches, k=k, exclude="nsb", reading="batch_and_label"),
        ),
        "wells": (together, lambda k: nsb_wells(X, labels, batches, k=k, unmatched="wrong")),
        "nsbp": (
            lambda q, c: same(q, c) or together(q, c),
            lambda k: nsbp(X, labels, compounds, batches, k=k, unmatched="wrong"),
        ),
        "nsbp_label": (
            lambda q, c: same(q, c) or (together(q, c) and alike(q, c)),
            lambda k: nsbp(X, labels, compounds, batches, k=k, reading="batch_and_label", unmatched="wrong"),
        ),
    }
    left_out, metric = rules[rule]
    for k in (1, 5):
        score = metric(k)
        rows, right = by_loop(X, labels, k, left_out)
        assert score.per_query["row"].to_list() == rows
        assert score.per_query["value"].to_list() == right
        assert 0 < score.value < 1


def test_many_labels_are_compared_as_few_are():
    # Two labels a row out of many, against the same rule over sets.
    rng = np.random.default_rng(4)
    X = rng.normal(size=(200, 6))
    labels = [set(rng.integers(0, 600, 9).astype(str).tolist()) for _ in range(200)]
    rows, right = by_loop(X, labels, 1, lambda q, c: False)
    score = knn(X, labels, range(200), [set()] * 200, k=1, exclude="none")
    assert score.per_query["value"].to_list() == right
    assert rows == list(range(200))


@pytest.mark.parametrize("k", [1, 5])
def test_knn_equals_scikit_learn(k):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 60)  # two labels and an odd k: no ties of votes
    X = rng.normal(size=(60, 7)) + 0.5 * labels[:, None]
    right = [
        KNeighborsClassifier(k, metric="cosine", algorithm="brute")
        .fit(np.delete(X, i, 0), np.delete(labels, i))
        .predict(X[[i]])[0]
        == labels[i]
        for i in range(60)
    ]
    score = knn(X, labels.astype(str).tolist(), range(60), [{"x"}] * 60, k=k)
    assert score.per_query["value"].to_list() == right
    assert 0.5 < score.value < 1


# --- what they are for


def test_a_label_planted_in_the_batch_helps_nsc_and_not_nsb():
    rng = np.random.default_rng(5)
    n, batches = 240, 12
    batch = np.arange(n) % batches
    # Each batch holds two labels of four, and its profiles say nothing but the batch.
    label = (batch + 2 * (rng.random(n) < 0.5)) % 4
    X = rng.normal(size=(batches, 30))[batch] + 0.3 * rng.normal(size=(n, 30))
    pure = (batch % 4).astype(str).tolist()
    compounds, sets = [f"c{i}" for i in range(n)], [{f"b{b}"} for b in batch]
    chance = 1 / 4
    assert nsc(X, pure, compounds).value > 0.95
    assert abs(nsb(X, pure, compounds, sets).value - chance) < 0.2
    assert nsb_wells(X, pure, sets).value < 0.5
    # The other reading leaves the batch's wrong answers in: the batch effect then costs all.
    mixed = label.astype(str).tolist()
    assert nsb_wells(X, mixed, sets, reading="batch_and_label").value < 0.05
    # A label that is in the profiles holds.
    X = X + 4 * rng.normal(size=(4, 30))[label]
    assert nsb(X, mixed, compounds, sets).value > 0.9


CALLS = {
    "nsc": lambda X, labels, batches, compounds, ids=None: nsc(X, labels, compounds, ids),
    "nsb": lambda X, labels, batches, compounds, ids=None: nsb(X, labels, compounds, batches, ids),
    "nscb": lambda X, labels, batches, compounds, ids=None: nscb(X, labels, compounds, batches, ids),
    "nsb_wells": lambda X, labels, batches, compounds, ids=None: nsb_wells(X, labels, batches, ids),
    "nsbp": lambda X, labels, batches, compounds, ids=None: nsbp(X, labels, compounds, batches, ids),
    "knn": lambda X, labels, batches, compounds, ids=None: knn(X, labels, compounds, batches, ids, k=3),
}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_order_of_rows_names_and_scale_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    X, labels, batches, compounds = screen(seed, n=30)
    X = X + rng.normal(size=X.shape) * 1e-3  # no ties: they go by row
    order = rng.permutation(30)
    renamed = {"a": "z", "b": "other", "c": "q", "d": "m"}
    for call in CALLS.values():
        score = call(X, labels, batches, compounds)
        other = call(
            X[order] * rng.uniform(0.1, 9, (30, 1)),
            [{renamed[label] for label in labels[i]} for i in order],
            [{f"batch {b}" for b in batches[i]} for i in order],
            [f"compound {compounds[i]}" for i in order],
        )
        assert (other.value, other.n, other.left_out) == (score.value, score.n, score.left_out)
        back = dict(zip(order[other.per_query["row"].to_numpy()], other.per_query["value"], strict=True))
        assert [back[row] for row in score.per_query["row"]] == score.per_query["value"].to_list()


def test_the_size_of_a_block_and_the_rest_of_the_call_do_not_matter(monkeypatch):
    X, labels, batches, compounds = screen(6, n=80)
    labels[7] = set()
    whole = {name: call(X, labels, batches, compounds) for name, call in CALLS.items()}
    monkeypatch.setattr("warehouse.metrics.passes.BLOCK", 300)
    for name, call in CALLS.items():
        assert call(X, labels, batches, compounds).per_query.equals(whole[name].per_query)
    vectors = Vectors.of(X)
    plans = [
        nearest.nsc_plan(vectors, labels, compounds),
        nearest.nsb_plan(vectors, labels, compounds, batches),
        nearest.nsb_wells_plan(vectors, labels, batches),
    ]
    for name, score in zip(("nsc", "nsb", "nsb_wells"), one_pass(vectors, plans), strict=True):
        assert score.per_query.equals(whole[name].per_query)


# --- what goes wrong


def test_what_is_lacking_is_explained():
    X = circle(0, 1)
    sets = [{"x"}, {"y"}]
    with pytest.raises(UnknownNameError, match=r"rule of exclusion 'nsbp'. Did you mean 'nsb'"):
        knn(X, ["a", "a"], ["k", "l"], sets, exclude="nsbp")
    with pytest.raises(UnknownNameError, match=r"reading of NSB 'batches'. Did you mean 'batch'"):
        nsb(X, ["a", "a"], ["k", "l"], sets, reading="batches")
    with pytest.raises(UnknownNameError, match=r"rule for wells without a match 'drop'"):
        nsb_wells(X, ["a", "a"], sets, unmatched="drop")
    with pytest.raises(EvaluationError, match=r"knn: k is 0"):
        knn(X, ["a", "a"], ["k", "l"], sets, k=0)
    with pytest.raises(EvaluationError, match=r"nsb_wells: k is -1; it must be at least 1"):
        nsb_wells(X, ["a", "a"], sets, k=-1)
    with pytest.raises(EvaluationError, match=r"nsc: no query is left \(2 with no candidate\)"):
        nsc(X, ["a", "a"], ["k", "k"])
    with pytest.raises(
        EvaluationError, match=r"nsbp: no query is left \(2 with no candidate with its label\)"
    ):
        nsbp(X, ["a", "b"], ["k", "l"], sets)
    with pytest.raises(EvaluationError, match=r"1 compounds for 2 profiles"):
        knn(X, ["a", "a"], ["k"], sets, exclude="none")
    with pytest.raises(EvaluationError, match=r"1 batches for 2 profiles"):
        nsb(X, ["a", "a"], ["k", "l"], sets[:1])


@pytest.mark.parametrize("name", CALLS)
def test_a_profile_without_direction_is_named(name):
    X, labels, batches, compounds = screen(8, n=12)
    ids = [f"w{i}" for i in range(12)]
    for bad, message in [
        (0, r"profile 'w2' is all zeros \(1 such profiles\)"),
        (np.nan, r"profile 'w2' has nan in feature 1 \(1 such profiles\)"),
    ]:
        broken = X.copy()
        broken[2] = bad
        with pytest.raises(EvaluationError, match=message):
            CALLS[name](broken, labels, batches, compounds, ids)
        # Where it has no label, it is not compared.
        unlabelled = [set() if row == 2 else own for row, own in enumerate(labels)]
        assert CALLS[name](broken, unlabelled, batches, compounds, ids).left_out["no label"] == 1
