"""The documents are true: their commands run, and print what stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer.main
from test_metrics import test_every_metric_keeps_the_contract as keeps_the_contract
from test_metrics import test_every_metric_refuses_what_it_cannot_compare as refuses

import cli
from extractors.training.settings import METHODS, settings_of
from warehouse import metrics
from warehouse.console import json_pair
from warehouse.evaluation.asked import asked_metric
from warehouse.recipes import NAMED
from warehouse.steps import STEPS

REPOSITORY = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: Of real_screen.md, what only the long form (and `make real-screen`) does: a network looks at 1,000 crops for minutes.
LONG_SECTION = re.compile(r"^## 2\..*?(?=^## 3\.)|^transfer .*?\n", re.DOTALL | re.MULTILINE)
#: A line, with those that it goes on in.
_COMMAND = re.compile(r"(?:.*\\\n)*.*\n")


def words(line: str) -> list[str]:
    """Split a line of a table into its words, frames and padding left out."""
    return re.sub(r"[│┃|;]", " ", line).split()


def contains(output: str, wanted: str) -> bool:
    """Whether a line of the output begins with the words wanted (a row of a table, cut short)."""
    expected = words(wanted)
    return any(words(line)[: len(expected)] == expected for line in output.splitlines())


def follow(
    page: Path, folder: Path, environment: dict[str, str], already: str = "", content: str = ""
) -> str:
    """Run the sh blocks of a page in one shell each, in order, and check each text block against what came.

    A lake's commands that stand in `already`, a page that was followed in this folder, are not run again.
    `content`: in place of all that stands in the page.
    """
    (folder / "bin").mkdir(exist_ok=True)
    command = folder / "bin" / "wellhouse"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cli "$@"\n')
    command.chmod(0o755)
    environment = (
        os.environ
        | environment
        | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }
    )
    printed, everything = "", ""
    for kind, text in _BLOCK.findall(content or page.read_text(encoding="utf-8")):
        if kind == "text":
            for line in filter(str.strip, text.splitlines()):
                assert contains(printed, line), f"{page.name} says {line!r}; its commands printed:\n{printed}"
            continue
        exports = "\n".join(f"export {name}={value}" for name, value in _exports(everything))
        asked = "".join(
            one for one in _COMMAND.findall(text) if not (one.startswith("wellhouse ") and one in already)
        )
        script = f"set -eu\n{exports}\n{asked}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{page.name}: {text}\nended with {done.returncode}:\n{done.stderr}"
        printed = done.stdout
        print(text, printed, sep="\n")
        everything += text
    return printed


def _exports(script: str) -> list[tuple[str, str]]:
    return re.findall(r"^export (\w+)=(.*)$", script, re.MULTILINE)


@pytest.mark.slow
def test_real_screen(data_dir: Path, tmp_path: Path) -> None:
    """The short form leaves out its 1,000 crops."""
    page = REPOSITORY / "docs" / "real_screen.md"
    text = page.read_text(encoding="utf-8")
    if not os.environ.get("WELLHOUSE_LONG"):
        text = LONG_SECTION.sub("", text)
        assert "--extractor transfer" not in text
        assert text.count("\n## ") == 5
    follow(page, tmp_path, {"DATA": str(data_dir)}, content=text)
    lake = tmp_path / "real.lake"
    _check_moa_screen(lake, data_dir)
    _check_rejections(lake)


@pytest.mark.slow
def test_two_nights(data_dir: Path, tmp_path: Path) -> None:
    follow(REPOSITORY / "docs" / "nightly.md", tmp_path, {"DATA": str(data_dir)})
    lake = tmp_path / "atlas.lake"
    wells = _json(lake, "sql", "SELECT count(*) AS n FROM main.plate_history WHERE outcome = 'added'")
    assert wells == [{"n": 12}]
    files = sorted((data_dir / "cell_atlas").glob("round[12]/*.parquet"))
    expected = {
        file.name.split("_")[0]: pl.scan_parquet(file).select(pl.len()).collect().item() for file in files
    }
    loads = _json(
        lake, "sql", "SELECT plate, profiles_seen, profiles_rejected, wells_in FROM main.plate_loads"
    )
    assert {row["plate"]: row["profiles_seen"] for row in loads} == expected
    assert all(row["wells_in"] + row["profiles_rejected"] == row["profiles_seen"] for row in loads)
    sets = _json(
        lake, "sql", "SELECT count(DISTINCT feature_names) AS n, count(*) AS m FROM main.feature_sets"
    )
    assert sets == [{"n": 12, "m": 12}]


@pytest.mark.slow
def test_correction_and_evaluation(data_dir: Path, tmp_path: Path) -> None:
    """And evaluation.md, which goes on with the same lake: the import takes longer than all that it does."""
    page = REPOSITORY / "docs" / "correction.md"
    follow(page, tmp_path, {"DATA": str(data_dir)})
    next_page = REPOSITORY / "docs" / "evaluation.md"
    follow(next_page, tmp_path, {"DATA": str(data_dir)}, already=page.read_text(encoding="utf-8"))
    (code,) = re.findall(
        r"^```python\n(.*?)^```", next_page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "print(made[0].score.correct, made[0].score.n)"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("67 92\n", 0), done.stderr


@pytest.mark.slow
def test_aggregation(data_dir: Path, tmp_path: Path) -> None:
    follow(REPOSITORY / "docs" / "aggregation.md", tmp_path, {"DATA": str(data_dir)})


@pytest.mark.slow
def test_search(data_dir: Path, tmp_path: Path) -> None:
    page = REPOSITORY / "docs" / "search.md"
    follow(page, tmp_path, {"DATA": str(data_dir)})
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shown = (
        "print(answer.neighbours['treatment'][0], near.neighbours.height, many.height, edges['rank'].max())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + shown], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("anisomycin@1uM 5 10 10\n", 0), done.stderr


@pytest.mark.slow
def test_learning(data_dir: Path, tmp_path: Path) -> None:
    follow(REPOSITORY / "docs" / "learning.md", tmp_path, {"DATA": str(data_dir)})
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_variants_of_training_in_the_docs_can_be_typed() -> None:
    """The commands of learning.md that are not run: every option and every setting is one that there is."""
    page = (REPOSITORY / "docs" / "learning.md").read_text(encoding="utf-8")
    lines = re.findall(r"^wellhouse (?:train|extract) .*$", page.replace("\\\n", " "), re.MULTILINE)
    methods = set()
    commands = typer.main.get_command(cli.app).commands
    for name, *words in map(shlex.split, (line.removeprefix("wellhouse ") for line in lines)):
        with commands[name].make_context(name, words) as context:
            given = context.params
        if name == "train":
            methods.add(given["method"])
            settings_of(given["method"], given["preset"], dict(map(json_pair, given["setting"] or ())))
    assert methods == {method.name for method in METHODS}


def test_every_step_and_named_recipe_stands_in_the_docs() -> None:
    page = (REPOSITORY / "docs" / "correction.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert listed == [recipe.name for recipe in NAMED] + [step.name for step in STEPS]


def test_every_metric_stands_in_the_docs() -> None:
    """With its level and its parameters, as the registry has them."""
    page = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|.*\| (\w+) \|[^|]*\|$", page, re.MULTILINE)
    assert dict(listed) == {metric.name: metric.level for metric in metrics.ALL}
    assert len(listed) == len(metrics.ALL)
    step_names = {step.name for step in STEPS}
    typed = {
        text
        for text in re.findall(r"`([a-z_0-9]+\([^`)]*=[^`)]*\))`", page)
        if text.split("(")[0] not in step_names
    }
    for text in typed:
        asked_metric(text)


def test_the_metrics_of_contributing_work() -> None:
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, Any] = {}
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
        tests = [value for name, value in names.items() if name.startswith("test_")]
        assert len(tests) == 1
        tests[0]()
        (metric,) = names["METRICS"]
        assert metrics.get(metric.name, names["METRICS"]) is metric
        keeps_the_contract(metric)
        refuses(metric)


def _json(lake: Path, *arguments: str) -> object:
    import json

    command = [sys.executable, "-m", "cli", *arguments, "--lake", str(lake), "--json"]
    return json.loads(
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    )


def _check_moa_screen(lake: Path, data_dir: Path) -> None:
    """Every compound of the two plates, to 1e-6 of the authors' table."""
    for feature_set, plate, mean in (
        ("moa_batch1", "BR00122250", 0.736049),
        ("moa_batch2", "BR00122247", 0.70362),
    ):
        arguments = (
            "--metrics",
            "map_vs_controls",
            "--baselines",
            "0",
            "--details",
            "--where",
            f"plate = '{plate}'",
        )
        answer = _json(lake, "evaluate", feature_set, *arguments)
        assert answer["evaluations"][0]["value"] == pytest.approx(mean, abs=5e-6)
        ours = pl.DataFrame(answer["details"][0]).with_columns(
            compound=pl.col("treatment").str.split("@").list.first()
        )
        theirs = pl.read_csv(data_dir / "moa_screen" / f"mAP_{plate}_vs_DMSO.csv")
        both = ours.join(theirs, left_on="compound", right_on="Metadata_broad_sample", validate="1:1")
        assert both.height == 90
        assert (both["value"] - both["average_precision"]).abs().max() < 1e-6


def _check_rejections(lake: Path) -> None:
    """Site 3 is reported for the channel that it lacks, site 4 for having no file; sites 1 and 2 are in."""
    query = "SELECT field, reason FROM main.rejections WHERE feature_set = 'cellprofiler_bbbc021' AND cell IS NULL"
    reasons = {row["field"]: row["reason"] for row in _json(lake, "sql", query + " ORDER BY field")}
    assert set(reasons) == {"3", "4"}
    assert "w4A901377A" in reasons["3"]
    counted = _json(lake, "sql", "SELECT field, cell_count FROM cellprofiler_bbbc021.fields ORDER BY field")
    assert [row["field"] for row in counted] == ["1", "2"]
    assert all(row["cell_count"] > 100 for row in counted)
