"""Nearest treatments: against brute force, exclusions, stale indexes, a writer beside the reader."""

import multiprocessing

import numpy as np
import polars as pl
import pytest
from builders import (
    INJECTIONS,
    NEIGHBOURS,
    commit,
    layout,
    neighbour_lake,
    neighbour_plate,
    new_lake,
    plate,
    small_lake,
    state,
)

from warehouse.correct import correct
from warehouse.errors import ProfileError, RecipeError, SearchError, UnknownNameError
from warehouse.evaluation import evaluate
from warehouse.lake import INDEX_FOLDER, Lake
from warehouse.nearest import build, nearest
from warehouse.nearest import state as index_state

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def lake(tmp_path):
    with neighbour_lake(tmp_path / "lake") as made:
        yield made


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """A lake that tests only read, with its index."""
    with neighbour_lake(tmp_path_factory.mktemp("nearest") / "lake") as made:
        build(made, "tiny")
        yield made


def treatments():
    """Name to (compound, batches, mean profile), by hand from the builders' list, and the two DMSO wells."""
    found = {"DMSO": ("DMSO", {"p1", "p2"}, np.full(3, 0.1))}
    for name in dict.fromkeys((c, d) for _, c, d, _ in NEIGHBOURS):
        rows = [(p, v) for p, c, d, v in NEIGHBOURS if (c, d) == name]
        found[f"{name[0]}@{name[1]:g}uM"] = (
            name[0],
            {p for p, _ in rows},
            np.mean([v for _, v in rows], axis=0),
        )
    return found


def brute_force(query, k=20, allowed=lambda name, compound, batches: True):
    known = treatments()
    own = known[query][2] / np.linalg.norm(known[query][2])
    near = [
        (-float(own @ vector / np.linalg.norm(vector)), name)
        for name, (compound, batches, vector) in known.items()
        if name != query and allowed(name, compound, batches)
    ]
    return [(name, -negative) for negative, name in sorted(near)[:k]]


def check(answer, expected):
    assert answer.neighbours["treatment"].to_list() == [name for name, _ in expected]
    assert answer.neighbours["rank"].to_list() == list(range(1, len(expected) + 1))
    np.testing.assert_allclose(answer.neighbours["similarity"], [s for _, s in expected], atol=1e-6)


@pytest.mark.parametrize("query", list(treatments()))
def test_equals_brute_force_with_every_exclusion(still, query):
    compound, batches, _ = treatments()[query]
    check(nearest(still, query, "tiny"), brute_force(query))
    check(nearest(still, query, "tiny", k=2), brute_force(query, 2))
    same_compound = nearest(still, query, "tiny", not_same_compound=True)
    check(same_compound, brute_force(query, allowed=lambda n, c, b: c != compound))
    same_batch = nearest(still, query, "tiny", not_same_batch=True)
    check(same_batch, brute_force(query, allowed=lambda n, c, b: not b & batches))
    where = nearest(still, query, "tiny", where="compound IN ('a', 'e', 'f') AND control_type = 'none'")
    check(where, brute_force(query, allowed=lambda n, c, b: c in "aef"))
    every = nearest(
        still, query, "tiny", k=3, not_same_compound=True, not_same_batch=True, where="well_count = 1"
    )
    rule = lambda n, c, b: c != compound and not b & batches and c not in ("f", "DMSO")  # noqa: E731
    check(every, brute_force(query, 3, rule))
    assert every.allowed == len(brute_force(query, 99, rule))
    assert every.notes == ()


def test_k_is_filled_though_the_nearest_are_excluded(still):
    """a@3uM and b@1uM are nearest to a@1uM; leaving them out must not leave their places empty."""
    answer = nearest(still, "a@1uM", "tiny", k=2, not_same_compound=True, where="treatment <> 'b@1uM'")
    check(answer, brute_force("a@1uM", 2, lambda n, c, b: c not in "ab"))
    assert answer.allowed == 5
    assert nearest(still, "a@1uM", "tiny", where="1 = 0").neighbours.height == 0


def test_an_answer_carries_what_is_known_of_a_neighbour(still):
    row = nearest(still, "a@1uM", "tiny", k=2).neighbours.row(1, named=True)
    assert row.pop("similarity") == pytest.approx(0.9 / np.hypot(0.9, 0.1))
    # The two DMSO wells are the null, a profile each; neither is as near.
    assert row.pop("p_value") == pytest.approx(1 / 3)
    assert row == {
        "rank": 2, "treatment": "b@1uM", "compound": "b", "concentration": 1.0, "unit": "uM", "control_type": "none",
        "well_count": 1, "batch_count": 1,
        "replicate_cosine": None, "moa": ["A"], "target": None, "pathway": None, "gene_family": None,
    }  # fmt: skip


