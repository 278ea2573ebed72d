"""Indexes as files: brought up to date plate by plate, whole or the former one, damaged ones named."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from builders import commit, new_lake, random_plate, wide
from polars.testing import assert_frame_equal

from warehouse.correct import correct
from warehouse.errors import SearchError, UnknownNameError
from warehouse.lake import INDEX_FOLDER, Lake
from warehouse.nearest import Filters, Searcher, build, indexes, state
from warehouse.search import store

DIM = 8
WELL = ("source", "batch", "plate", "well")
WELLS = 10  # of each plate: 4 controls, 6 treatments


def key(number):
    return ("s", f"b{number % 2}", f"p{number}")


def put(lake, number, **settings):
    commit(lake, random_plate(key(number), seed=number, dim=DIM, **settings), wide(DIM))


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        for number in range(6):
            put(made, number)
        yield made


def place(lake, level="well", recipe="none"):
    return lake.folder / INDEX_FOLDER / "wide" / f"{level}__{recipe}"


def answers(lake, **settings):
    """Neighbours of some wells: once by the index, once by the lake itself."""
    searcher = Searcher(lake, "wide", level="well", **settings)
    queries = [searcher.query("s/b0/p0/A01"), searcher.query("s/b1/p3/B03")]
    return searcher.nearest_many(queries, 12, Filters(not_same_plate=True)), searcher.note


def check_like_the_lake(lake):
    found, note = answers(lake)
    assert note is None
    hidden = lake.folder / "hidden"
    (lake.folder / INDEX_FOLDER).rename(hidden)
    expected, told = answers(lake)
    assert "there is no index yet" in told
    (hidden).rename(lake.folder / INDEX_FOLDER)
    assert_frame_equal(found, expected, check_exact=True)


def test_only_new_and_changed_plates_are_read_and_added(lake, monkeypatch):
    report = build(lake, "wide", level="well")
    assert (report.outcome, report.vectors, report.added, report.recall) == ("built", 60, 60, 1.0)
    assert build(lake, "wide", level="well").outcome == "unchanged"
    from warehouse.nearest import level_rows

    read, batches = [], level_rows.batches

    def seen(*given, plates=None, **settings):
        read.append(plates)
        return batches(*given, plates=plates, **settings)

    monkeypatch.setattr(level_rows, "batches", seen)
    put(lake, 6)
    assert state(lake, "wide", "none", "well") == "stale"
    report = build(lake, "wide", level="well")
    assert (report.outcome, report.vectors, report.added) == ("updated", 70, 10)
    assert read == [[key(6)]]
    assert state(lake, "wide", "none", "well") == "fresh"
    check_like_the_lake(lake)
    read.clear()
    # Another content of a plate: its former rows are gone, those of others are not read.
    put(lake, 1, shift=2.0, content="other")
    report = build(lake, "wide", level="well")
    assert (report.outcome, report.vectors, report.added) == ("updated", 70, 10)
    assert read == [[key(1)]]
    check_like_the_lake(lake)


def test_what_changes_all_vectors_builds_anew(lake):
    recipe = "center(scope=plate)"
    slug = correct(lake, "wide", recipe).recipe
    assert build(lake, "wide", recipe=recipe, level="well").outcome == "built"
    put(lake, 6)
    correct(lake, "wide", recipe)
    assert build(lake, "wide", recipe=recipe, level="well").outcome == "updated"
    correct(lake, "wide", recipe, refit=True)
    assert state(lake, "wide", slug, "well") == "stale"
    assert build(lake, "wide", recipe=recipe, level="well").outcome == "built"
    assert build(lake, "wide", recipe=recipe, level="well", rebuild=True).outcome == "built"
    # Levels above wells are read whole.
    assert build(lake, "wide").outcome == "built"
    put(lake, 7)
    assert build(lake, "wide").outcome == "built"


def test_when_much_is_gone_the_index_is_built_anew(lake):
    build(lake, "wide", level="well")
    for number in (1, 2):
        put(lake, number, shift=1.0, content="other")
    assert build(lake, "wide", level="well").outcome == "built"
    assert store.load(place(lake)).card["gone_rows"] == 0


def test_a_structure_stays_over_what_is_added_and_its_recall_is_told(lake):
    report = build(lake, "wide", level="well", kind="hnsw", recall=0.9)
    assert (report.kind, report.outcome) == ("hnsw", "built")
    assert 0.9 <= report.recall <= 1
    put(lake, 6)
    report = build(lake, "wide", level="well")  # the kind is that of before
    assert (report.kind, report.outcome, report.vectors) == ("hnsw", "updated", 70)
    held = store.load(place(lake))
    assert (held.structure.settings.covered, len(held.vectors)) == (60, 70)
    searcher = Searcher(lake, "wide", level="well")
    answer = searcher.nearest(searcher.query("s/b0/p6/A01"), 5)
    assert answer.notes == (
        f"candidates came from an index of kind hnsw, which finds {report.recall:.1%} of the nearest 20",
    )
    assert build(lake, "wide", level="well", kind="flat").outcome == "built"
    with pytest.raises(UnknownNameError, match=r"unknown kind of index 'hsnw'\. Did you mean 'hnsw'"):
        build(lake, "wide", kind="hsnw")
    with pytest.raises(SearchError, match=r"recall 2: give a share"):
        build(lake, "wide", kind="ivf", recall=2)


@pytest.mark.parametrize("what", ["build", "update"])
@pytest.mark.parametrize("moment", ["vectors", "rows", "card"])
def test_a_build_that_is_cut_short_leaves_the_former_index(lake, monkeypatch, what, moment):
    build(lake, "wide", level="well")
    before = {path.name for path in place(lake).parent.iterdir()}
    card = store.card(place(lake))
    expected, _ = answers(lake)
    put(lake, 6)

    def full_disk(*_given, **_settings):
        raise OSError(28, "No space left on device")

    broken = {"vectors": "unit_rows", "rows": "_durable", "card": "_replace"}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(store, broken, full_disk)
        with pytest.raises(
            SearchError, match=r"cannot be written \(No space left on device\); the former one stays"
        ):
            build(lake, "wide", level="well", rebuild=what == "build")
    assert store.card(place(lake)) == card
    assert {path.name for path in place(lake).parent.iterdir()} == before
    held = store.load(place(lake))
    assert len(held.vectors) == len(held.rows) == 60
    with monkeypatch.context() as patch:  # searched as if nothing had come
        patch.setattr("warehouse.nearest.level_rows.marks", lambda *_: indexes._marks(card))
        assert answers(lake)[0].equals(expected)
    assert build(lake, "wide", level="well").outcome == "updated"
    check_like_the_lake(lake)


def test_files_that_a_kill_left_are_taken_away_and_old_readers_go_on(lake):
    build(lake, "wide", level="well")
    held = store.load(place(lake))
    left = place(lake).parent / "well__none.0badc0de"
    left.mkdir()
    (left / "vectors.f32").write_bytes(b"half")
    (place(lake).parent / "well__none.index").write_bytes(b"of the format before")
    before = np.array(held.vectors)
    with (place(lake).parent / held.card["folder"] / "vectors.f32").open("ab") as file:
        file.write(b"an addition that did not end")
    put(lake, 6)
    build(lake, "wide", level="well")
    check_like_the_lake(lake)
    build(lake, "wide", level="well", rebuild=True)
    names = sorted(path.name for path in place(lake).parent.iterdir())
    folder = store.card(place(lake))["folder"]
    assert names == sorted([".well__none.lock", "well__none.json", folder])
    np.testing.assert_array_equal(held.vectors, before)


def test_a_reader_that_meets_a_new_index_takes_that(lake):
    build(lake, "wide", level="well")
    card = store.card(place(lake))
    build(lake, "wide", level="well", rebuild=True)
    assert store.load(place(lake), card).card["folder"] != card["folder"]


def test_an_index_that_another_process_renewed_is_not_added_to(lake):
    build(lake, "wide", level="well")
    card = store.card(place(lake))
    build(lake, "wide", level="well", rebuild=True)
    with (
        pytest.raises(SearchError, match="was renewed by another process meanwhile: try again"),
        store.writing(place(lake), onto=card),
    ):
        pytest.fail("it was written to")


def damage_vectors(folder, _):
    (folder / "vectors.f32").write_bytes(b"short")


def damage_rows(folder, _):
    (folder / "rows-0.arrow").write_bytes(b"nonsense")


def damage_null(folder, _):
    (folder / "null.npy").unlink()


def damage_card(_, card):
    card.write_text("{")


def damage_names(_, card):
    card.write_text(json.dumps(json.loads(card.read_text()) | {"parts": ["../../catalog.sqlite"]}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_vectors, "vectors.f32 has 5 bytes, not 1920"),
        (damage_rows, "File is too small"),
        (damage_null, "null.npy"),
        (damage_card, "Expecting property name"),
        (damage_names, r"its card names '../../catalog.sqlite', which is no file of it"),
    ],
)
def test_a_damaged_index_is_named_and_can_be_rebuilt(lake, damage, said):
    build(lake, "wide", level="well")
    path = place(lake).with_name("well__none.json")
    damage(path.parent / store.card(place(lake))["folder"], path)
    with pytest.raises(
        SearchError, match=rf"index .*well__none.* cannot be read \(.*({said}).*build it again"
    ):
        Searcher(lake, "wide", level="well")
    assert build(lake, "wide", level="well", rebuild=True).outcome == "built"
    check_like_the_lake(lake)


def test_an_index_that_was_taken_away_is_no_index(lake):
    build(lake, "wide", level="well")
    shutil.rmtree(lake.folder / INDEX_FOLDER)
    assert state(lake, "wide", "none", "well") == "none"
    assert build(lake, "wide", level="well").outcome == "built"


def test_builds_of_several_threads_take_turns(lake):
    def work(number):
        with Lake.open(lake.path, read_only=True) as own:
            return build(own, "wide", level="well", rebuild=number % 2 == 0).outcome

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(work, range(8)))
    assert outcomes.count("built") >= 4
    check_like_the_lake(lake)
    assert len([path for path in place(lake).parent.iterdir() if path.is_dir()]) == 1


def test_vectors_that_are_not_all_there_do_not_count(lake):
    build(lake, "wide", level="well")
    card = store.card(place(lake))

    def cut_short():
        with store.writing(place(lake)) as writer:
            writer.add(store.load(place(lake)).rows[:2], np.eye(2, DIM), WELL)
            writer._file.flush()
            writer._file.truncate(40)
            writer.finish({}, WELL, null=np.empty((0, DIM), np.float32))

    with pytest.raises(
        SearchError, match=r"vectors\.f32 has 40 bytes, not those of 2 vectors: is the disk full"
    ):
        cut_short()
    assert store.card(place(lake)) == card


def test_an_index_that_is_renewed_while_it_is_opened_is_not_taken_for_the_one_looked_at(lake, monkeypatch):
    build(lake, "wide", level="well")
    then = lake.snapshot()
    load = store.load

    def renewed(*given):
        monkeypatch.setattr(store, "load", load)
        put(lake, 1, shift=3.0, content="other")
        build(lake, "wide", level="well", rebuild=True)
        return load(*given)

    with Lake.open(lake.path, as_of=then) as old:
        expected = Searcher(old, "wide", level="well")
        monkeypatch.setattr(store, "load", renewed)
        found = Searcher(old, "wide", level="well")
    assert "the index is of other profiles than those as of" in found.note
    assert found.rows.sort(*WELL).equals(expected.rows.sort(*WELL))
    place_of = {key: row for row, key in enumerate(found.rows.select(WELL).rows())}
    rows = [place_of[key] for key in expected.rows.select(WELL).rows()]
    np.testing.assert_allclose(found.index.vectors(rows), expected.index.vectors(range(60)), atol=1e-7)


def test_a_search_that_is_open_across_a_new_fit_is_refused(lake):
    recipe = "center(scope=plate)"
    correct(lake, "wide", recipe)
    searcher = Searcher(lake, "wide", recipe)
    searcher.well("p1/B01")
    correct(lake, "wide", recipe, refit=True)
    with pytest.raises(SearchError, match="was fitted anew since this search was opened: open it again"):
        searcher.well("p1/B01")


@pytest.mark.parametrize(
    "change",
    [
        {"rows": None}, {"rows": -1}, {"parts": None}, {"marks": {}}, {"marks": {"whole": 1, "plates": [1]}},
        {"structure": {"settings": {}}}, {"dim": True}, {"left_out": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_card_is_one_line_and_the_state_says_so(lake, change):
    build(lake, "wide", level="well")
    path = place(lake).with_name("well__none.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SearchError, match=r"cannot be read .*build it again with"):
        Searcher(lake, "wide", level="well")
    assert state(lake, "wide", "none", "well") in ("damaged", "fresh")
    assert build(lake, "wide", level="well", rebuild=True).outcome == "built"


def test_the_state_of_what_is_not_there_is_an_error(lake):
    with pytest.raises(UnknownNameError, match="unknown level"):
        state(lake, "wide", "none", "wells")
    with pytest.raises(UnknownNameError, match="unknown feature set"):
        state(lake, "wild", "none")
    recipe = "center(scope=plate)"
    correct(lake, "wide", recipe)
    build(lake, "wide", recipe=recipe)
    assert state(lake, "wide", recipe) == "fresh"
