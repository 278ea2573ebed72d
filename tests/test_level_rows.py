"""A level read in parts, against `profiles.read`; marks of its plates; profiles of controls, against plain loops."""

import hashlib
import itertools

import numpy as np
import polars as pl
import pytest
from builders import TINY, commit, layout, new_lake, plate, random_plate, small_lake, wide
from test_recompute import feature_set as of_level
from test_recompute import put

from warehouse import feature_sets, layouts, profiles
from warehouse.correct import correct
from warehouse.errors import SearchError, UnknownNameError
from warehouse.lake import Lake
from warehouse.nearest.controls import control_profiles, control_rows
from warehouse.nearest.level_rows import batches, marks, ranges
from warehouse.profiles import IDS
from warehouse.runs import Run
from warehouse.upkeep.rollback import rollback

LABELS = {"moa", "target", "pathway", "gene_family"}
LAYOUT = ["treatment", "compound", "concentration", "unit", "control_type"]
PLATES = [("s1", "b1", "p1"), ("s1", "b1", "p2"), ("s1", "b2", "p3"), ("s2", "b1", "p4")]
DIM = 6


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """Four plates of 40 wells, so many that their rows are in files of their own; corrected, too."""
    with new_lake(tmp_path_factory.mktemp("rows") / "lake") as made:
        for seed, key in enumerate(PLATES):
            commit(made, random_plate(key, seed, dim=DIM, controls=16, treatments=24), wide(DIM))
        correct(made, "wide", "standardize")
        yield made