@pytest.mark.parametrize("level", ["treatment", "consensus"])
def test_without_and_with_an_index_the_answer_is_the_same(lake, level):
    before = nearest(lake, "a@1uM", "tiny", level=level)
    assert before.notes == (
        "there is no index yet: the lake itself was searched; make one with "
        f"`wellhouse index tiny --recipe none --level {level}`",
    )
    report = build(lake, "tiny", level=level)
    assert (report.vectors, report.dim, report.level) == (8, 3, level)
    after = nearest(lake, "a@1uM", "tiny", level=level)
    assert after.notes == ()
    assert after.neighbours.equals(before.neighbours)


def test_a_stale_index_is_noticed_and_not_used(lake):
    assert index_state(lake, "tiny", "none") == "none"
    build(lake, "tiny")
    assert index_state(lake, "tiny", "none") == "fresh"
    key = ("s", "b3", "p3")
    near = plate(key, {"A01": (1.0, 0.01, 0.0)}, "h", layout(key, [("A01", "g", 1.0, "none")]))
    commit(lake, near)
    assert index_state(lake, "tiny", "none") == "stale"
    answer = nearest(lake, "a@1uM", "tiny", k=1)
    assert answer.neighbours["treatment"].to_list() == ["g@1uM"]
    assert answer.notes == (
        "the index is older than the profiles: the lake itself was searched; renew it with "
        "`wellhouse index tiny --recipe none --level treatment`",
    )
    build(lake, "tiny")
    assert nearest(lake, "a@1uM", "tiny", k=1).notes == ()
    # Changed content under the same names, and another layout, are noticed as well.
    commit(lake, neighbour_plate("p2", shift=1.0))
    assert index_state(lake, "tiny", "none") == "stale"
    build(lake, "tiny")
    commit(lake, plate(key, {"A01": (1.0, 0.01, 0.0)}, "h", layout(key, [("A01", "a", 1.0, "none")])))
    assert index_state(lake, "tiny", "none") == "stale"
    answer = nearest(lake, "b@1uM", "tiny", k=1)
    assert answer.notes != ()
    assert answer.neighbours["treatment"].to_list() == ["a@3uM"]


def test_annotations_and_other_feature_sets_leave_an_index_fresh(lake):
    from dataclasses import replace

    from builders import LABELS, TINY

    from warehouse import layouts
    from warehouse.runs import Run
    from warehouse.screens.model import ANNOTATIONS_SCHEMA

    build(lake, "tiny")
    commit(lake, neighbour_plate("p1"), replace(TINY, name="other"))
    layouts.put_annotations(lake, Run("t", {}), pl.DataFrame(LABELS, schema=ANNOTATIONS_SCHEMA, orient="row"))
    assert index_state(lake, "tiny", "none") == "fresh"


def test_a_recipe_that_plates_wait_for_is_not_searched(lake):
    """Its table is of fewer wells than the feature set: an answer from it would look whole and not be."""
    recipe = "center(scope=plate)"
    correct(lake, "tiny", recipe)
    slug = build(lake, "tiny", recipe=recipe).recipe
    assert index_state(lake, "tiny", slug) == "fresh"
    key = ("s", "b3", "p3")
    plan = [("A01", "a", 1.0, "none"), ("A02", "d", 1.0, "none"), ("A03", "DMSO", None, "negative")]
    commit(lake, plate(key, {"A01": (0, 9, 0), "A02": (9, 0, 0), "A03": (0, 0, 9)}, "h", layout(key, plan)))
    assert index_state(lake, "tiny", slug) == "stale"
    for search in (
        lambda: nearest(lake, "a@1uM", "tiny", recipe=recipe),
        lambda: build(lake, "tiny", recipe=recipe),
        lambda: evaluate(lake, ["tiny"], ["nsc"], recipe=recipe),
    ):
        with pytest.raises(
            RecipeError,
            match=r"1 plates of feature set 'tiny' \(first: 'p3'\) .*run `wellhouse correct tiny --recipe",
        ):
            search()
    correct(lake, "tiny", recipe)
    assert index_state(lake, "tiny", slug) == "stale"
    stale = nearest(lake, "a@1uM", "tiny", recipe=recipe)
    assert stale.notes != ()
    build(lake, "tiny", recipe=recipe)
    assert nearest(lake, "a@1uM", "tiny", recipe=recipe).neighbours.equals(stale.neighbours)
    correct(lake, "tiny", recipe, refit=True)
    assert index_state(lake, "tiny", slug) == "stale"


def test_unknown_names_offer_the_nearest(still):
    with pytest.raises(
        UnknownNameError, match=r"unknown treatment 'a@1um'. Did you mean 'a@1uM'\? Known: DMSO, a@1uM"
    ):
        nearest(still, "a@1um", "tiny")
    with pytest.raises(UnknownNameError, match=r"unknown feature set 'tinny'. Did you mean 'tiny'\?"):
        nearest(still, "a@1uM", "tinny")
    with pytest.raises(
        UnknownNameError, match=r"unknown level to search 'treatments'. Did you mean 'treatment'\?"
    ):
        nearest(still, "a@1uM", "tiny", level="treatments")
    with pytest.raises(RecipeError, match="feature set 'tiny' has no recipe 'sphering'"):
        nearest(still, "a@1uM", "tiny", recipe="sphering")
    with pytest.raises(SearchError, match="k is 0: ask for at least one neighbour"):
        nearest(still, "a@1uM", "tiny", k=0)


