# ruff: noqa: E501 (a case of the table of faults is one line, however long)
"""The commands that train, extract and explain: one story on a tiny screen, and each fault in one line."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import cli
from extractors import embedding, image_query, registry
from extractors.image_query import profile_of_images
from extractors.nights import whole_paths
from extractors.pipeline import PipelineSettings, ingest_screen
from extractors.remake import remade
from extractors.simulator import SimulatorSettings, simulate_screen
from extractors.training.card import Card
from extractors.training.model_folder import write_model
from extractors.training.networks import create
from extractors.training.settings import METHODS, settings_of
from warehouse import feature_sets
from warehouse.errors import SearchError
from warehouse.lake import Lake
from warehouse.screens import read_screen

SCREEN = SimulatorSettings(
    batches=2, plates_per_batch=1, wells_per_plate=4, phenotypes=1, compounds_per_phenotype=1, doses=(2.0,),
    dmso_wells=2, positive_wells=1, fields=1, field_px=128, cells_per_field=6,
)  # fmt: skip
CHANNELS = ("DNA", "RNA")
#: A network so small that making it, not running it, takes the time.
TINY = {"network": "resnet10t", "layer": "layer1", "weights": "none", "crop": 32, "size": 32}


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def document(self):
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def call(capsys, monkeypatch) -> Callable[..., Ended]:
    monkeypatch.delenv("WELLHOUSE_LAKE", raising=False)

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["wellhouse", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ended(code, *capsys.readouterr())

    return run


def write(folder: Path, method: str = "cell_painting_cnn", seed: int = 0, **changes: object) -> Card:
    """Write the folder of a model that was never trained: its weights are what chance gave."""
    settings = settings_of(method, "small", TINY | changes)
    torch.manual_seed(seed)
    network = create(settings.network, len(CHANNELS), layers=(settings.layer,), weights="none", size=32)
    classes = ("DMSO", "synthol-01@2uM")
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    state |= {"head.weight": torch.randn(2, network.final_dim), "head.bias": torch.randn(2)}
    folder.mkdir(parents=True, exist_ok=True)
    return write_model(
        folder,
        state,
        lambda weights: Card(
            method, "1", CHANNELS, settings.as_dict(), (0.2, 0.3), (0.1, 0.1), classes, {"cells_of": "transfer"},
            {"epochs": 0, "last": {}}, "0", weights,
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class World:
    lake: Path
    screen: Path
    model: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """A lake whose cells were found, a model `cnn`, and its embeddings."""
    folder = tmp_path_factory.mktemp("world")
    screen = simulate_screen(folder / "screen", SCREEN).folder
    made = World(folder / "lake", screen, folder / "lake" / "models" / "cnn")
    with Lake.create(made.lake) as lake:
        extractor = registry.create("transfer", CHANNELS, {"size": 16})
        given = read_screen(screen / "manifest.csv", layout=screen / "layout.csv")
        reports = ingest_screen(lake, given, extractor)
        assert [report.outcome for report in reports] == ["added"] * 2
    write(made.model)
    return made


@pytest.fixture
def extracted(world, call) -> World:
    """With the embeddings of `cnn`, by whichever test is first."""
    assert {row["outcome"] for row in call("extract", "cnn", "--lake", world.lake, "--json").document} <= {
        "added", "unchanged"
    }  # fmt: skip
    return world


# ------------------------------------------------------------------------------------------ the story


@pytest.mark.slow
def test_train_extract_and_again(call, world, tmp_path):
    at = ("--lake", world.lake, "--models", tmp_path)
    settings = [
        word for name, value in (TINY | {"epochs": 1}).items() for word in ("--set", f"{name}={value}")
    ]
    asked = ("train", "cell_painting_cnn", "--name", "net", "--preset", "small", *settings, *at)
    first = call(*asked)
    assert first.code == 0, first.err
    assert first.out.startswith("net: trained, ")
    assert first.out.endswith("next: wellhouse extract net\n")
    assert "epoch 1/1: loss" in first.err
    again = call(*asked, "--json").document
    assert (again["outcome"], again["plates"], again["classes"]) == ("complete", 2, 3)
    made = call("extract", "net", *at, "--json").document
    assert [row["outcome"] for row in made] == ["added", "added"]
    other = call(*asked, "--set", "seed=1")
    assert (other.code, other.err.count("error: ")) == (1, 1)
    assert "holds another training: it was begun with seed 0, now 1" in other.err


def test_a_night_with_the_model_is_the_same_as_extract(call, extracted):
    """The model's channels and their order are its card's; the manifest has three more."""
    night = ("ingest", extracted.screen / "manifest.csv", "--extractor", "cell_painting_cnn", "--set",
             f"model={extracted.model}", "--feature-set", "cnn", "--lake", extracted.lake, "--json")  # fmt: skip
    assert [row["outcome"] for row in call(*night).document] == ["unchanged", "unchanged"]
    assert call("status", "--lake", extracted.lake, "--json").document["faults"] == {}


def test_masked_models_are_given_masks(call, world, tmp_path):
    write(tmp_path / "masked", masked=True)
    at = ("--lake", world.lake, "--models", tmp_path, "--json")
    calls = []
    original = embedding.segment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding, "segment", lambda *given: calls.append(1) or original(*given))
        made = call("extract", "masked", *at).document
    assert [row["outcome"] for row in made] == ["added", "added"]
    assert len(calls) == 8
    ingested = ("ingest", world.screen / "manifest.csv", "--extractor", "cell_painting_cnn", "--set",
                f"model={tmp_path / 'masked'}", "--feature-set", "masked", "--lake", world.lake, "--json")  # fmt: skip
    assert [row["outcome"] for row in call(*ingested).document] == ["unchanged", "unchanged"]


def test_explain_draws_a_cell_and_says_what_it_shows(call, extracted, tmp_path):
    ((cell,),) = call(
        "sql",
        "SELECT concat_ws('/', source, batch, plate, well, field, cell) AS cell FROM cnn.cells JOIN main.wells "
        "USING (source, batch, plate, well) WHERE treatment = 'DMSO' ORDER BY ALL LIMIT 1",
        "--lake", extracted.lake, "--json",
    ).document[0].items(),  # fmt: skip
    cell = cell[1] if isinstance(cell, tuple) else cell
    out = tmp_path / "map.png"
    (shown,) = call(
        "explain", "cnn", "--cell", cell, "--out", out, "--lake", extracted.lake, "--json"
    ).document
    assert (shown["explained"], shown["treatment"], shown["classes"]) == ("DMSO", "DMSO", 2)
    assert shown["taken_for_probability"] >= max(shown["probability"], 0.5)
    with Image.open(out) as picture:
        assert picture.size[0] > 3 * 192
    (other,) = call("explain", "cnn", "--cell", cell, "--out", out, "--class", "synthol-01@2uM", "--lake",
                    extracted.lake, "--json").document  # fmt: skip
    assert other["probability"] == pytest.approx(1 - shown["probability"], abs=1e-5)


# ------------------------------------------------------------------------------------------ a picture


def test_a_picture_is_seen_in_the_light_of_its_plate(extracted):
    table = pl.read_csv(extracted.screen / "manifest.csv", infer_schema=False)
    row = table.row(1, named=True)
    images = [f"{channel}={extracted.screen / row[f'path_{channel}']}" for channel in CHANNELS]
    key = (row["source"], row["batch"], row["plate"])
    with Lake.open(extracted.lake, read_only=True) as lake:
        with pytest.raises(SearchError, match="'cnn' corrects the illumination of each plate: name the picture's "
                                              "plate with --plate source/batch/plate"):  # fmt: skip
            profile_of_images(lake, "cnn", "none", images)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(image_query, "images_of", lambda *_, **__: pl.DataFrame())
            with pytest.raises(
                SearchError, match=f"plate {'/'.join(key)} has no whole fields with channels DNA, RNA"
            ):
                profile_of_images(lake, "cnn", "none", images, plate=key)
        made = profile_of_images(lake, "cnn", "none", images, plate=key)
        query = "SELECT embedding FROM cnn.wells WHERE source = ? AND batch = ? AND plate = ? AND well = ?"
        stored = lake.value(query, [*key, row["well"]])
    np.testing.assert_allclose(made.vector, stored, rtol=1e-4, atol=1e-5)


def test_another_model_in_the_place_of_the_first_is_refused(extracted, tmp_path):
    write(tmp_path / "cnn", seed=1)
    with Lake.open(extracted.lake, read_only=True) as lake:
        target = feature_sets.find(lake, "cnn")
        assert remade(target, models=extracted.model.parent)[0].weights == target.weights
        with pytest.raises(
            SearchError, match=r"cell_painting_cnn 1 with weights .*cannot be had: .*it is another model"
        ):
            remade(target, models=tmp_path)
        with pytest.raises(SearchError, match="no/cnn: there is no such folder of a model"):
            remade(target, models=tmp_path / "no")
        assert remade(target, {"model": str(extracted.model)}, models=tmp_path)[0].weights == target.weights


# ------------------------------------------------------------------------------------------ methods


def test_methods_are_listed_with_what_can_be_set(call):
    listed = call("methods", "--json").document
    assert [row["method"] for row in listed] == [entry.name for entry in registry.ALL]
    assert {row["method"] for row in listed if row["trained"]} == {method.name for method in METHODS}
    for row in listed:
        settings = call("methods", row["method"], "--json").document
        assert settings, row["method"]
        assert all(each["help"] for each in settings), f"{row['method']}: a setting without a word on it"
    cnn = {row["setting"]: row for row in call("methods", "cell_painting_cnn", "--json").document}
    small = settings_of("cell_painting_cnn", "small").epochs
    assert (cnn["epochs"]["default"], cnn["epochs"]["small"]) == ("30", str(small)) != ("30", "30")
    assert (cnn["flips"]["default"], cnn["flips"]["small"]) == ("true", "")
    assert "One of none, cells, plates." in cnn["holdout"]["help"]
    shown = call("methods", "transfer").out
    assert "small" not in shown
    assert "tf_efficientnet_lite0" in shown


# ------------------------------------------------------------------------------------------ faults

Words = Callable[[World, Path], list[object]]
TRAIN = ("train", "cell_painting_cnn", "--preset", "small", "--set", "weights=none")
#: What is typed, and what the one line says.
BAD: dict[str, tuple[Words, str]] = {
    "unknown method": (lambda w, d: ["train", "cell_paint_cnn"], "unknown trained method 'cell_paint_cnn'. Did you mean 'cell_painting_cnn'?"),
    "a method that is not trained": (lambda w, d: ["train", "transfer"], "'transfer'"),
    "unknown method to list": (lambda w, d: ["methods", "transfr"], "unknown extractor 'transfr'. Did you mean 'transfer'?"),
    "unknown preset": (lambda w, d: ["train", "cell_painting_cnn", "--preset", "tiny"], "unknown preset 'tiny'"),
    "unknown setting": (lambda w, d: [*TRAIN, "--set", "epoch=3"], "unknown setting of cell_painting_cnn 'epoch'. Did you mean 'epochs'?"),
    "setting of another kind": (lambda w, d: [*TRAIN, "--set", "epochs=many"], "epochs is 'many': give a whole number"),
    "no cells": (lambda w, d: [*TRAIN, "--cells", "nothing"], "unknown feature set 'nothing'"),
    "no cell meets it": (lambda w, d: [*TRAIN, "--where", "plate = 'p9'"], "meets --where \"plate = 'p9'\""),
    "one class": (lambda w, d: [*TRAIN, "--where", "treatment = 'DMSO'"], "two treatments or more, and there is only 'DMSO'"),
    "a treatment with one cell": (lambda w, d: [*TRAIN, "--where", "treatment <> 'DMSO' OR (well || cell) = (SELECT min(well || cell) FROM transfer.cells)"], "cell"),
    "unknown channel": (lambda w, d: [*TRAIN, "--channels", "DNA,RMA"], "unknown channel 'RMA'. Did you mean 'RNA'?"),
    "no such model": (lambda w, d: ["extract", "new", "--model", d / "no"], "no: there is no such folder of a model"),
    "damaged model": (lambda w, d: ["extract", "new", "--model", damaged(d)], "card.json: is no model's card"),
    "unfinished model": (lambda w, d: ["extract", "new", "--model", begun(d)], "training is not done"),
    "nothing of this name": (lambda w, d: ["extract", "cnnn"], "unknown feature set or model 'cnnn'. Did you mean 'cnn'?"),
    "name taken by other settings": (lambda w, d: ["extract", "transfer", "--set", "size=20"], "with size 16, and here it has 20"),
    "name taken by another method": (lambda w, d: ["extract", "transfer", "--extractor", "cellprofiler"], "was made by transfer, not by cellprofiler"),
    "unknown plate": (lambda w, d: ["extract", "cnn", "--plate", "p9"], "unknown plate with images 'p9'"),
    "explain what is not trained": (lambda w, d: ["explain", "transfer", "--cell", "a", "--out", d / "x.png"], "was made by transfer, which is not trained here"),
    "no such cell": (lambda w, d: ["explain", "cnn", "--cell", "a/b", "--out", d / "x.png"], "no cell 'a/b': write SOURCE/BATCH/PLATE/WELL/FIELD/CELL, such as synthetic/"),
    "no such class": (lambda w, d: ["explain", "cnn", "--cell", cell_of(w), "--out", d / "x.png", "--class", "DMS"], "unknown class of cnn 'DMS'. Did you mean 'DMSO'?"),
    "no folder for the picture": (lambda w, d: ["explain", "cnn", "--cell", cell_of(w), "--out", d / "no" / "x.png"], "x.png: cannot be written"),
}  # fmt: skip


def damaged(folder: Path) -> Path:
    write(folder / "model")
    (folder / "model" / "card.json").write_text("{")
    return folder / "model"


def begun(folder: Path) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "settings.json").write_text("{}")
    return folder / "model"


def cell_of(world: World) -> str:
    with Lake.open(world.lake, read_only=True) as lake:
        return str(
            lake.value(
                "SELECT concat_ws('/', source, batch, plate, well, field, cell) FROM cnn.cells ORDER BY 1"
            )
        )


@pytest.mark.parametrize("case", BAD)
def test_each_fault_is_one_line(call, extracted, tmp_path, case):
    words, message = BAD[case]
    with Lake.open(extracted.lake, read_only=True) as lake:
        snapshot = lake.snapshot()
    typed = words(extracted, tmp_path)
    ended = call(*typed, *(() if typed[0] == "methods" else ("--lake", extracted.lake)))
    assert (ended.code, ended.out, ended.err.count("error: ")) == (1, "", 1)
    assert message in ended.err
    assert ended.err.strip().count("\n") == 0
    with Lake.open(extracted.lake, read_only=True) as lake:
        assert lake.snapshot() == snapshot


def test_failed_plates_are_told_and_the_command_ends_with_one(call, world, tmp_path):
    with Lake.create(tmp_path / "lake") as lake:
        screen = read_screen(world.screen / "manifest.csv", layout=world.screen / "layout.csv")
        moved = pl.col("path").str.replace(str(world.screen), str(tmp_path / "screen"), literal=True)
        (tmp_path / "screen").symlink_to(world.screen)
        screen = replace(screen, manifest=screen.manifest.with_columns(moved))
        ingest_screen(
            lake, screen, registry.create("transfer", CHANNELS, {"size": 16}), settings=PipelineSettings()
        )
    (tmp_path / "screen").unlink()
    ended = call("extract", "cnn", "--model", world.model, "--lake", tmp_path / "lake")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.count("error: plate 'SYNTH-B") == 2
    assert "is in the lake and is not there now: is the folder mounted?" in ended.err
    assert "note: 2 of 2 plates failed: mend what is wrong, then `wellhouse extract cnn` again" in ended.err


def test_paths_of_models_hold_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cnn").mkdir()
    given = {"model": "cnn", "weights": "package", "size": 64}
    assert whole_paths(given) == {"model": str(tmp_path / "cnn"), "weights": "package", "size": 64}
