"""Queries of every kind and tables over a level, against what NumPy gives for the same vectors."""

import numpy as np
import polars as pl
import pytest
from builders import commit, layout, new_lake, plate, wide

from warehouse import feature_sets, layouts
from warehouse.errors import ProfileError, SearchError, UnknownNameError
from warehouse.nearest import Filters, Searcher, build, nearest
from warehouse.runs import Run
from warehouse.screens.model import ANNOTATIONS_SCHEMA

DIM, COMPOUNDS = 6, 9


def profile(compound, well, rng):
    """A direction of the compound's own; 0 to 2 are alike, and so are 3 to 5."""
    base = np.random.default_rng(compound // 3).normal(size=DIM) if compound < 6 else rng.normal(size=DIM)
    return tuple(base + 0.3 * rng.normal(size=DIM))


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Nine compounds at two doses on four plates of two batches, labels for some, four controls a plate."""
    rng = np.random.default_rng(8)
    with new_lake(tmp_path_factory.mktemp("searcher") / "lake") as made:
        for number in range(4):
            key = ("s", f"b{number // 2}", f"p{number}")
            plan = [(f"A{i + 1:02d}", "DMSO", None, "negative") for i in range(4)]
            plan += [
                (f"{'BC'[dose]}{(c + number) % COMPOUNDS + 1:02d}", f"c{c}", (1.0, 3.0)[dose], "none")
                for c in range(COMPOUNDS)
                for dose in range(2)
                if (c, number) != (8, 3)
            ]
            wells = {
                well: tuple(rng.normal(size=DIM)) if name == "DMSO" else profile(int(name[1]), well, rng)
                for well, name, *_ in plan
            }
            commit(made, plate(key, wells, f"content {number}", layout(key, plan)), wide(DIM))
        labels = [(f"c{c}", None, None, "moa", "AB"[c // 3]) for c in range(5)]
        labels += [("c0", 1.0, "uM", "target", "T1"), ("c3", None, None, "target", "T2")]
        layouts.put_annotations(
            made, Run("t", {}), pl.DataFrame(labels, schema=ANNOTATIONS_SCHEMA, orient="row")
        )
        yield made


@pytest.fixture(scope="module")
def wells(lake):
    return lake.frame("FROM wide.well_profiles ORDER BY source, batch, plate, well")


def unit(rows):
    made = np.asarray(rows, dtype=np.float64)
    return made / np.linalg.norm(made, axis=-1, keepdims=True)


def ranked(frame, vector, keep, ids):
    """Names and cosines of the rows to keep, nearest first."""
    kept = frame.filter(keep)
    near = unit(kept["embedding"].to_list()) @ unit(vector)
    names = kept.select(pl.concat_str(ids, separator="/")).to_series().to_list()
    return sorted(zip(-near, names, strict=True))


def check(found, expected, ids):
    names = found.select(pl.concat_str(ids, separator="/")).to_series().to_list()
    assert names == [name for _, name in expected]
    np.testing.assert_allclose(found["similarity"], [-near for near, _ in expected], atol=2e-6)


WELL = ("source", "batch", "plate", "well")


def test_by_a_well_its_own_is_left_out_at_its_level_only(lake, wells):
    searcher = Searcher(lake, "wide", level="well")
    query = searcher.well("s/b0/p1/B03")
    vector = wells.filter((pl.col("plate") == "p1") & (pl.col("well") == "B03"))["embedding"][0]
    is_other = (pl.col("plate") != "p1") | (pl.col("well") != "B03")
    check(searcher.nearest(query, 7).neighbours, ranked(wells, vector, is_other, WELL)[:7], WELL)
    assert searcher.nearest(searcher.well("p1/B03"), 7).neighbours.equals(
        searcher.nearest(query, 7).neighbours
    )
    assert searcher.query("s/b0/p1/B03").rows == query.rows
    # Which treatment does this well look like? Its own, or a sibling of the same direction.
    above = Searcher(lake, "wide")
    found = above.nearest(above.well("p1/B03"), 3).neighbours
    own = wells.filter((pl.col("plate") == "p1") & (pl.col("well") == "B03"))["treatment"][0]
    assert own in found["treatment"].to_list()


def test_by_a_set_of_wells_the_profile_is_made_by_the_treatment_operator(lake, wells):
    where = "compound = 'c2' AND plate <> 'p0'"
    chosen = (pl.col("compound") == "c2") & (pl.col("plate") != "p0")
    treatments = lake.frame("FROM wide.treatments ORDER BY treatment")
    for operator, function in (("mean", np.mean), ("median", np.median)):
        feature_sets.set_operators(lake, "wide", treatment=operator)
        treatments = lake.frame("FROM wide.treatments ORDER BY treatment")
        searcher = Searcher(lake, "wide")
        query = searcher.wells(where)
        vector = function(np.array(wells.filter(chosen)["embedding"].to_list()), axis=0)
        assert query.name == "6 wells"
        assert (query.compounds, query.plates) == ({"c2"}, {"s/b0/p1", "s/b1/p2", "s/b1/p3"})
        check(
            searcher.nearest(query, 5, Filters(not_same_compound=True)).neighbours,
            ranked(treatments, vector, pl.col("compound") != "c2", ["treatment"])[:5],
            ["treatment"],
        )
    feature_sets.set_operators(lake, "wide", treatment="mean")


def test_a_treatment_among_wells_is_the_profile_of_its_wells_which_are_left_out(lake, wells):
    searcher = Searcher(lake, "wide", level="well")
    query = searcher.query("c1@3uM")
    own = pl.col("treatment") == "c1@3uM"
    vector = np.mean(wells.filter(own)["embedding"].to_list(), axis=0)
    check(searcher.nearest(query, 9).neighbours, ranked(wells, vector, ~own, WELL)[:9], WELL)
    row = searcher.nearest(query, 1).neighbours.row(0, named=True)
    others = wells.filter((pl.col("treatment") == row["treatment"]) & ~(
        (pl.col("plate") == row["plate"]) & (pl.col("well") == row["well"])
    ))  # fmt: skip
    mine = wells.filter((pl.col("plate") == row["plate"]) & (pl.col("well") == row["well"]))["embedding"][0]
    assert row["replicate_cosine"] == pytest.approx(
        np.median(unit(others["embedding"].to_list()) @ unit(mine)), abs=1e-6
    )
    assert row["well_count"] == len(others) + 1


def test_by_a_vector_with_predicates_on_labels_counts_and_what_only_the_lake_has(lake, wells):
    searcher = Searcher(lake, "wide")
    treatments = lake.frame("FROM wide.treatments ORDER BY treatment")
    vector = np.arange(DIM) - 2.5
    rules = {
        "list_contains(moa, 'B')": pl.col("compound").is_in(["c3", "c4"]),
        "moa IS NULL AND control_type = 'none'": pl.col("compound").is_in(["c5", "c6", "c7", "c8"]),
        "target = ['T1']": pl.col("treatment") == "c0@1uM",
        "well_count = 3": pl.col("compound") == "c8",
        "list_contains(positions, 'B01')": pl.col("positions").list.contains("B01"),
        "embedding[1] > 0": pl.col("embedding").list.get(0) > 0,
        "treatment IN (SELECT treatment FROM main.treatments WHERE concentration > 2)": pl.col(
            "concentration"
        )
        > 2,
    }
    for where, keep in rules.items():
        answer = searcher.nearest(searcher.vector(vector), 50, Filters(where=where))
        check(answer.neighbours, ranked(treatments, vector, keep, ["treatment"]), ["treatment"])
        assert answer.allowed == len(answer.neighbours) == treatments.filter(keep).height > 0
    assert searcher.nearest(searcher.vector(vector), 50, Filters(where="passing_share >= 0")).allowed >= 0


def test_the_most_unlike_come_first_with_p_values_of_that_side(lake):
    searcher = Searcher(lake, "wide")
    query = searcher.query("c0@1uM")
    every = searcher.nearest(query, 99).neighbours
    opposite = searcher.nearest(query, 4, opposite=True).neighbours
    assert opposite["treatment"].to_list() == every["treatment"].to_list()[::-1][:4]
    assert opposite["similarity"].to_list() == every["similarity"].to_list()[::-1][:4]
    assert opposite["p_value"][0] < every["p_value"][-1]
    assert every["p_value"].is_sorted()
    by_function = nearest(lake, "c0@1uM", "wide", k=4, opposite=True)
    assert by_function.neighbours.equals(opposite)


def test_labels_that_the_list_is_rich_in(lake):
    searcher = Searcher(lake, "wide")
    answer = searcher.nearest(searcher.query("c0@1uM"), 5, Filters(not_same_compound=True))
    # Four treatments of c1 and c2 are the nearest: all annotated A, out of these four and the four of c3 and c4.
    assert answer.neighbours["compound"].to_list()[:4] == ["c1", "c2", "c1", "c2"] or set(
        answer.neighbours["compound"].to_list()[:4]
    ) == {"c1", "c2"}
    row = answer.enrichment.filter(pl.col("label") == "A").row(0, named=True)
    assert (row["kind"], row["in_list"], row["in_allowed"], row["of_allowed"]) == ("moa", 4, 4, 8)


@pytest.mark.parametrize("level", ["treatment", "well"])
def test_many_at_once_and_the_graph_say_what_one_after_the_other_does(lake, level):
    searcher = Searcher(lake, "wide", level=level)
    filters = Filters(not_same_compound=True, not_same_batch=level == "well", where="control_type = 'none'")
    ids = ["treatment"] if level == "treatment" else list(WELL)
    rows = np.flatnonzero((searcher.rows["control_type"] == "none").to_numpy())
    queries = searcher.queries_of(rows)
    alone = [
        searcher.nearest(query, 3, filters).neighbours.with_columns(query=pl.lit(query.name))
        for query in queries
    ]
    expected = pl.concat(alone)
    many = searcher.nearest_many(queries, 3, filters)
    assert many.drop("query").equals(expected.drop("query"))
    assert many["query"].to_list() == expected["query"].to_list()
    graph = searcher.graph(3, filters)
    wanted = expected.with_columns(neighbour=pl.concat_str(ids, separator="/")).sort("query", "rank")
    assert graph.select(pl.concat_str(ids, separator="/")).to_series().to_list() == wanted["query"].to_list()
    neighbour = [f"neighbour_{name}" for name in ids]
    found = graph.select(pl.concat_str(neighbour, separator="/")).to_series().to_list()
    assert found == wanted["neighbour"].to_list()
    assert graph["similarity"].to_list() == wanted["similarity"].to_list()
    assert graph["rank"].to_list() == wanted["rank"].to_list()


@pytest.mark.parametrize(
    "filters",
    [Filters(), Filters(not_same_compound=True), Filters(not_same_plate=True, where="control_type = 'none'"),
     Filters(not_same_position=True, not_same_batch=True)],
)  # fmt: skip
def test_all_pairs_above_a_threshold_each_once(lake, wells, filters):
    searcher = Searcher(lake, "wide", level="well")
    found = searcher.pairs(0.8, filters)
    rows = wells.to_dicts()
    vectors = unit(wells["embedding"].to_list())
    expected = set()
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            a, b = rows[i], rows[j]
            if (
                vectors[i] @ vectors[j] < 0.8
                or (filters.not_same_compound and a["compound"] == b["compound"])
                or (filters.not_same_plate and a["plate"] == b["plate"])
                or (filters.not_same_batch and a["batch"] == b["batch"])
                or (filters.not_same_position and a["well"] == b["well"])
                or (filters.where and "negative" in (a["control_type"], b["control_type"]))
            ):
                continue
            expected.add((a["plate"], a["well"], b["plate"], b["well"]))
    assert len(expected) > 20
    assert set(found.select("plate", "well", "neighbour_plate", "neighbour_well").rows()) == expected
    assert len(found) == len(expected)
    assert found["similarity"].is_sorted(descending=True)


def test_novelty_is_the_distance_to_annotated_ones_of_other_compounds(lake):
    searcher = Searcher(lake, "wide")
    found = searcher.novelty("moa")
    treatments = lake.frame("FROM wide.treatments ORDER BY treatment")
    vectors = dict(zip(treatments["treatment"], unit(treatments["embedding"].to_list()), strict=True))
    compound = dict(zip(treatments["treatment"], treatments["compound"], strict=True))
    annotated = [name for name in vectors if compound[name] in {"c0", "c1", "c2", "c3", "c4"}]

    def nearest_to(name):
        return max(
            (vectors[name] @ vectors[one], one) for one in annotated if compound[one] != compound[name]
        )

    null = [nearest_to(name)[0] for name in annotated]
    asked = sorted((nearest_to(name), name) for name in vectors if name not in annotated and name != "DMSO")
    assert found["treatment"].to_list() == [name for _, name in asked]
    assert found["neighbour_treatment"].to_list() == [near for (_, near), _ in asked]
    p_values = [(1 + sum(one <= near + 1e-9 for one in null)) / (1 + len(null)) for (near, _), _ in asked]
    np.testing.assert_allclose(found["p_value"], p_values)
    assert found["neighbour_moa"].to_list()[0] in (["A"], ["B"])
    with pytest.raises(SearchError, match="fewer than two compounds have a label of kind 'pathway'"):
        searcher.novelty("pathway")
    with pytest.raises(UnknownNameError, match=r"unknown kind of label 'mao'\. Did you mean 'moa'"):
        searcher.novelty("mao")


def test_wrong_queries_are_one_clear_line(lake):
    searcher = Searcher(lake, "wide")
    wells = Searcher(lake, "wide", level="well")
    with pytest.raises(UnknownNameError, match=r"unknown treatment 'c1@2uM'\. Did you mean 'c1@3uM'"):
        searcher.query("c1@2uM")
    with pytest.raises(
        UnknownNameError, match=r"unknown well \(source/batch/plate/well\) or treatment 'c1@2uM'"
    ):
        wells.query("c1@2uM")
    with pytest.raises(SearchError, match="well 'p1': name it as source/batch/plate/well, or as plate/well"):
        searcher.well("p1")
    with pytest.raises(UnknownNameError, match=r"unknown well with a profile 'p9/A01'\. Known: s/b0/p0/A01"):
        searcher.well("p9/A01")
    with pytest.raises(SearchError, match="no well of feature set 'wide' meets \"plate = 'p9'\""):
        searcher.wells("plate = 'p9'")
    with pytest.raises(ProfileError, match="no SQL predicate"):
        searcher.wells("plate = ")
    with pytest.raises(
        SearchError, match=r"vector has shape \(2,\); feature set 'wide' .* vectors of 6 elements"
    ):
        searcher.vector([1.0, 2.0])
    with pytest.raises(SearchError, match="query 'vector' is all zeros"):
        searcher.vector(np.zeros(DIM))
    with pytest.raises(SearchError, match="query 'x' holds nan"):
        searcher.vector([1, np.nan, 0, 0, 0, 0], "x")
    for name in ("compound", "batch", "plate", "position"):
        with pytest.raises(
            SearchError, match=f"query 'vector' has no {name} .*: leave --not-same-{name} out"
        ):
            searcher.nearest(searcher.vector(np.ones(DIM)), 3, Filters(**{f"not_same_{name}": True}))
    for ask in (searcher.graph, lambda k: searcher.nearest(searcher.query("c1@1uM"), k)):
        with pytest.raises(SearchError, match="k is 0: ask for at least one neighbour"):
            ask(0)
    with pytest.raises(SearchError, match=r"k is 2\.5: ask for"):
        searcher.nearest(searcher.query("c1@1uM"), 2.5)
    assert searcher.nearest(searcher.query("c1@1uM"), 10**13).neighbours.height == 18
    with pytest.raises(SearchError, match="vector is no list of numbers"):
        searcher.vector(["a"] * DIM)
    assert searcher.nearest(searcher.vector([1e300] * DIM), 1).neighbours.height == 1
    with pytest.raises(SearchError, match="threshold 90: give a cosine, from -1 to 1"):
        searcher.pairs(90)
    with pytest.raises(UnknownNameError, match=r"unknown kind of label 'mao'"):
        searcher.nearest(searcher.query("c1@1uM"), 3, labels=["mao"])
    with pytest.raises(SearchError, match="no query was given"):
        searcher.nearest_many([])


def test_all_levels_can_be_searched_with_an_index_and_without(lake):
    for level, query in {
        "compound": "c1", "consensus": "c1@1uM", "batch": "c1@1uM/s/b0", "source": "c1@1uM/s",
    }.items():  # fmt: skip
        searcher = Searcher(lake, "wide", level=level)
        without = searcher.nearest(searcher.query(query), 5, Filters(not_same_compound=True))
        assert build(lake, "wide", level=level).outcome == "built"
        searcher = Searcher(lake, "wide", level=level)
        found = searcher.nearest(searcher.query(query), 5, Filters(not_same_compound=True))
        assert found.notes == ()
        assert found.neighbours.equals(without.neighbours)
        assert found.neighbours["compound"].to_list()[0] in ("c0", "c2")
    # A treatment at a level that divides it is made of all of its wells, and none of its rows comes back.
    searcher = Searcher(lake, "wide", level="batch")
    answer = searcher.nearest(searcher.query("DMSO"), 50)
    assert answer.allowed == searcher.rows.filter(pl.col("treatment") != "DMSO").height
    assert "DMSO" not in answer.neighbours["treatment"]


def test_cells_by_a_cell_by_a_treatment_and_by_a_well(tmp_path):
    from test_export import many_cells

    with new_lake(tmp_path / "lake") as lake:
        many_cells(lake)
        ids = ["source", "batch", "plate", "well", "field", "cell"]
        cells = lake.frame("SELECT * FROM loose.cells ORDER BY ALL")
        layouts_of = lake.frame("FROM main.wells").select(*ids[:4], "treatment")
        cells = cells.join(layouts_of, on=ids[:4], how="left", maintain_order="left")
        for made in range(2):
            searcher = Searcher(lake, "loose", level="cell")
            first = cells.row(0, named=True)
            query = searcher.query("/".join(first[name] for name in ids))
            is_other = ~pl.all_horizontal(pl.col(name) == first[name] for name in ids)
            check(
                searcher.nearest(query, 9).neighbours,
                ranked(cells, first["embedding"], is_other, ids)[:9],
                ids,
            )
            well = "/".join(first[name] for name in ids[:4])
            query = searcher.well(well)
            vector = lake.frame("FROM loose.well_profiles").filter(
                pl.all_horizontal(pl.col(name) == first[name] for name in ids[:4])
            )["embedding"][0]
            outside = ~pl.all_horizontal(pl.col(name) == first[name] for name in ids[:4])
            found = searcher.nearest(query, 5, Filters(not_same_position=True)).neighbours
            outside &= pl.col("well") != first["well"]
            check(found, ranked(cells, vector, outside, ids)[:5], ids)
            if not made:
                assert build(lake, "loose", level="cell").vectors == len(cells)