@pytest.fixture
def empty(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        yield made


def of(lake, name="wide", recipe="none"):
    target = feature_sets.find(lake, name)
    return target, profiles.find_recipe(lake, target, recipe)


def gathered(lake, level, name="wide", recipe="none", **more):
    """All parts, put together and ordered by the ids: metadata, vectors, how many parts there were."""
    frames, matrices = zip(*batches(lake, *of(lake, name, recipe), level, **more), strict=True)
    assert all(matrix.dtype == np.float32 for matrix in matrices)
    rows = pl.concat(frames).with_row_index("at").sort(IDS[level])
    return rows.drop("at"), np.concatenate(matrices)[rows["at"].to_numpy()], len(frames)


# --- rows


@pytest.mark.parametrize("recipe", ["none", "standardize"])
@pytest.mark.parametrize("level", ["well", "treatment", "compound", "batch", "source", "consensus"])
def test_a_level_in_parts_is_the_level(lake, level, recipe):
    expected = profiles.read(lake, "wide", recipe=recipe, level=level)
    rows, matrix, _ = gathered(lake, level, recipe=recipe, bytes_at_once=10 * 4 * DIM)
    # Sums of one group are taken in another order by another thread.
    np.testing.assert_allclose(matrix, expected.matrix, rtol=1e-6, atol=1e-6)
    kept = [name for name in expected.rows.columns if name not in LABELS]
    assert rows.select(kept).equals(expected.rows.select(kept))
    assert set(rows.columns) - set(kept) == (set() if level == "well" else {"replicate_cosine"})


def test_parts_hold_as_many_bytes_as_were_asked_for(lake):
    assert gathered(lake, "well")[2] == 2  # one a source
    frames = [len(rows) for rows, _ in batches(lake, *of(lake), "well", bytes_at_once=4 * DIM)]
    assert max(frames) < 160 == sum(frames)


@pytest.mark.parametrize("level", ["cell", "field"])
def test_cells_and_fields_have_the_layout_of_their_well(empty, level):
    """Neither element that they lack is refused here: the first feature of A02 is let go for this."""
    target = of_level(level)
    put(empty, target)
    table = f"of_{level}.{level}s"
    empty.transaction(
        lambda c: c.execute(f"UPDATE {table} SET embedding = [coalesce(x, 0.5) FOR x IN embedding]::FLOAT[]")
    )
    expected = profiles.read(empty, target.name, level=level)
    layout_of = empty.frame("SELECT source, batch, plate, well, * FROM main.wells").select(
        "source", "batch", "plate", "well", *LAYOUT
    )
    joined = expected.rows.join(layout_of, on=IDS["well"], how="left").sort(IDS[level])
    rows, matrix, _ = gathered(empty, level, target.name)
    np.testing.assert_array_equal(matrix, expected.matrix)
    assert rows.columns[: len(IDS[level]) + 5] == [*IDS[level], *LAYOUT]
    assert rows.select(sorted(rows.columns)).equals(joined.select(sorted(joined.columns)))
    assert rows["treatment"].null_count() > 0  # wells without a layout stay
    assert set(rows["treatment"].drop_nulls()) == {"taxol@1uM", "DMSO"}


def test_positions_and_spread_are_those_of_the_wells(lake):
    rows, _, _ = gathered(lake, "treatment")
    wells = lake.frame("FROM wide.well_profiles WHERE treatment IS NOT NULL")
    expected = wells.group_by("treatment").agg(pl.col("well").unique().sort()).sort("treatment")
    assert rows["positions"].to_list() == expected["well"].to_list()
    assert rows["replicate_cosine"].to_list() == pytest.approx(
        lake.frame("SELECT replicate_cosine FROM wide.treatments ORDER BY treatment").to_series().to_list()
    )


# --- some plates


def test_of_other_plates_no_file_is_read(tmp_path):
    """Their files are not even there."""
    with new_lake(tmp_path / "lake") as made:
        for seed, key in enumerate(PLATES):
            commit(made, random_plate(key, seed, dim=DIM, controls=16, treatments=24), wide(DIM))
        expected, vectors, _ = gathered(made, "well")
        for wanted in ([PLATES[1]], [PLATES[0], PLATES[3]], PLATES):
            chosen = expected.select("source", "batch", "plate").map_rows(
                lambda row, wanted=wanted: row in wanted
            )
            rows, matrix, _ = gathered(made, "well", plates=wanted)
            assert rows.equals(expected.filter(chosen.to_series()))
            np.testing.assert_array_equal(matrix, vectors[chosen.to_series().to_numpy()])
        for table in ("main.wells", "wide.wells"):
            files = made.frame(f"SELECT DISTINCT plate, filename FROM {table}")
            assert files["filename"].n_unique() == 4
            for _, name in files.filter(pl.col("plate") != "p2").rows():
                (tmp_path / "lake" / name).unlink()
        assert len(gathered(made, "well", plates=[PLATES[1]])[0]) == 40
        assert list(batches(made, *of(made), "well", plates=[])) == []


@pytest.mark.parametrize("most", [2, 5, 256])
def test_ranges_hold_the_wanted_plates_and_no_other(monkeypatch, most):
    monkeypatch.setattr("warehouse.nearest.level_rows._PLATES_AT_ONCE", most)
    rng = np.random.default_rng(5)
    known = sorted({(f"s{a}", f"b{b}", f"p{c}") for a, b, c in rng.integers(0, (3, 5, 12), (90, 3))})
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        wanted = {key for key in known if rng.random() < share}
        wanted |= {key for key in known if key[1] in ("b2", "b3")} if share else set()
        found = []
        for source, first, last, low, high in ranges(known, wanted):
            inside = [
                key for key in known if key[0] == source and first <= key[1] <= last and low <= key[2] <= high
            ]
            assert 0 < len(inside) <= most
            found += inside
        assert sorted(found) == sorted(wanted)
    assert most < 256 or len(list(ranges(known, known))) == 3


# --- what is refused


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with small_lake(tmp_path_factory.mktemp("small") / "lake") as made:
        yield made


def test_a_missing_element_is_refused(small):
    for level, name in (("well", "s1/b1/p2/A03"), ("source", "taxol@0.3uM/s2")):
        with pytest.raises(
            SearchError, match=rf"{level} '{name}' has no value for feature 'f2': correct the"
        ):
            list(batches(small, *of(small, "tiny"), level, bytes_at_once=1))
    assert len(gathered(small, "treatment", "tiny")[0]) == 4
    # The gap of one plate is none of another's.
    assert len(gathered(small, "well", "tiny", plates=[("s1", "b1", "p1")])[0]) == 6


def test_infinite_elements_are_not_missing(empty):
    commit(empty, plate(("s", "b", "p"), {"A01": (1.0, 2.0, 3.0), "A02": (4.0, 5.0, 6.0)}))
    empty.transaction(
        lambda c: c.execute(
            "UPDATE tiny.wells SET embedding = [3e38, 3e38, 3e38]::FLOAT[] WHERE well = 'A01'"
        )
    )
    assert len(gathered(empty, "well", "tiny")[0]) == 2


def test_an_empty_level_is_refused(empty):
    commit(empty, plate(("s", "b", "p"), {"A01": (1.0, 2.0, 3.0)}))
    with pytest.raises(SearchError, match="'tiny' has no treatment to search: bring a layout with --layout"):
        list(batches(empty, *of(empty, "tiny"), "treatment"))
    with pytest.raises(SearchError, match="'tiny' has no cell to search: it begins with wells"):
        list(batches(empty, *of(empty, "tiny"), "cell"))


def test_what_a_level_does_not_have_is_refused(lake):
    with pytest.raises(SearchError, match="level 'treatment' cannot be read plate by plate"):
        list(batches(lake, *of(lake), "treatment", plates=PLATES[:1]))
    with pytest.raises(
        SearchError, match="recipe 'standardize' corrects wells; cells are there as they came in"
    ):
        list(batches(lake, *of(lake, recipe="standardize"), "cell"))
    with pytest.raises(UnknownNameError, match="p9"):
        list(batches(lake, *of(lake), "well", plates=[("s1", "b1", "p9")]))
    with pytest.raises(UnknownNameError, match="wells"):
        list(batches(lake, *of(lake), "wells"))


def test_columns_that_an_older_snapshot_lacks_are_null(empty):
    commit(empty, random_plate(PLATES[0], 0, dim=DIM), wide(DIM))
    empty.transaction(
        lambda c: c.execute(
            "CREATE OR REPLACE VIEW wide.treatments AS SELECT treatment, list(well) AS wells, "
            f"[{', '.join(f'avg(embedding[{i + 1}])' for i in range(DIM))}] AS embedding "
            "FROM wide.well_profiles GROUP BY treatment"
        )
    )
    before = empty.snapshot()
    empty.transaction(lambda _: feature_sets.renew_views(empty))
    with Lake.open(empty.path, as_of=before) as old:
        rows, matrix, _ = gathered(old, "treatment")
    assert rows.columns == ["treatment", "wells", "positions", "replicate_cosine"]
    assert rows.schema["positions"] == pl.List(pl.String)
    assert rows["positions"].null_count() == rows["replicate_cosine"].null_count() == len(rows) == 7
    now, same, _ = gathered(empty, "treatment")
    assert now["positions"].null_count() == 0
    np.testing.assert_allclose(matrix, same, rtol=1e-6)


# --- marks


def batch(number, seed, content=None):
    return random_plate(("s", "b", f"p{number}"), seed, content=content, controls=8, treatments=16)


def seen(lake, recipe):
    """What there is to see of a feature set under a recipe: fingerprint, marks, and its wells plate by plate."""
    target, fitted = of(lake, "wide", recipe)
    table = "wells" if recipe == "none" else f"wells__{fitted.name}"
    wells = lake.frame(
        f"SELECT * EXCLUDE (field_count) FROM wide.{table} ORDER BY source, batch, plate, well"
    )
    parts = {key[2]: part.rows() for key, part in wells.partition_by(IDS["well"][:3], as_dict=True).items()}
    found = marks(lake, target, fitted)
    return profiles.fingerprint(lake, "wide", fitted.name), found, parts


def changed(before, after):
    """Which plates have another mark; and checks that those whose wells differ are among them."""
    names = {key[2] for key in before[1].plates.keys() ^ after[1].plates.keys()}
    both = before[1].plates.keys() & after[1].plates.keys()
    names |= {key[2] for key in both if before[1].plates[key] != after[1].plates[key]}
    if before[1].whole == after[1].whole:
        assert {
            name for name in before[2].keys() | after[2].keys() if before[2].get(name) != after[2].get(name)
        } <= names
    return names


def test_marks_tell_what_fingerprints_tell_and_of_which_plate(empty):
    for number in range(3):
        commit(empty, batch(number, number), wide(4))
    correct(empty, "wide", "standardize")
    renamed = pl.when(pl.col("compound") == "c0").then(pl.lit("c99")).otherwise("compound").alias("compound")
    other_layout = batch(1, 1).layout.with_columns(renamed)

    def corrected(**more):
        correct(empty, "wide", "standardize", **more)

    # What happens; plates that are others then, without the recipe and with it; whether all are, likewise.
    events = [
        (lambda: commit(empty, batch(3, 3), wide(4)), {"p3"}, {"p3"}, False, False),
        (corrected, set(), {"p3"}, False, False),
        (lambda: commit(empty, batch(0, 0), wide(4)), set(), set(), False, False),
        (lambda: commit(empty, batch(0, 10), wide(4)), {"p0"}, {"p0"}, False, False),
        (lambda: layouts.put_layout(empty, Run("test", {}), other_layout), {"p1"}, {"p1"}, False, False),
        (corrected, set(), {"p0", "p1"}, False, False),
        (lambda: feature_sets.set_operators(empty, "wide", consensus="modz"), set(), set(), True, True),
        (lambda: corrected(refit=True), set(), set(), False, True),
        (lambda: commit(empty, batch(7, 7), wide(4, "another")), set(), set(), False, False),
    ]
    recipes = ("none", "standardize")
    states = [[seen(empty, recipe)] for recipe in recipes]
    for event, *expected in events:
        event()
        for i, recipe in enumerate(recipes):
            states[i].append(seen(empty, recipe))
            before, after = states[i][-2:]
            assert changed(before, after) == expected[i]
            assert (before[1].whole != after[1].whole) == expected[2 + i]
    for of_recipe in states:
        for one, other in itertools.combinations(of_recipe, 2):
            assert (one[0] == other[0]) == (one[1] == other[1])
        assert set(of_recipe[-1][1].plates) == {("s", "b", f"p{number}") for number in range(4)}


def test_marks_see_a_batch_that_came_back_and_is_fitted_anew(empty):
    """Content, layout and time of the fit are as before: a fingerprint tells nothing of it."""
    recipe = "standardize(scope=batch)"
    commit(empty, random_plate(("s", "other", "q"), 50), wide(4))
    for number in range(2):
        commit(empty, batch(number, number), wide(4))
        correct(empty, "wide", recipe)  # the fit of the batch is that of its first plate
    before = seen(empty, recipe)
    for seed in (100, 0):
        for number in range(2):
            commit(empty, batch(number, seed + number), wide(4))
    correct(empty, "wide", recipe)
    after = seen(empty, recipe)
    assert before[0] == after[0]
    assert {name for name in before[2] if before[2][name] != after[2][name]} == {"p0", "p1"}
    assert changed(before, after) == {"p0", "p1"}
    assert before[1].whole == after[1].whole


def test_marks_see_plates_that_came_back_by_themselves_or_by_a_rollback(empty):
    """Harmony gives a plate that comes later something else than it gave the same plate when it was fitted."""
    recipe = "harmony(clusters=2)"

    def put_in(seed):
        commit(empty, random_plate(("s", "b1", "p1"), seed, controls=8), wide(4))

    commit(empty, random_plate(("s", "b0", "p0"), 0, controls=8), wide(4))
    put_in(1)
    correct(empty, "wide", recipe)
    snapshot = str(empty.snapshot())
    first = seen(empty, recipe)
    put_in(101)
    put_in(1)
    correct(empty, "wide", recipe)
    came_back = seen(empty, recipe)
    rollback(empty, snapshot)
    put_back = seen(empty, recipe)
    put_in(101)
    rollback(empty, snapshot, plate="p1")
    correct(empty, "wide", recipe)
    put_back_alone = seen(empty, recipe)
    assert first[0] == came_back[0] == put_back[0] == put_back_alone[0]
    assert first[2] == put_back[2]
    assert came_back[2] == put_back_alone[2]
    for one, other in [(first, came_back), (came_back, put_back), (put_back, put_back_alone)]:
        assert one[2]["p1"] != other[2]["p1"]
        assert changed(one, other) == {"p1"}
    assert changed(first, put_back_alone) == {"p1"}


# --- controls


def keyed(lake, recipe="none", where="control_type = 'negative'"):
    """Control wells in the order of the MD5 of their keys, counted as DuckDB does: the last eight bytes, little end."""
    rows = profiles.read(lake, "wide", recipe=recipe, level="well", where=where)
    numbers = [int.from_bytes(hashlib.md5(name.encode()).digest()[8:], "little") for name in rows.names()]
    return rows.matrix[np.argsort(numbers)]


def test_control_wells_are_drawn_by_the_hash_of_their_keys(lake):
    expected = keyed(lake)
    assert len(expected) == 64
    np.testing.assert_array_equal(control_profiles(lake, *of(lake), 1), expected)
    np.testing.assert_array_equal(control_profiles(lake, *of(lake), 1, limit=7), expected[:7])
    of_recipe = control_profiles(lake, *of(lake, recipe="standardize"), 1, limit=7)
    np.testing.assert_array_equal(of_recipe, keyed(lake, "standardize")[:7])


def test_profiles_of_controls_are_of_as_many_wells_as_a_treated_one(lake):
    wells = keyed(lake).astype(np.float64)
    for operator, function in (("median", np.median), ("mean", np.mean)):
        feature_sets.set_operators(lake, "wide", treatment=operator)
        for size, limit in ((5, 1000), (5, 3), (1, 10)):
            groups = [wells[i : i + size] for i in range(0, 64 - size + 1, size)][:limit]
            expected = np.array([function(group, axis=0) for group in groups])
            found = control_profiles(lake, *of(lake), size, limit)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_fewer_than_two_profiles_of_controls_are_none(lake, small):
    assert control_profiles(lake, *of(lake), 32).shape == (2, DIM)
    assert control_profiles(lake, *of(lake), 33).shape == (0, DIM)
    assert control_profiles(lake, *of(lake), 65).shape == (0, DIM)
    assert control_profiles(small, *of(small, "tiny"), 1).shape == (5, 3)


def test_of_very_large_groups_fewer_are_made(lake, monkeypatch):
    monkeypatch.setattr("warehouse.nearest.controls.BYTES", 4 * DIM * 30)
    assert control_profiles(lake, *of(lake), 10).shape == (3, DIM)
    assert control_profiles(lake, *of(lake), 1).shape == (30, DIM)


def test_controls_without_a_cosine_are_passed_over(empty):
    rng = np.random.default_rng(8)
    for number in range(3):
        wells = {f"A{i + 1:02d}": tuple(rng.normal(0, 1, 3)) for i in range(24)}
        wells |= {f"B{i + 1:02d}": (0.0, 0.0, 0.0) for i in range(24)}
        wells |= {f"C{i + 1:02d}": (1.0, None, 2.0) for i in range(24)}
        key = ("s", "b", f"p{number}")
        commit(
            empty, plate(key, wells, "h", layout(key, [(w, "DMSO", None, "negative") for w in wells])), TINY
        )
    target = of(empty, "tiny")
    rows = profiles.read(empty, "tiny", level="well")
    numbers = [int.from_bytes(hashlib.md5(name.encode()).digest()[8:], "little") for name in rows.names()]
    order = [i for i in np.argsort(numbers) if rows.rows["well"][int(i)].startswith("A")]
    for limit in (1000, 72, 40, 2):
        found = control_profiles(empty, *target, 1, limit)
        np.testing.assert_array_equal(found, rows.matrix[order][:limit])


def test_rows_of_controls_are_drawn_by_their_own_keys(empty):
    target = of_level("cell")
    put(empty, target)
    rows = pl.concat([part for part, _ in batches(empty, *of(empty, target.name), "cell")])
    names = rows.select(pl.concat_str(profiles.IDS["cell"], separator="/")).to_series()
    numbers = [int.from_bytes(hashlib.md5(name.encode()).digest()[8:], "little") for name in names]
    controls = [i for i in np.argsort(numbers) if rows["well"][int(i)] == "A02"]
    assert len(controls) > 3
    alive = np.ones(len(rows), dtype=bool)
    assert control_rows(empty, rows, "cell", alive).tolist() == controls
    assert control_rows(empty, rows, "cell", alive, limit=3).tolist() == controls[:3]
    alive[controls[0]] = False
    assert control_rows(empty, rows, "cell", alive).tolist() == controls[1:]
    alive[controls[1:-1]] = False
    assert control_rows(empty, rows, "cell", alive).tolist() == []
