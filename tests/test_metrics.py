"""The registry of metrics, and what every one of them keeps to."""

import numpy as np
import pytest

from warehouse import metrics
from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.evaluation.asked import asked_metric
from warehouse.metrics.passes import Vectors, one_pass

#: 60 wells: 12 negative controls, and 12 treatments with 4 wells each, on 2 plates of 2 batches and 2 sources.
N, CONTROLS, TREATMENTS = 60, 12, 12
OF = np.r_[np.full(CONTROLS, -1), np.repeat(np.arange(TREATMENTS), 4)]
PLATE = np.arange(N) % 2
NEEDS = {
    "labels": [set() if t < 0 else {f"l{t // 4}"} for t in OF],
    "treatments": [None if t < 0 else f"t{t:02}" for t in OF],
    "compounds": [None if t < 0 else f"c{t:02}" for t in OF],
    "batches": [{f"s/b{p}"} for p in PLATE],
    "sources": [{f"s{p}"} for p in PLATE],
    "plates": [f"s/b/p{p}" for p in PLATE],
    "controls": [bool(t < 0) for t in OF],
    "folds": np.where(OF < 0, -1, OF % 3),
    "clusters": None,
    "pairs": np.array([[12, 13], [20, 25], [30, 31], [40, 58]]),
    "assays": np.where(OF[:, None] < 0, np.nan, (OF[:, None] // 4 == np.arange(2)).astype(float)),
    "assay_names": ["a0", "a1"],
}
#: So that what learns does so in a moment.
QUICK = {"bioactivity": {"epochs": 5, "hidden": 16}, "mlp_classification": {"epochs": 30, "hidden": "16"}}
QUICK |= {
    "map_vs_controls": {"null": 100},
    "graph_connectivity": {"k": 5},
    "ilisi": {"k": 15},
    "clisi": {"k": 15},
}
QUICK |= {"gene_family_clusters": {"most": 16}}


def profiles(seed=0):
    rng = np.random.default_rng(seed)
    of_label, of_treatment = rng.normal(size=(4, 6)), 0.7 * rng.normal(size=(TREATMENTS + 1, 6))
    return 1.0 + of_label[OF // 4] * (OF >= 0)[:, None] + of_treatment[OF] + 0.3 * rng.normal(size=(N, 6))


def needs_of(metric, order=None):
    needs = {need: NEEDS[need] for need in metric.needs}
    if metric.label_kind == "treatment":
        needs["labels"] = [set() if t is None else {t} for t in NEEDS["treatments"]]
    if order is None:
        return needs
    place = np.argsort(order)
    moved = {}
    for need, values in needs.items():
        if need == "pairs":
            moved[need] = place[values]
        elif need == "assay_names" or values is None:
            moved[need] = values
        else:
            moved[need] = values[order] if isinstance(values, np.ndarray) else [values[row] for row in order]
    return moved


def test_names_are_unique_and_ranges_ordered():
    assert [metrics.get(metric.name) for metric in metrics.ALL] == list(metrics.ALL)
    assert all(metric.range[0] < metric.range[1] for metric in metrics.ALL)


def test_a_duplicate_raises_and_an_unknown_name_is_explained():
    with pytest.raises(EvaluationError, match=r"two metrics are named 'nsc'"):
        metrics.get("nsb", (metrics.ALL[0], metrics.ALL[0]))
    with pytest.raises(
        UnknownNameError, match=r"unknown metric 'ncs'. Did you mean 'nsc'\? Known: activity, "
    ):
        metrics.get("ncs")


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_every_metric_keeps_the_contract(metric):
    X, given = profiles(), QUICK.get(metric.name, {})
    ids = [f"w{row}" for row in range(N)]
    score = metric.function(X, ids=ids, **needs_of(metric), **given)
    assert metric.range[0] <= score.value <= metric.range[1]
    assert score.unit in ("query", "group", None)
    assert sum(score.left_out.values()) <= N
    if score.unit == "query":
        assert score.value == pytest.approx(score.per_query["value"].mean(), abs=1e-9)
        assert score.n == len(score.per_query)
        assert score.per_query["row"].is_between(0, N - 1).all()
    elif score.unit == "group":
        assert score.value == pytest.approx(score.per_group["value"].mean(), abs=1e-9)
        assert score.n == len(score.per_group)
    assert metric.function(X, ids=ids, **needs_of(metric), **given).value == score.value
    order = np.random.default_rng(1).permutation(N)
    moved = metric.function(X[order], ids=[ids[row] for row in order], **needs_of(metric, order), **given)
    assert moved.value == pytest.approx(score.value, abs=1e-6)
    assert moved.left_out == score.left_out
    if metric.plan is not None:
        vectors = Vectors.of(X, ids)
        (shared,) = one_pass(vectors, [metric.plan(vectors, **needs_of(metric), **given)])
        assert shared.value == score.value
        assert shared.left_out == score.left_out


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_every_metric_refuses_what_it_cannot_compare(metric):
    given, needs = QUICK.get(metric.name, {}), needs_of(metric)
    ids = [f"w{row}" for row in range(N)]
    for bad, message in [(np.nan, "'w20' (has|is) nan in"), (np.inf, "'w20' (has|is) inf in")]:
        X = profiles()
        X[20, 0] = bad
        with pytest.raises(EvaluationError, match=message):
            metric.function(X, ids=ids, **needs, **given)
    short = next(
        (need for need in metric.needs if isinstance(needs[need], list) and need != "assay_names"), None
    )
    if short is None:
        return  # pairs are row numbers
    with pytest.raises(EvaluationError, match=rf"{N - 1} \w+ for {N} profiles"):
        metric.function(profiles(), ids=ids, **(needs | {short: needs[short][:-1]}), **given)


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_every_metric_says_what_it_tells_and_whose_it_is(metric):
    assert metric.paper
    first = (metric.function.__doc__ or "").split("\n")[0]
    assert len(first) > 20, f"{metric.name}: its docstring has no first line"
    text = asked_metric(metric.name)
    assert (text.text, text.parameters) == (metric.name, metric.parameters)
    assert all(isinstance(value, bool | int | float | str) for value in metric.parameters.values())
