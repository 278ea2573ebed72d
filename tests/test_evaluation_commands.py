"""The commands of evaluation: what they print is what Python answers; options arrive; faults in one line."""

import json
import sqlite3
import sys
import types
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from builders import TINY, commit, neighbour_lake, neighbour_plate, new_lake, random_plate
from rich.console import Console

import cli
from warehouse import evaluation, metrics, profiles
from warehouse.commands import evaluation as commands
from warehouse.evaluation import Board, Inputs, as_frame, compare, details_frame, evaluate
from warehouse.lake import Lake
from warehouse.metrics.bioactivity import BINS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A lake with two sets of three features; the second one is the first, a little off."""
    path = tmp_path_factory.mktemp("evaluation") / "lake"
    with neighbour_lake(path) as lake:
        for name, shift in (("p1", 0.5), ("p2", 0.4)):
            commit(lake, neighbour_plate(name, shift), replace(TINY, name="other"))
    return path


@pytest.fixture(scope="module")
def lake(folder):
    with Lake.open(folder) as opened:
        yield opened


@pytest.fixture
def call(capsys, monkeypatch, folder, lake):
    """Run a command on the lake, as `main` does: its code, what it prints, what it says.

    The lake is not opened each time, which takes longer than the scores.
    """
    monkeypatch.setenv("WELLHOUSE_LAKE", str(folder))
    monkeypatch.setattr(Lake, "open", lambda address, read_only=False: nullcontext(lake))

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


def newest(folder: Path) -> int:
    """The newest snapshot, from the catalog itself, which is quicker than opening the lake."""
    with closing(sqlite3.connect(f"file:{folder / 'catalog.sqlite'}?mode=ro", uri=True)) as catalog:
        return int(catalog.execute("SELECT max(snapshot_id) FROM ducklake_snapshot").fetchone()[0])


# ------------------------------------------------------------------------------------------ evaluate


def test_metrics_are_split_at_commas_outside_of_parentheses():
    assert commands.names_of("nsc, knn(k=3,exclude=nsb) ,map") == ["nsc", "knn(k=3,exclude=nsb)", "map"]


def test_evaluate_is_what_python_answers(document, lake):
    found = document(
        "evaluate", "tiny", "other", "--metrics", "nsc,map", "--compare", "--draws", 200, "--details"
    )
    made = evaluate(lake, ["tiny", "other"], ["nsc", "map"])
    assert set(found) == {"evaluations", "comparison", "details"}
    before, after = (
        [{name: value for name, value in row.items() if name != "snapshot"} for row in rows]
        for rows in (found["evaluations"], as_frame(made).to_dicts())
    )
    assert before == after
    assert found["comparison"] == compare(made, draws=200).to_dicts()
    assert [len(rows) for rows in found["details"]] == [details_frame(each).height for each in made]


def test_for_people_baselines_beside_the_score_and_what_is_empty_left_out(call):
    code, out, err = call("evaluate", "tiny", "--metrics", "nsc", "--details")
    assert (code, err) == (0, "")
    table, details = out.split("tiny:none nsc")  # the title of the details
    names = ("value", "shuffled", "random", "mark", "correct", "n", "left_out")
    places = [table.index(f" {name} ") for name in names]
    assert places == sorted(places)  # value and baselines side by side
    assert "not above chance" in table  # four of six, which shuffled labels reach
    assert "cell_count" not in table  # the lake has no counts
    assert "snapshot" not in table
    assert "a@3uM" in details
    code, out, err = call("evaluate", "tiny", "--metrics", "nsc", "--baselines", 0)
    assert [name in out for name in ("shuffled", "mark", "side by side")] == [False] * 3
    code, out, err = call("evaluate", "tiny", "other", "--metrics", "nsc", "--baselines", 0, "--compare")
    assert "difference_low" in out.split("side by side")[1]


def test_every_option_arrives(call, monkeypatch):
    class Arrived(Exception):
        pass

    def caught(lake, feature_sets, names, **given):
        raise Arrived((feature_sets, names, given))

    back_end = types.ModuleType("extractors.torch_blocks")
    back_end.TorchArrays = lambda device: f"torch on {device}"
    monkeypatch.setitem(sys.modules, "extractors.torch_blocks", back_end)
    monkeypatch.setattr(evaluation, "evaluate", caught)
    words = (
        "a b:center --recipe r --metrics map(ties=averaged),nsc --labels target --level well --where x>1 "
        "--batch-key plate --baselines 3 --clusters c.csv --folds f.csv --pairs p.csv --assays y.csv --device gpu "
        "--seed 7"
    )
    with pytest.raises(Arrived) as arrived:
        call("evaluate", *words.split())
    assert arrived.value.args[0] == (
        ["a", "b:center"],
        ["map(ties=averaged)", "nsc"],
        {
            "recipe": "r", "labels": "target", "level": "well", "where": "x>1", "batch_key": "plate", "baselines": 3,
            "inputs": Inputs(Path("c.csv"), Path("f.csv"), Path("p.csv"), Path("y.csv")), "arrays": "torch on cuda",
            "seed": 7,
        },
    )  # fmt: skip
    with pytest.raises(Arrived) as arrived:
        call("evaluate", "a")
    assert arrived.value.args[0][1:] == (
        ["nsc", "nsb", "map"],
        {
            "recipe": "none", "labels": "moa", "level": None, "where": None, "batch_key": "batch", "baselines": 5,
            "inputs": Inputs(), "arrays": None, "seed": 0,
        },
    )  # fmt: skip


def test_what_should_be_known_of_a_file_is_a_note(call, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("compound_a,compound_b\na,b\nc,d\na,nobody\n")
    code, out, err = call("evaluate", "tiny", "--metrics", "known_pairs_recall", "--pairs", pairs)
    assert (code, "known_pairs_recall" in out) == (0, True)
    (line,) = err.splitlines()
    assert line.startswith("note: 1 pair")
    assert str(pairs) in line


# ------------------------------------------------------------------------------------------ leaderboard


BOARD = Board(
    pl.DataFrame(
        {
            "feature_set": ["a", "b"],
            "recipe": ["none", "center"],
            "nsc": [0.5, 0.8252],
            "map": [None, 0.25],
            "ami": [0.9, 0.1],
        }
    ),
    best=frozenset({(1, "nsc"), (1, "map"), (1, "ami")}),
    stale=frozenset({(0, "ami")}),
    below=frozenset({(0, "nsc"), (1, "ami")}),
    notes=("some note",),
)


def test_a_board_in_markdown():
    assert commands.markdown_of(BOARD).splitlines() == [
        "| feature_set | recipe | nsc | map | ami |",
        "| --- | --- | --- | --- | --- |",
        "| a | none | 0.500‡ |  | 0.900† |",
        "| b | center | **0.825** | **0.250** | **0.100‡** |",
    ]


def test_a_board_on_a_terminal_has_the_best_in_bold(monkeypatch, capsys):
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(force_terminal=True, width=80))
    commands.print_board(BOARD)
    shown = capsys.readouterr().out
    assert "\x1b[1m0.825\x1b[0m" in shown
    assert "\x1b[1m0.500" not in shown
    assert "some note" in shown


def test_leaderboard_shows_what_was_stored(call, document):
    for words in (["tiny"], ["other", "--baselines", "0"]):
        assert call("evaluate", *words, "--metrics", "nsc,map")[0] == 0
    found = document("leaderboard", "--metrics", "nsc,map")
    assert [(row["feature_set"], row["recipe"]) for row in found["leaderboard"]] == [
        ("other", "none"),
        ("tiny", "none"),
    ]
    assert found["leaderboard"][1]["nsc"] == pytest.approx(4 / 6)
    assert (found["stale"], found["below"]) == ([], [[1, "map"], [1, "nsc"]])
    code, out, err = call("leaderboard", "--metrics", "nsc", "--markdown")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "| feature_set | recipe | nsc |"
    assert "0.667‡" in out
    assert "(‡)" in out  # what it means
    code, out, _ = call("leaderboard", "--metrics", "nsc")
    assert (code, "‡" in out, "**" in out) == (0, True, False)


# ------------------------------------------------------------------------------------------ metrics, features


def test_metrics_are_all_there(call, document):
    found = document("metrics")
    assert [row["metric"] for row in found] == [metric.name for metric in metrics.ALL]
    assert all(row["tells"] and row["paper"] and row["level"] for row in found)
    code, out, _ = call("metrics")
    assert code == 0
    for metric in metrics.ALL:
        assert f"\n{metric.name}" in f"\n{out}"
    assert "treatment; goes by labels, compounds; higher is better; Ljosa" in out


def test_feature_correlation_is_a_table_or_a_file(call, document, lake, tmp_path):
    expected = evaluation.feature_correlation(lake, "tiny", "other", top=1).table
    assert document("feature-correlation", "tiny", "other", "--top", 1) == expected.to_dicts()
    out = tmp_path / "f.parquet"
    assert document("feature-correlation", "tiny", "other", "--top", 1, "--out", out) == {
        "rows": expected.height,
        "files": [str(out)],
    }
    assert pl.read_parquet(out).equals(expected)
    code, shown, err = call("feature-correlation", "tiny", "other", "--top", 1, "-n", 2)
    assert (code, err.count("note: 2 of 3 rows")) == (0, 1)
    assert "f1" in shown


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evaluate", "tiny", "--metrics", " , "],
            "--metrics ' , ' names no metric: give some, such as nsc,map",
        ),
        (["evaluate", "tiny", "--device", "gpux"], "unknown device 'gpux'. Did you mean 'gpu'?"),
        (["evaluate", "tiny", "--compare"], "--compare tiny: give two feature sets or more"),
        (["evaluate", "tiny", "--metrics", "nsc(k=3)"], "unknown parameter of metric 'nsc' 'k'"),
        (["evaluate", "tiny", "--metrics", "map(ties=averagd)"], "'averagd'"),
        (["evaluate", "tiny", "--metrics", "knn(k=x)"], "metric 'knn': k=x is not a whole number"),
        (["evaluate", "tiny", "--metrics", "nsc)"], "metric 'nsc)' is not written as a name"),
        (["evaluate", "tiny", "--batch-key", "week"], "unknown batch key 'week'"),
        (["evaluate", "tiny", "--level", "wells"], "'wells'. Did you mean 'well'?"),
        (["evaluate", "tiny:centre"], "'centre'"),
        (
            ["evaluate", "tiny", "--folds", "absent.csv"],
            "absent.csv cannot be read: No such file or directory",
        ),
        (["evaluate", "tiny", "--metrics", "known_pairs_recall"], "give it with --pairs"),
        (["leaderboard", "--metrics", "ami"], "no feature set was scored by ami under these conditions"),
        (["leaderboard", "--metrics", "amy"], "unknown metric 'amy'"),
        (["leaderboard", "--labels", "mao"], "unknown kind of label 'mao'. Did you mean 'moa'?"),
        (["feature-correlation", "tiny", "othr"], "unknown feature set 'othr'. Did you mean 'other'?"),
        (["feature-correlation", "tiny", "other", "--method", "kendall"], "unknown correlation 'kendall'"),
        (["feature-correlation", "tiny", "other", "--out", "x.xlsx"], "unknown kind of file '.xlsx'"),
        (["feature-correlation", "tiny", "other", "--where", "well = 'A01'"], "wells in common"),
    ],
)
def test_faults_are_one_line_and_store_nothing(call, folder, words, message):
    before = newest(folder)
    code, out, err = call(*words)
    assert newest(folder) == before
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_gpu_that_is_not_there_is_one_line(call):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this is for a machine without a GPU")
    code, out, err = call("evaluate", "tiny", "--device", "gpu")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "torch finds no GPU" in err


def test_outcomes_of_assays_are_predicted_and_summed_up_as_the_paper_does(tmp_path, monkeypatch, capsys):
    path, file = tmp_path / "screen", tmp_path / "assays.csv"
    with new_lake(path) as made:
        commit(made, random_plate(("s", "b", "p1"), seed=0, dim=3, treatments=48))
        rows = profiles.read(made, "tiny", level="consensus")
    active = rows.matrix[:, 0] > np.median(rows.matrix[:, 0])
    lines = [
        f"{name},up,{int(up)}\n"
        for name, up in zip(rows.rows["compound"], active, strict=True)
        if name != "DMSO"
    ]
    file.write_text("compound,assay,active\n" + "".join(lines) + "gone,up,1\n")
    monkeypatch.setenv("WELLHOUSE_LAKE", str(path))
    words = ["evaluate", "tiny", "--metrics", "bioactivity(epochs=60,hidden=32,batch=16)", "--baselines", "1"]
    monkeypatch.setattr(sys, "argv", ["wellhouse", *words, "--assays", str(file), "--json"])
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main()
    out, err = capsys.readouterr()
    document = json.loads(out)
    (score,) = document["evaluations"]
    assert (score["n"], score["level"], score["mark"]) == (1, "consensus", None)
    assert score["value"] > 0.8  # the first feature says it all
    (summary,) = document["summaries"].values()
    assert [row["bin"] for row in summary] == ["all", next(iter(BINS))]
    assert summary[0]["above_0.7"] == 1
    assert err.startswith("note: 1 line names no consensus of those scored")
