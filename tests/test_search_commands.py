"""The commands of search: what they print is what Python answers; files whole or not at all; faults in one line."""

import json
import sys
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import polars as pl
import pytest
from builders import commit, neighbour_lake, random_plate, wide

import cli
from warehouse.errors import ExportError, SearchError
from warehouse.export import tables
from warehouse.lake import Lake
from warehouse.nearest import Filters, Searcher
from warehouse.nearest.asking import Asked, read_vector
from warehouse.search import faiss_build
from warehouse.upkeep import moments
from warehouse.upkeep.moments import open_at


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A lake with a set of three dimensions, by hand, and one of four, at random, with eight controls a plate."""
    path = tmp_path_factory.mktemp("search") / "lake"
    with neighbour_lake(path) as lake:
        for number in (1, 2):
            commit(lake, random_plate(("s", f"b{number}", f"q{number}"), number, controls=8), wide(4))
    return path


@pytest.fixture(scope="module")
def reader(folder):
    with Lake.open(folder, read_only=True) as lake:
        yield lake


@pytest.fixture(scope="module")
def searcher(reader):
    return Searcher(reader, "tiny")


@pytest.fixture
def call(capsys, monkeypatch, folder, reader):
    """Run a command on the lake, as `main` does: its code, what it prints, what it says.

    The newest state is not opened each time, which takes longer than the search.
    """
    monkeypatch.setenv("WELLHOUSE_LAKE", str(folder))

    def opened(address: str, moment: str | None) -> AbstractContextManager[Lake]:
        assert address == str(folder)
        return nullcontext(reader) if moment is None else open_at(address, moment)

    monkeypatch.setattr(moments, "open_at", opened)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wellhouse", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0), *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.fixture
def document(call):
    """Run a command that answers with one JSON document."""

    def run(*words: object):
        code, out, err = call(*words, "--json")
        assert code == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    return run


# ------------------------------------------------------------------------------------------ nearest


def test_nearest_is_what_python_answers(document, searcher):
    cases = {
        ("--not-same-compound", "-k", "3"): Filters(not_same_compound=True),
        ("--not-same-batch", "--where", "list_contains(moa, 'B')"): Filters(
            not_same_batch=True, where="list_contains(moa, 'B')"
        ),
        ("--not-same-plate", "--not-same-position"): Filters(not_same_plate=True, not_same_position=True),
    }
    for words, filters in cases.items():
        found = document("nearest", "a@1uM", "--feature-set", "tiny", *words)
        answer = searcher.nearest(searcher.query("a@1uM"), 3 if "-k" in words else 20, filters)
        assert (found["query"], found["allowed"]) == ("a@1uM", answer.allowed)
        assert found["neighbours"] == answer.neighbours.to_dicts()
        enrichment = [
            row | {"odds_ratio": row["odds_ratio"] if np.isfinite(row["odds_ratio"] or 0) else None}
            for row in answer.enrichment.to_dicts()
        ]
        assert found["enrichment"] == enrichment
        assert found["notes"] == list(answer.notes)
        assert set(found) == {"query", "allowed", "neighbours", "enrichment", "notes"}


def test_every_kind_of_query(document, tmp_path):
    np.save(tmp_path / "v.npy", np.array([[0.9, 0.1, 0.0]]))
    (tmp_path / "v.json").write_text("[0.9, 0.1, 0]")
    ways = {
        "b@1uM": ["b@1uM", "--where", "true"],  # itself is left out
        "s/b1/p1/A03": ["--well", "s/b1/p1/A03"],
        "1 wells": ["--wells", "treatment = 'b@1uM'"],
        "vector": ["--vector", "[0.9, 0.1, 0]"],
        "v.npy": ["--vector", tmp_path / "v.npy"],
        "v.json": ["--vector", tmp_path / "v.json"],
    }
    found = {name: document("nearest", *words, "--feature-set", "tiny") for name, words in ways.items()}
    assert [answer["query"] for answer in found.values()] == list(ways)
    expected = [(row["treatment"], row["similarity"]) for row in found["b@1uM"]["neighbours"]]
    for name, answer in found.items():
        rows = [(row["treatment"], row["similarity"]) for row in answer["neighbours"]]
        others = [row for row in rows if row[0] != "b@1uM"]
        assert [row[0] for row in others] == [row[0] for row in expected]
        assert [row[1] for row in others] == pytest.approx([row[1] for row in expected], abs=1e-6)
        assert name == "b@1uM" or rows[0] == ("b@1uM", pytest.approx(1, abs=1e-6)) or len(rows) == len(others)


def test_for_people_neighbours_then_labels_that_are_frequent(call):
    code, out, err = call("nearest", "a@1uM", "--feature-set", "tiny", "-k", "3", "--not-same-batch")
    assert code == 0
    neighbours, labels = out.split("enrichment of moa")
    assert [name in neighbours for name in ("similarity", "treatment", "c@1uM", "moa")] == [True] * 4
    # What the name says already, and columns without any value, are left out.
    assert [name in neighbours for name in ("concentration", "replicate_cosine", "target")] == [False] * 3
    assert [name in labels for name in ("in_list", "of_allowed", "q_value", " B ")] == [True] * 4
    assert "note: there is no index yet" in err
    code, out, err = call("nearest", "a@1uM", "--feature-set", "tiny", "--where", "compound = 'f'")
    assert "enrichment" not in out
    assert "note: 20 were asked for, 1 are there to choose from" in err


def test_opposite_puts_the_most_dissimilar_first(document, searcher):
    found = document("nearest", "a@1uM", "--feature-set", "tiny", "--opposite")["neighbours"]
    near = document("nearest", "a@1uM", "--feature-set", "tiny")["neighbours"]
    similarities = [row["similarity"] for row in found]
    assert similarities == sorted(similarities)
    assert {row["treatment"]: row["similarity"] for row in found} == {
        row["treatment"]: row["similarity"] for row in near
    }


def test_as_of_an_older_snapshot(document, folder):
    asked = ("nearest", "c0@1uM", "--feature-set", "wide", "--level", "well")
    now, then = document(*asked), document(*asked, "--as-of", -1)
    assert (now["allowed"], then["allowed"]) == (26, 13)  # its own wells, one a plate, are left out
    assert {row["plate"] for row in then["neighbours"]} == {"q1"}
    assert "there is no index of an older snapshot" in then["notes"][0]


# ------------------------------------------------------------------------------------------ tables


def test_neighbours_pairs_and_novelty_are_what_python_answers(document, searcher):
    graph = document("neighbours", "tiny", "-k", 2, "--not-same-compound")
    assert graph == searcher.graph(2, Filters(not_same_compound=True)).to_dicts()
    pairs = document("pairs", "tiny", "--threshold", 0.95, "--where", "compound <> 'a'")
    assert pairs == searcher.pairs(0.95, Filters(where="compound <> 'a'")).to_dicts()
    assert document("novelty", "tiny") == searcher.novelty("moa").to_dicts()


def test_people_are_shown_the_first_rows(call):
    code, out, err = call("neighbours", "wide", "--level", "well", "-n", 4)
    assert (code, sum("│" in line for line in out.splitlines())) == (0, 4)
    assert "note: 4 of 560 rows; -n shows more, --out writes all" in err  # 28 wells, 20 neighbours each
    code, out, _ = call("pairs", "tiny", "--threshold", 1)
    assert code == 0
    assert "neighbour_treatment" in out


def test_a_table_goes_into_a_file(document, searcher, tmp_path):
    expected, out = searcher.graph(2), tmp_path / "graph.parquet"
    assert document("neighbours", "tiny", "-k", 2, "--out", out) == {"rows": 16, "files": [str(out)]}
    assert pl.read_parquet(out).equals(expected)
    for name in ("graph.csv", "graph.csv.gz"):
        out = tables.write_table(expected, tmp_path / name)
        assert pl.read_csv(out, schema_overrides=expected.schema).equals(expected)


def test_labels_in_a_csv_are_one_text(tmp_path):
    table = pl.DataFrame({"treatment": ["x", "y"], "moa": [["A", "B"], None]})
    assert tables.write_table(table, tmp_path / "t.csv").read_text() == "treatment,moa\nx,A|B\ny,\n"


def test_a_file_is_refused_before_any_work(call, tmp_path, monkeypatch):
    monkeypatch.setattr(Searcher, "__init__", lambda *_: pytest.fail("there was work"))
    (tmp_path / "there.csv").write_text("mine")
    for name, message in (
        ("there.csv", "is there already: give --overwrite"),
        ("absent/x.csv", "there is no folder"),
        ("x.xlsx", "unknown kind of file '.xlsx': end its name in .parquet, .csv.gz, .csv"),
    ):
        code, out, err = call("pairs", "tiny", "--out", tmp_path / name)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert message in err
    assert (tmp_path / "there.csv").read_text() == "mine"


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.csv.gz"])
def test_a_file_that_cannot_be_written_leaves_the_former(tmp_path, monkeypatch, name):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / name).write_text("mine")
    for writer in ("write_parquet", "write_csv"):
        monkeypatch.setattr(pl.DataFrame, writer, full)
    with pytest.raises(ExportError, match="No space left on device; nothing is left of it"):
        tables.write_table(pl.DataFrame({"a": [1]}), tmp_path / name, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


# ------------------------------------------------------------------------------------------ index


def test_index_says_what_it_did(document):
    given = ("index", "wide", "--level", "well")
    (made,) = document(*given)
    assert (made["kind"], made["outcome"], made["vectors"], made["recall"]) == ("flat", "built", 28, 1.0)
    assert [each["outcome"] for each in document(*given)] == ["unchanged"]
    assert [each["outcome"] for each in document(*given, "--rebuild")] == ["built"]
    (made,) = document(*given, "--kind", "hnsw", "--recall", 0.5)
    assert (made["kind"], made["outcome"]) == ("hnsw", "built")
    assert made["recall"] >= 0.5
    answer = document("nearest", "c0@1uM", "--feature-set", "wide", "--level", "well", "-k", 3)
    assert any("kind hnsw" in note for note in answer["notes"])
    assert not any("no index" in note for note in answer["notes"])


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            "nothing to search with was given: give exactly one of TREATMENT, --well, --wells, --vector, --image",
        ),
        ({"name": "a@1uM", "well": "p1/A01"}, "TREATMENT and --well were given: give exactly one of"),
        ({"wells": "true", "vector": "[1]", "images": ["x"]}, "--wells and --vector and --image were given"),
        ({"name": "a@1uM", "plate": "s/b1/p1"}, "--plate tells of a picture: give --image too"),
        ({"name": "a@1uM", "settings": {"weights": "x"}}, "--set tells of a picture: give --image too"),
    ],
)
def test_exactly_one_kind_of_query(given, message):
    with pytest.raises(SearchError, match=f"^{message}"):
        Asked(**given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("absent.npy", "--vector absent.npy: cannot be read: No such file or directory"),
        ("[1, x]", r"--vector \[1, x\]: is no list of numbers"),
        ('[1, "x"]', "is no list of numbers"),
        ("[[1, 0, 0], [0, 1, 0]]", r"has shape \(2, 3\): give one vector"),
        ("3", "cannot be read"),
        pytest.param(f"[{'9' * 400}]", r"--vector \[9{59}…: is no list of numbers \(.*: give a", id="large"),
        pytest.param("[" * 200_000, r"--vector \[{60}…: is no list of numbers \(.*: give a", id="deep"),
    ],
)
def test_what_is_no_vector_is_refused(text, message):
    with pytest.raises(SearchError, match=message):
        read_vector(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nearest"], "nothing to search with was given"),
        (["nearest", "a@1u"], "unknown treatment 'a@1u'. Did you mean 'a@1uM'"),
        (["nearest", "--vector", "[0, 0, 0]"], "is all zeros"),
        (["nearest", "--vector", "[1, 0, 0]", "--not-same-compound"], "has no compound"),
        (
            ["nearest", "--image", "absent.tif"],
            "feature set 'tiny' was imported: no extractor can make its profiles",
        ),
        (["nearest", "a@1uM", "--as-of", "9999"], "no snapshot 9999"),
        (
            ["nearest", "a@1uM", "--where", "EXISTS (FROM nearest('a@1uM', 'tiny'))"],
            "nearest() is not allowed here",
        ),
        (["neighbours", "-k", "0"], "k is 0"),
        (["pairs", "--threshold", "7"], "threshold 7.0: give a cosine"),
        (["novelty", "--labels", "mao"], "unknown kind of label 'mao'. Did you mean 'moa'"),
        (["index", "--kind", "hnws"], "unknown kind of index 'hnws'. Did you mean 'hnsw'"),
    ],
)
def test_faults_are_one_line(call, words, message):
    of_set = ["--feature-set", "tiny"] if words[0] == "nearest" else ["tiny"]
    code, out, err = call(words[0], *of_set, *words[1:])
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_install(call):
    if faiss_build.installed() != ["faiss-cpu"]:
        pytest.skip("this is for faiss-cpu")
    code, out, err = call("nearest", "a@1uM", "--feature-set", "tiny", "--device", "gpu")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "pip install 'wellhouse[gpu]'" in err


def test_a_vector_is_read_as_it_was_written(tmp_path):
    vector = np.random.default_rng(0).normal(size=7).astype(np.float32)
    np.save(tmp_path / "v.npy", vector)
    (tmp_path / "v.json").write_text(json.dumps(vector.tolist()))
    for text in (tmp_path / "v.npy", tmp_path / "v.json", json.dumps(vector.tolist())):
        np.testing.assert_array_equal(read_vector(str(text)), vector)