@pytest.mark.parametrize("where", INJECTIONS)
def test_where_can_only_choose(still, where):
    before, snapshots = state(still), still.value("SELECT count(*) FROM ducklake_snapshots('lake')")
    with pytest.raises(ProfileError, match=r"^--where "):
        nearest(still, "a@1uM", "tiny", where=where)
    assert state(still) == before
    assert still.value("SELECT count(*) FROM ducklake_snapshots('lake')") == snapshots


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("colour = 'red'", 'Binder Error: Referenced column "colour" not found'),
        ("treatment = 3", "Conversion Error"),
        ("nofunction(treatment)", "Catalog Error: Scalar Function with name nofunction does not exist"),
        ("treatment IN (SELECT x FROM nowhere)", "Catalog Error: Table with name nowhere does not exist"),
    ],
)
def test_a_predicate_that_does_not_fit_is_one_line(still, where, message):
    with pytest.raises(ProfileError, match=message) as raised:
        nearest(still, "a@1uM", "tiny", where=where)
    assert "\n" not in str(raised.value)
    assert nearest(still, "a@1uM", "tiny", k=1).neighbours.height == 1  # the connection is usable again


def test_subselects_and_comments_may_choose(still):
    where = "treatment IN (SELECT treatment FROM main.treatments WHERE compound = 'c') -- only these"
    assert nearest(still, "a@1uM", "tiny", where=where).neighbours["treatment"].to_list() == ["c@1uM"]


def test_profiles_that_cannot_be_compared_are_refused_by_name(tmp_path):
    with small_lake(tmp_path / "lake") as lake:
        key = ("s3", "b1", "p5")
        commit(
            lake,
            plate(
                key, {"A01": (None, 1, 1), "A02": (0, 0, 0)}, "h", layout(key, [("A01", "x", 1.0, "none")])
            ),
        )
        with pytest.raises(
            SearchError, match="treatment 'x@1uM' has no value for feature 'f1': correct the feature set"
        ):
            build(lake, "tiny")
        commit(lake, plate(key, {"A01": (0, 0, 0)}, "h2", layout(key, [("A01", "x", 1.0, "none")])))
        for search in (lambda: build(lake, "tiny"), lambda: nearest(lake, "taxol@3uM", "tiny")):
            with pytest.raises(SearchError, match=r"vector 'x@1uM' is all zeros \(1 such\)"):
                search()
        left = [path.name for path in (lake.path / INDEX_FOLDER / "tiny").iterdir()]
        assert left == [".treatment__none.lock"]


def test_a_read_only_lake_is_searched_and_indexed(lake):
    with Lake.open(lake.path, read_only=True) as reader:
        assert build(reader, "tiny").vectors == 8
        assert nearest(reader, "a@1uM", "tiny", k=1).neighbours["treatment"].to_list() == ["a@3uM"]


def direction(name):
    """The profile of a treatment, from its number."""
    angle = int(name[1:4]) / 1000
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def commit_for_ever(path, ready, stop):
    """One plate after the other, each with a treatment that sorts before all others."""
    with Lake.open(path) as lake:
        for number in range(899, 0, -1):
            compound = f"t{number}".replace("t", "t" + "0" * (3 - len(str(number))))
            key = ("s", "b", compound)
            data = plate(
                key, {"A01": tuple(direction(compound))}, "h", layout(key, [("A01", compound, 1.0, "none")])
            )
            commit(lake, data)
            ready.set()
            if stop.is_set():
                return


def test_answers_are_of_one_snapshot_while_plates_come_in(tmp_path):
    """Whatever comes in between its queries, each neighbour's similarity is that of its own profile."""
    with new_lake(tmp_path / "lake") as lake:
        key = ("s", "b", "t900")
        commit(
            lake,
            plate(key, {"A01": tuple(direction("t900"))}, "h", layout(key, [("A01", "t900", 1.0, "none")])),
        )
    ready, stop = SPAWN.Event(), SPAWN.Event()
    writer = SPAWN.Process(target=commit_for_ever, args=(tmp_path / "lake", ready, stop))
    writer.start()
    assert ready.wait(60)
    sizes = set()
    try:
        with Lake.open(tmp_path / "lake", read_only=True) as reader:
            for turn in range(15):
                if turn % 5 == 4:
                    build(reader, "tiny")
                answer = nearest(reader, "t900@1uM", "tiny", k=1000)
                sizes.add(answer.allowed)
                for name, similarity in answer.neighbours.select("treatment", "similarity").rows():
                    assert similarity == pytest.approx(
                        float(direction(name) @ direction("t900")), abs=1e-6
                    ), name
    finally:
        stop.set()
        writer.join(60)
    assert writer.exitcode == 0
    assert len(sizes) > 3  # the writer was at work meanwhile
