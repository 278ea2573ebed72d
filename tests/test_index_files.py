"""Indexes as files: brought up to date plate by plate, whole or the former one, damaged ones named."""

import json
import shutil

import numpy as np
import pytest
from builders import commit, new_lake, random_plate, wide
from polars.testing import assert_frame_equal

from warehouse.correct import correct
from warehouse.errors import SearchError, UnknownNameError
from warehouse.lake import INDEX_FOLDER
from warehouse.nearest import Filters, Searcher, build, indexes, state
from warehouse.search import store

DIM = 8
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
