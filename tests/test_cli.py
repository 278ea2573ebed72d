# ruff: noqa: E501 (a case of the table of faults is one line, however long)
"""The command line: every command helps, answers in one JSON document, and tells a fault in one line."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer.main

import cli
from extractors import nights
from extractors.simulator import SimulatorSettings, simulate_screen
from warehouse import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = dict(sorted(typer.main.get_command(cli.app).commands.items()))
SCREEN = SimulatorSettings(
    batches=1, plates_per_batch=1, wells_per_plate=6, phenotypes=2, compounds_per_phenotype=1, doses=(2.0,),
    dmso_wells=3, positive_wells=1, field_px=128, cells_per_field=5,
)  # fmt: skip
PLATE = "SYNTH-B1-P1"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self):
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1
        return json.loads(self.out)


Call = Callable[..., Ended]


@pytest.fixture
def call(capsys, monkeypatch) -> Call:
    """Run the command in this process, as `main` does."""
    monkeypatch.delenv("WELLHOUSE_LAKE", raising=False)

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["wellhouse", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return run


def in_shell(*words: object, folder: Path, **environment: str) -> Ended:
    clean = {name: value for name, value in os.environ.items() if name != "WELLHOUSE_LAKE"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, check=False,
        env={**clean, "PYTHONPATH": str(REPOSITORY), **environment},
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class World:
    """A lake with two feature sets (`profiles` imported, `transfer` from images), and the files that it came from."""

    lake: Path
    screen: Path
    profiles: Path
    layout: Path
    labels: Path


def write_profiles(folder: Path) -> tuple[Path, Path, Path]:
    """Two plates in one batch each; four controls, four compounds with two mechanisms of action."""
    rng, wells, plan = np.random.default_rng(0), [], []
    centres = rng.normal(0, 3, (2, 6))
    for plate, batch in (("p1", "b1"), ("p2", "b2")):
        names = [(f"A{i:02d}", "DMSO", "negative", np.zeros(6)) for i in range(1, 5)]
        names += [(f"B{i + 1:02d}", f"drug{i}", "none", centres[i % 2]) for i in range(4)]
        for well, compound, control, centre in names:
            values = ",".join(f"{value:.5f}" for value in centre + rng.normal(0, 1, 6))
            wells.append(f"{batch},{plate},{well},{values}")
            plan.append(f"{batch},{plate},{well},{compound},{control}")
    paths = folder / "profiles.csv", folder / "plan.csv", folder / "labels.csv"
    features = ",".join(f"emb{i}" for i in range(6))
    paths[0].write_text("\n".join([f"batch,plate,well,{features}", *wells]) + "\n")
    paths[1].write_text("\n".join(["batch,plate,well,compound,control_type", *plan]) + "\n")
    labels = [f"drug{i},moa,mechanism {i % 2}" for i in range(4)]
    paths[2].write_text("\n".join(["compound,kind,label", *labels]) + "\n")
    return paths


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    screen = simulate_screen(folder / "screen", SCREEN).folder
    made = World(folder / "lake", screen, *write_profiles(folder))
    steps = (
        ["init", made.lake],
        ["ingest", screen / "manifest.csv", "--layout", screen / "layout.csv", "--set", "size=32",
         "--channels", "DNA,RNA", "--lake", made.lake],
        ["import-profiles", made.profiles, "--feature-set", "profiles", "--layout", made.layout,
         "--annotations", made.labels, "--lake", made.lake],
        ["correct", "profiles", "--recipe", "standardize", "--lake", made.lake],
    )  # fmt: skip
    for words in steps:
        done = in_shell("-m", "cli", *words, folder=folder)
        assert done.code == 0, done.err
    return made


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(call, name):
    shown = call(name, "--help")
    assert shown.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", shown.out).split())
    assert "Example: wellhouse " + name in text
    example = re.search(r"Example: `wellhouse (.*)`", str(COMMANDS[name].callback.__doc__))
    assert example is not None
    for option in re.findall(r"(?<!\w)--?[a-z][a-z-]*", example.group(1)):
        known = [name for parameter in COMMANDS[name].params for name in parameter.opts]
        assert option in known, f"{option} is no option of {name}"
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


def test_readme_mentions_every_command():
    readme = REPOSITORY / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is not written yet")
    text = readme.read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"wellhouse {name}" not in text] == []


def test_version_and_the_name_of_the_command(call):
    assert call("--version") == Ended(0, f"wellhouse {__version__}\n", "")
    shown = call("--help")
    assert "wellhouse [OPTIONS] COMMAND" in shown.out
    assert all(f" {name} " in shown.out for name in COMMANDS)


def test_both_ways_of_calling_it(tmp_path):
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"wellhouse": "cli:main"}  # as the script that pip writes does; test_packaging runs it
    script = "import sys; sys.argv[0] = 'wellhouse'; from cli import main; sys.exit(main())"
    for words in (("-m", "cli"), ("-c", script)):
        assert in_shell(*words, "--version", folder=tmp_path) == Ended(0, f"wellhouse {__version__}\n", "")
        missing = in_shell(*words, "status", folder=tmp_path)
        assert (missing.code, missing.out) == (1, "")
        assert missing.err.startswith(
            f"error: {tmp_path / 'wellhouse.lake'} is not a lake (there is no such folder)"
        )
        assert missing.err.count("\n") == 1


# ------------------------------------------------------------------------------------------ which lake


def test_lake_is_the_option_else_the_environment_else_the_default(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("wellhouse.lake", "named", "from_environment"):
        assert call("init", name).code == 0
    assert call("status", "--json").document["lake"] == str(tmp_path / "wellhouse.lake")
    monkeypatch.setenv("WELLHOUSE_LAKE", "from_environment")
    assert call("status", "--json").document["lake"] == str(tmp_path / "from_environment")
    assert call("status", "--lake", "named", "--json").document["lake"] == str(tmp_path / "named")


# ------------------------------------------------------------------------------------------ JSON


@pytest.mark.slow
def test_every_answer_is_one_json_document(call, world, tmp_path):
    lake = tmp_path / "l"
    made = call("init", lake, "--json").document
    assert made["lake"] == str(lake)
    assert Path(made["templates"]).is_dir()
    at = ("--lake", lake, "--json")
    screen = world.screen
    ingest = ("ingest", screen / "manifest.csv", "--layout", screen / "layout.csv", "--set", "size=32",
              "--channels", "DNA,RNA", *at)  # fmt: skip
    (report,) = call(*ingest).document
    assert (report["plate"], report["outcome"], report["images_in"]) == (PLATE, "added", 6)
    assert [each["outcome"] for each in call(*ingest).document] == ["unchanged"]
    imported = call("import-profiles", world.profiles, "--feature-set", "p", "--layout", world.layout,
                    "--annotations", world.labels, *at).document  # fmt: skip
    assert [(each["plate"], each["wells_in"]) for each in imported] == [("p1", 8), ("p2", 8)]
    (corrected,) = call("correct", "p", "--recipe", "standardize", *at).document
    assert (corrected["outcome"], corrected["wells"], corrected["features"]) == ("fitted", 16, 6)
    (index,) = call("index", "p", "--recipe", "standardize", *at).document
    assert (index["vectors"], index["dim"]) == (5, 6)
    answer = call(
        "nearest", "drug0", "--feature-set", "p", "--recipe", "standardize", "-k", "2", *at
    ).document
    assert [row["rank"] for row in answer["neighbours"]] == [1, 2]
    assert answer["neighbours"][0]["treatment"] == "drug2"
    assert answer["neighbours"][0]["moa"] == ["mechanism 0"]
    scored = call(
        "evaluate", "p", "--recipe", "standardize", "--metrics", "nsc,map", "--details", *at
    ).document
    assert [row["metric"] for row in scored["evaluations"]] == ["nsc", "map"]
    assert len(scored["details"]) == 2
    board = call("leaderboard", "--metrics", "nsc,map", *at).document
    assert [(row["feature_set"], row["recipe"]) for row in board["leaderboard"]] == [("p", "standardize")]
    assert board["stale"] == []
    meaning = call("feature-correlation", "p", "p", "--recipe", "standardize", "--top", "1", *at).document
    assert [row["named"] for row in meaning] == [row["learned"] for row in meaning]
    assert call("sql", "SELECT compound, count(*) AS n FROM p.treatments GROUP BY 1 ORDER BY 1 LIMIT 1", *at).document == [
        {"compound": "DMSO", "n": 1}
    ]  # fmt: skip
    state = call("status", *at).document
    assert {row["feature_set"]: row["plates"] for row in state["feature_sets"]} == {"p": 2, "transfer": 1}
    assert state["faults"] == {}


def test_a_picture_finds_the_well_that_it_is_of(call, world):
    fields = pl.read_csv(world.screen / "manifest.csv", infer_schema=False).row(2, named=True)
    dna, rna = (f"{channel}={world.screen / fields[f'path_{channel}']}" for channel in ("DNA", "RNA"))
    asked = ("nearest", "--feature-set", "transfer", "--level", "well", "--image", dna, "--image", rna)
    found = call(*asked, "-k", 2, "--lake", world.lake, "--json").document
    assert found["neighbours"][0]["well"] == fields["well"]
    assert found["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-6)
    assert found["neighbours"][1]["similarity"] < 0.9999
    plate = "/".join(fields[key] for key in ("source", "batch", "plate"))
    alone = call(*asked, "--plate", plate, "--not-same-plate", "--lake", world.lake)
    assert "note: 20 were asked for, 0 are there to choose from" in alone.err
    missing = call(*asked[:-2], "--lake", world.lake)
    assert (missing.code, missing.err.count("\n")) == (1, 1)
    assert "channel 'RNA' is missing" in missing.err


@pytest.mark.parametrize("query", [
    "SELECT 'NaN'::DOUBLE AS x, 'inf'::DOUBLE AS y, [1.5, NULL, 'NaN'::FLOAT] AS z", "SELECT now()::TIMESTAMP AS x",
    "SELECT 1 WHERE false", "SELECT 170141183460469231731687303715884105727::HUGEINT AS x", "SELECT 'a\nb\u2028é'  AS x",
    "SELECT '\\xAA'::BLOB AS x", "SELECT {'a': 1, 'b': [DATE '2020-01-01']} AS x",
    "SELECT 1.25::DECIMAL(9, 2) AS x", "SELECT MAP {'a': 1} AS x", "SELECT uuid() AS x", "SELECT NULL AS x",
])  # fmt: skip
def test_any_type_of_sql_comes_out_as_json_and_as_a_table(call, world, query):
    rows = call("sql", query, "--lake", world.lake, "--json").document
    assert len(rows) == (0 if "false" in query else 1)
    if "NaN" in query:
        assert rows == [{"x": None, "y": None, "z": [1.5, None, None]}]
    assert call("sql", query, "--lake", world.lake).code == 0


def test_tables_in_a_pipe_are_not_cut_to_a_terminal(call, world):
    name = "a_name_longer_than_half_a_terminal_" * 5
    assert name in call("sql", f"SELECT 1 AS a, '{name}' AS b", "--lake", world.lake).out


# ------------------------------------------------------------------------------------------ faults


def manifest_of(folder: Path, text: str) -> Path:
    """A manifest whose one image, `dna.tif`, is there."""
    (folder / "dna.tif").write_bytes(b"II*\0")
    path = folder / "manifest.csv"
    path.write_text(text)
    return path


def file_of(folder: Path, content: str | bytes, name: str = "given.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


JUNK = bytes(range(256)) * 4
WELLS = "plate,well,emb0,emb1\n"


def ingest(w: World, manifest: object, *more: object) -> list[object]:
    return ["ingest", manifest, "--set", "size=32", *more, "--lake", w.lake]


def good(w: World) -> Path:
    return w.screen / "manifest.csv"


def take_in(w: World, file: object, *more: object) -> list[object]:
    return ["import-profiles", file, "--feature-set", "new", *more, "--lake", w.lake]


Words = Callable[[World, Path], list[object]]
#: What is typed, and a part of the message: the value that was seen.
BAD: dict[str, tuple[Words, str]] = {
    # the lake
    "no lake": (lambda w, d: ["status", "--lake", d / "none"], "none is not a lake (there is no such folder)"),
    "a folder that is no lake": (lambda w, d: ["sql", "SELECT 1", "--lake", w.screen], "screen is not a lake (it holds no"),
    "a file as lake": (lambda w, d: ["status", "--lake", w.profiles], "profiles.csv is not a lake"),
    "a damaged catalog": (lambda w, d: ["status", "--lake", file_of(d, JUNK, "catalog.sqlite").parent], "catalog.sqlite"),
    "init onto a file": (lambda w, d: ["init", w.profiles], "profiles.csv is a file"),
    "init into a full folder": (lambda w, d: ["init", w.screen], "screen is not empty"),
    "a database address": (lambda w, d: ["status", "--lake", "mysql://x/y"], "mysql"),
    # manifests
    "unknown column": (lambda w, d: ingest(w, manifest_of(d, "plate,wel,well,field,path_DNA\np,x,A01,1,dna.tif\n")), "'wel'"),
    "missing column": (lambda w, d: ingest(w, manifest_of(d, "plate,feld,well,path_DNA\np,1,A01,dna.tif\n")), "'feld'"),
    "well off the plate": (lambda w, d: ingest(w, manifest_of(d, "plate,well,field,path_DNA\np,Z99,1,dna.tif\n")), "'Z99'"),
    "no well": (lambda w, d: ingest(w, manifest_of(d, "plate,well,field,path_DNA\np,here,1,dna.tif\n")), "'here'"),
    "image twice": (
        lambda w, d: ingest(w, manifest_of(d, "plate,well,field,path_DNA\np,A01,1,dna.tif\np,A1,1,dna.tif\n")), "A01"),
    "plate in two batches of a file": (
        lambda w, d: ingest(w, manifest_of(d, "batch,plate,well,field,path_DNA\nb1,p,A01,1,dna.tif\nb2,p,A02,1,dna2.tif\n")),
        "b2"),
    "plate of the lake in another batch": (
        lambda w, d: ingest(w, manifest_of(d, f"source,batch,plate,well,field,path_DNA\nsynthetic,else,{PLATE},A01,1,dna.tif\n"),
                            "--feature-set", "other"), "'else'"),
    "empty manifest": (lambda w, d: ingest(w, manifest_of(d, "plate,well,field,path_DNA\n")), "no rows"),
    "manifest of no bytes": (lambda w, d: ingest(w, manifest_of(d, "")), "the file is empty"),
    "all images missing": (lambda w, d: ingest(w, manifest_of(d, "plate,well,field,path_DNA\np,A01,1,no.tif\n")), "no.tif"),
    "path out of the folder": (lambda w, d: ingest(w, manifest_of(d, "plate,well,field,path_DNA\np,A01,1,../x.tif\n")), "../x.tif"),
    "no manifest": (lambda w, d: ingest(w, d / "none.csv"), "none.csv"),
    "no folder of images": (lambda w, d: ingest(w, good(w), "--images", d / "none"), "none"),
    "unknown plate": (lambda w, d: ingest(w, good(w), "--plate", "SYNTH-B1-P9"), f"Did you mean '{PLATE}'"),
    "unknown channel": (lambda w, d: ingest(w, good(w), "--channels", "DNA,RNAA"), "'RNAA'. Did you mean 'RNA'"),
    "channel twice": (lambda w, d: ingest(w, good(w), "--channels", "DNA,DNA"), "DNA, DNA"),
    "unknown DNA channel": (lambda w, d: ingest(w, good(w), "--dna-channel", "DAN"), "'DAN' among DNA, ER, RNA"),
    # extractors
    "unknown extractor": (lambda w, d: ingest(w, good(w), "--extractor", "transfr"), "'transfr'. Did you mean 'transfer'"),
    "unknown setting": (lambda w, d: ingest(w, good(w), "--set", "sise=3"), "'sise'. Did you mean 'size'"),
    "setting without a value": (lambda w, d: ingest(w, good(w), "--set", "size"), "'size' is no NAME=VALUE"),
    "setting of the wrong kind": (lambda w, d: ingest(w, good(w), "--set", "crop=abc"), "crop is 'abc'"),
    "setting below its least": (lambda w, d: ingest(w, good(w), "--set", "batch_size=0"), "batch_size is 0"),
    "setting that is a list": (lambda w, d: ingest(w, good(w), "--set", "size=[3]"), "size is [3]"),
    "channels as a setting": (lambda w, d: ingest(w, good(w), "--set", "channels=DNA"), "channels are no setting"),
    "unknown model": (lambda w, d: ingest(w, good(w), "--set", "model=resnet81"), "'resnet81'. Did you mean"),
    "no weights": (lambda w, d: ingest(w, good(w), "--set", f"weights={d}/w.pth"), "w.pth: there is no such file"),
    "cellprofiler's setting": (
        lambda w, d: ["ingest", good(w), "--extractor", "cellprofiler", "--set", "texture=maybe", "--lake", w.lake], "'maybe'"),
    "unknown field operator": (lambda w, d: ingest(w, good(w), "--field-operator", "meadian"), "'meadian'. Did you mean 'median'"),
    "other settings under one name": (
        lambda w, d: ingest(w, good(w), "--set", "size=64", "--channels", "DNA,RNA"), "feature set 'transfer' has parameters"),
    "name of a feature set": (lambda w, d: ingest(w, good(w), "--feature-set", "My Set"), "'My Set'"),
    "reserved name": (lambda w, d: [*take_in(w, w.profiles)[:2], "--feature-set", "main", "--lake", w.lake], "'main'"),
    # layouts and annotations
    "well twice in a layout": (
        lambda w, d: ingest(w, good(w), "--layout", file_of(d, "plate,well,compound\np,A01,x\np,A1,y\n")), "A01"),
    "layout off the plate": (
        lambda w, d: ingest(w, good(w), "--layout", file_of(d, "plate,well,compound\np,AG01,x\n")), "'AG01'"),
    "layout of another kind": (lambda w, d: take_in(w, w.profiles, "--layout", file_of(d, "a,b\n1,2\n")), "a, b"),
    "unknown control type": (
        lambda w, d: take_in(w, w.profiles, "--layout", file_of(d, "plate,well,compound,control_type\np1,A01,x,negativ\n")),
        "'negativ'"),
    "unknown kind of label": (
        lambda w, d: take_in(w, w.profiles, "--annotations", file_of(d, "compound,kind,label\nx,maa,y\n")), "'maa'"),
    "junk as layout": (lambda w, d: take_in(w, w.profiles, "--layout", file_of(d, JUNK)), "given.csv"),
    "junk as annotations": (lambda w, d: take_in(w, w.profiles, "--annotations", file_of(d, JUNK)), "given.csv"),
    "junk as manifest": (lambda w, d: ingest(w, file_of(d, JUNK)), "given.csv"),
    "broken gzip as manifest": (lambda w, d: ingest(w, file_of(d, b"\x1f\x8b\x08" + JUNK, "m.csv.gz")), "m.csv.gz"),
    "folder as manifest": (lambda w, d: ingest(w, d), "without any load_data.csv"),
    "folder as annotations": (lambda w, d: take_in(w, w.profiles, "--annotations", d), "no barcode_platemap.csv"),
    # profiles
    "no profiles": (lambda w, d: take_in(w, d / "none.csv"), "none.csv: there is no such file"),
    "folder as profiles": (lambda w, d: take_in(w, d), "is a folder"),
    "junk as CSV": (lambda w, d: take_in(w, file_of(d, JUNK)), "given.csv"),
    "junk as gzipped CSV": (lambda w, d: take_in(w, file_of(d, JUNK, "p.csv.gz")), "p.csv.gz"),
    "junk as Parquet": (lambda w, d: take_in(w, file_of(d, JUNK, "p.parquet")), "p.parquet: cannot be read"),
    "unknown kind of file": (lambda w, d: take_in(w, file_of(d, "x", "p.xlsx")), "'.xlsx'"),
    "CSV of no bytes": (lambda w, d: take_in(w, file_of(d, "")), "given.csv"),
    "CSV without rows": (lambda w, d: take_in(w, file_of(d, WELLS)), "has no rows"),
    "ragged CSV": (lambda w, d: take_in(w, file_of(d, WELLS + "p9,A01,1,2,3\n")), "given.csv"),
    "no number": (lambda w, d: take_in(w, file_of(d, WELLS + "p9,A01,1,high\n")), "'high' is not a number"),
    "profile twice": (lambda w, d: take_in(w, file_of(d, WELLS + "p9,A01,1,2\np9,A1,1,2\n")), "'A01'"),
    "profile off the plate": (lambda w, d: take_in(w, file_of(d, WELLS + "p9,Q77,1,2\n")), "'Q77'"),
    "no column for the plate": (lambda w, d: take_in(w, file_of(d, "well,emb0\nA01,1\n")), "no column for plate"),
    "unknown column for the plate": (lambda w, d: take_in(w, w.profiles, "--column", "plate=palte"), "'palte'"),
    "unknown key": (lambda w, d: take_in(w, w.profiles, "--column", "plaet=plate"), "'plaet'"),
    "column without name": (lambda w, d: take_in(w, w.profiles, "--column", "plate"), "'plate' is no NAME=VALUE"),
    "unknown column in profiles": (lambda w, d: take_in(w, file_of(d, "plate,well,depth\np9,A01,1\n")), "'depth'"),
    "unknown feature": (lambda w, d: take_in(w, w.profiles, "--features", file_of(d, "emb00\n")), "'emb00'. Did you mean 'emb0'"),
    "no features file": (lambda w, d: take_in(w, w.profiles, "--features", d / "none.txt"), "none.txt"),
    "nothing in features": (lambda w, d: take_in(w, w.profiles, "--features", file_of(d, "")), "given.csv"),
    "junk as features": (lambda w, d: take_in(w, w.profiles, "--features", file_of(d, JUNK)), "given.csv"),
    "folder as features": (lambda w, d: take_in(w, w.profiles, "--features", d), "there is no such file"),
    "plate in two batches": (
        lambda w, d: take_in(w, file_of(d, "batch,plate,well,emb0\nb1,p9,A01,1\nb2,p9,A02,1\n")), "'b2'"),
    "plate in another batch than the lake's": (
        lambda w, d: take_in(w, file_of(d, "batch,plate,well,emb0\nbX,p1,A01,1\n")), "'bX'"),
    "other features under one name": (
        lambda w, d: ["import-profiles", file_of(d, WELLS + "p9,A01,1,2\n"), "--feature-set", "profiles", "--lake", w.lake],
        "has feature_names 6 features"),
    # correct, index, nearest, evaluate
    **{
        f"{words[0]} of an unknown feature set": (
            lambda w, d, words=words: [*words, "--lake", w.lake], "'profile'. Did you mean 'profiles'")
        for words in (
            ["correct", "profile"], ["index", "profile"], ["nearest", "x", "--feature-set", "profile"], ["evaluate", "profile"])
    },
    "unknown step": (
        lambda w, d: ["correct", "profiles", "--recipe", "standardise", "--lake", w.lake], "'standardise'. Did you mean 'standardize'"),
    "recipe none": (lambda w, d: ["correct", "profiles", "--recipe", "none", "--lake", w.lake], "'none'"),
    "no recipe": (lambda w, d: ["correct", "profiles", "--recipe", "+", "--lake", w.lake], "'+'"),
    "parameter of a step": (
        lambda w, d: ["correct", "profiles", "--recipe", "sphering(lambada=1)", "--lake", w.lake], "'lambada'. Did you mean 'lambda'"),
    "number of a step": (lambda w, d: ["correct", "profiles", "--recipe", "sphering(lambda=x)", "--lake", w.lake], "lambda=x"),
    "recipe that was never fitted": (
        lambda w, d: ["nearest", "drug0", "--feature-set", "profiles", "--recipe", "center", "--lake", w.lake], "'center'"),
    "unknown level": (
        lambda w, d: ["index", "profiles", "--level", "treatments", "--lake", w.lake], "'treatments'. Did you mean 'treatment'"),
    "unknown treatment": (
        lambda w, d: ["nearest", "drugg0", "--feature-set", "profiles", "--lake", w.lake], "'drugg0'. Did you mean 'drug0'"),
    "k of nothing": (lambda w, d: ["nearest", "drug0", "--feature-set", "profiles", "-k", "0", "--lake", w.lake], "k is 0"),
    **{
        f"predicate {where}": (
            lambda w, d, where=where: ["nearest", "drug0", "--feature-set", "profiles", "--where", where, "--lake", w.lake], where)
        for where in ("well_count >", "nothing = 1", "1=1; DROP TABLE main.plates", "true) UNION SELECT (1", "")
    },
    "unknown metric": (
        lambda w, d: ["evaluate", "profiles", "--metrics", "nsc,mapp", "--lake", w.lake], "'mapp'. Did you mean 'map'"),
    "no metric": (lambda w, d: ["evaluate", "profiles", "--metrics", ",", "--lake", w.lake], "metric"),
    "unknown kind of labels": (
        lambda w, d: ["evaluate", "profiles", "--labels", "moas", "--lake", w.lake], "'moas'. Did you mean 'moa'"),
    "labels that are not there": (lambda w, d: ["evaluate", "profiles", "--labels", "target", "--lake", w.lake], "'target'"),
    "nothing chosen": (lambda w, d: ["evaluate", "profiles", "--where", "false", "--lake", w.lake], "look at --where"),
    # sql
    "no SQL": (lambda w, d: ["sql", "SELEC 1", "--lake", w.lake], "SELEC"),
    "empty SQL": (lambda w, d: ["sql", "  ", "--lake", w.lake], "0 statements"),
    "SQL of an unknown table": (lambda w, d: ["sql", "SELECT * FROM main.plaets", "--lake", w.lake], "plaets"),
    "SQL that writes": (lambda w, d: ["sql", "DELETE FROM main.plates", "--lake", w.lake], "DELETE is not allowed"),
    "SQL that writes a file": (lambda w, d: ["sql", f"COPY (SELECT 1) TO '{d}/x'", "--lake", w.lake], "COPY is not allowed"),
    "two statements": (lambda w, d: ["sql", "SELECT 1; SELECT 2", "--lake", w.lake], "2 statements"),
    "SQL that fails as it runs": (lambda w, d: ["sql", "SELECT 'x'::INT", "--lake", w.lake], "'x'"),
    "columns of one name": (lambda w, d: ["sql", "SELECT * FROM main.plates AS a, main.nowhere", "--lake", w.lake], "nowhere"),
}  # fmt: skip


#: True faults in files that are not this worker's to mend; each raises another error than ours.
BAD["SQL of a type that Polars lacks"] = (
    lambda w, d: ["sql", "SELECT INTERVAL 1 DAY AS x", "--lake", w.lake], "interval")  # fmt: skip


def check_one_line(ended: Ended, seen: str) -> None:
    assert ended.code == 1, f"exit {ended.code}\n{ended.out}\n{ended.err}"
    assert ended.out == ""
    lines = [line for line in ended.err.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    assert seen in lines[0]


def snapshot(path: Path) -> int:
    """The newest snapshot, from the catalog itself: opening the lake twice for each case would triple the time."""
    with closing(sqlite3.connect(f"file:{path / 'catalog.sqlite'}?mode=ro", uri=True)) as catalog:
        return int(catalog.execute("SELECT max(snapshot_id) FROM ducklake_snapshot").fetchone()[0])


def test_snapshot_sees_a_write(call, world, tmp_path):
    call("init", tmp_path / "l")
    before = snapshot(tmp_path / "l")
    assert call("import-profiles", world.profiles, "--feature-set", "p", "--lake", tmp_path / "l").code == 0
    assert snapshot(tmp_path / "l") > before


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_changes_nothing(call, world, tmp_path, name):
    words, seen = BAD[name]
    before = snapshot(world.lake)
    check_one_line(call(*words(world, tmp_path)), seen)
    assert snapshot(world.lake) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything: run as another user")
@pytest.mark.parametrize("what", ["profiles", "init"])
def test_what_may_not_be_read_or_written_is_one_line(call, world, tmp_path, what):
    closed = tmp_path / "closed"
    closed.mkdir()
    file = file_of(closed, world.profiles.read_bytes())
    file.chmod(0)
    closed.chmod(0o500)
    words = take_in(world, file) if what == "profiles" else ["init", closed / "lake"]
    check_one_line(call(*words), "given.csv" if what == "profiles" else "closed")


def test_wrong_usage_is_typers_own(call):
    for words in (
        ["ingest"],
        ["nearest", "x"],
        ["nearest", "x", "--feature-set", "f", "-k", "many"],
        ["stats"],
    ):
        ended = call(*words)
        assert (ended.code, ended.out) == (2, "")
        assert "Traceback" not in ended.err


def test_a_module_of_an_extra_that_is_missing_is_one_line(call, world, monkeypatch):
    monkeypatch.setitem(sys.modules, "extractors.transfer", None)
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "extractors.transfer")
    monkeypatch.setitem(sys.modules, "timm", None)
    nights._extractor.cache_clear()  # another test of this process may have made one
    check_one_line(
        call(*ingest(world, good(world))), "timm is not installed: pip install 'wellhouse[extract]'"
    )


@pytest.mark.parametrize(
    ("module", "extra"),
    [("lightning", "train"), ("h5py", "train"), ("tensorboard", "train"), ("PIL", "extract")],
)
def test_a_missing_module_is_said_to_be_of_the_extra_that_has_it(call, world, monkeypatch, module, extra):
    def missing(*_: object) -> Iterator[pl.DataFrame]:
        message = f"No module named {module!r}"
        raise ModuleNotFoundError(message, name=module)

    monkeypatch.setattr("warehouse.query.sql", missing)
    ended = call("sql", "SELECT 1", "--lake", world.lake)
    check_one_line(ended, f"{module} is not installed: pip install 'wellhouse[{extra}]'")


def test_a_fault_of_ours_keeps_its_traceback(call, world, monkeypatch):
    """Only what a person can mend is one line: a bug must be seen whole."""

    def broken(*_: object) -> Iterator[pl.DataFrame]:
        raise ZeroDivisionError

    monkeypatch.setattr("warehouse.query.sql", broken)
    with pytest.raises(ZeroDivisionError):
        call("sql", "SELECT 1", "--lake", world.lake)


def test_reader_of_a_pipe_may_leave(world):
    query = "SELECT range AS a, repeat('x', 200) AS b FROM range(50000)"
    script = f'"{sys.executable}" -m cli sql "{query}" --json --lake "{world.lake}" | head -c 100'
    done = subprocess.run(
        ["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert len(done.stdout) == 100
    assert "Traceback" not in done.stderr
