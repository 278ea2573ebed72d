"""Training on what a lake knows: the same again, the same after a kill, and told beforehand where it cannot be."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from trained import CHANNELS, SIDE, TINY, Means, picture_lake

from extractors import registry
from extractors.base import SettingError
from extractors.pipeline import PipelineSettings, ingest_screen
from extractors.training import model_folder as folders
from extractors.training.callbacks import Log, NumbersOnly, effective_rank, read_log
from extractors.training.choosing import choose
from extractors.training.model_folder import alone, models_folder, read_model
from extractors.training.modules import rate
from extractors.training.run import TrainingReport, train
from extractors.training.settings import METHODS, PRESETS, Settings, settings_of
from warehouse.errors import TrainingError, UnknownNameError
from warehouse.known_cells import images_of, known_cells
from warehouse.lake import Lake
from warehouse.screens import read_screen

REPOSITORY = Path(__file__).parent.parent
SMALL = TINY | {"batch_size": 16}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return picture_lake(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def lake(path):
    with Lake.open(path, read_only=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def trained(lake: Lake, models: Path, method: str, name: str, **changed: object) -> TrainingReport:
    extra = {"bag_size": 4, "least_treated": 1, "most_treated": 3} if method == "attention_mil" else {}
    others = {key: changed.pop(key) for key in ("where", "fresh") if key in changed}
    settings = settings_of(method, None, SMALL | extra | changed)
    return train(lake, method, name=name, models=models, settings=settings, device="cpu", **others)


# ------------------------------------------------------------------------------------------ every method


def test_registry_and_settings_list_the_same_methods():
    assert {entry.name for entry in registry.ALL if entry.trains} == {method.name for method in METHODS}


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_every_method_trains_and_leaves_a_whole_folder(lake, models, method):
    report = trained(lake, models, method, method, holdout="cells", epochs=2)
    assert (report.outcome, report.epochs, report.classes, report.plates) == ("trained", 2, 4, 4)
    assert report.cells + report.held_out == 96
    model = read_model(models / method)
    assert model.card.identity() == report.identity
    assert model.card.channels == CHANNELS
    assert model.card.classes == ("A@10uM", "A@1uM", "B@1uM", "DMSO")
    assert {name.split(".")[0] for name in model.state} == {"network", "head"}
    rows = read_log(models / method / "log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["validation_loss"]) > 0 for row in rows)
    assert bool(rows[0]["f1"]) == (method != "metadata_guided")
    assert list((models / method / "tensorboard").iterdir())
    assert not (models / method / "state").exists()


def test_treatments_are_learned_and_shuffled_labels_are_not(lake, models):
    """Whatever is held out, cells of a kind are recognised; of labels dealt anew, none can be."""
    found = trained(lake, models, "cell_painting_cnn", "true", holdout="cells", epochs=10)
    dealt = trained(
        lake, models, "cell_painting_cnn", "dealt", holdout="cells", epochs=10, shuffle_labels=True
    )
    assert found.validation_accuracy > 0.75
    assert dealt.validation_accuracy < 0.5


# ------------------------------------------------------------------------------------------ the same again


def test_same_seed_same_model_and_another_seed_another(lake, models):
    one, two, other = (
        trained(lake, models, "cell_painting_cnn", f"seed_{i}", seed=seed) for i, seed in enumerate((1, 1, 2))
    )
    assert one.identity == two.identity != other.identity


KILLED = """
import sys
from pathlib import Path
from test_training import SMALL
from extractors.training.run import train
from extractors.training.settings import settings_of
from warehouse.lake import Lake
from warehouse.screens import read_screen

with Lake.open(sys.argv[1], read_only=True) as lake:
    train(lake, "online_label_smoothing", name="killed", models=Path(sys.argv[2]), device="cpu", say=print,
          settings=settings_of("online_label_smoothing", None, SMALL | {"epochs": 12, "patience": 11}))
"""


def test_a_killed_training_goes_on_to_the_very_same_model(lake, path, models, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{REPOSITORY / 'tests'}")
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", KILLED, str(path), str(models)], stdout=subprocess.PIPE
    )
    log = models / "killed" / "log.csv"
    waited = time.monotonic()
    while len(read_log(log)) < 3 and process.poll() is None and time.monotonic() < waited + 120:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 3 <= len(read_log(log)) < 12
    with pytest.raises(
        TrainingError, match=r"killed: training is not done: run the same `wellhouse train` again"
    ):
        read_model(models / "killed")
    changed = {"epochs": 12, "patience": 11}
    resumed = trained(lake, models, "online_label_smoothing", "killed", **changed)
    straight = trained(lake, models, "online_label_smoothing", "straight", **changed)
    assert (resumed.outcome, straight.outcome) == ("resumed", "trained")
    assert resumed.identity == straight.identity
    assert resumed.epochs == straight.epochs
    columns = ("epoch", "loss", "accuracy", "f1", "effective_rank", "learning_rate")
    for one, other in zip(read_log(log), read_log(models / "straight" / "log.csv"), strict=True):
        assert [one[name] for name in columns] == [other[name] for name in columns]


def test_what_is_trained_is_not_trained_again(lake, models):
    first = trained(lake, models, "cell_painting_cnn", "twice", epochs=1)
    stamp = (models / "twice" / "model.safetensors").stat().st_mtime_ns
    again = trained(lake, models, "cell_painting_cnn", "twice", epochs=1)
    assert (again.outcome, again.identity) == ("complete", first.identity)
    assert (models / "twice" / "model.safetensors").stat().st_mtime_ns == stamp


def test_other_settings_and_other_cells_are_no_way_to_go_on(lake, models):
    trained(lake, models, "cell_painting_cnn", "other", epochs=1)
    with pytest.raises(
        TrainingError, match=r"begun with epochs 1, now 2: give another --name, or .* --fresh"
    ):
        trained(lake, models, "cell_painting_cnn", "other", epochs=2)
    with pytest.raises(TrainingError, match=r"begun with where None, now \"compound <> 'B'\""):
        trained(lake, models, "cell_painting_cnn", "other", epochs=1, where="compound <> 'B'")
    begun = models / "other" / "settings.json"
    begun.write_text(begun.read_text().replace('"cells": "', '"cells": "0'))
    with pytest.raises(TrainingError, match=r"the cells or their labels changed"):
        trained(lake, models, "cell_painting_cnn", "other", epochs=1)
    assert trained(lake, models, "cell_painting_cnn", "other", epochs=2, fresh=True).outcome == "trained"
    assert len(read_log(models / "other" / "log.csv")) == 2


def test_patience_stops_and_keeps_the_best(lake, models):
    report = trained(
        lake,
        models,
        "cell_painting_cnn",
        "patient",
        epochs=40,
        patience=1,
        stop_on="training_loss",
        learning_rate=0.05,
    )
    losses = [float(row["loss"]) for row in read_log(models / "patient" / "log.csv")]
    assert report.epochs == len(losses) < 40
    assert losses[-1] >= min(losses) == losses[-2]
    shorter = trained(
        lake, models, "cell_painting_cnn", "shorter", epochs=len(losses) - 1, stop_on="training_loss",
        learning_rate=0.05,
    )  # fmt: skip
    kept, best = (load_file(models / name / "model.safetensors") for name in ("patient", "shorter"))
    assert shorter.epochs == len(losses) - 1
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, best[name])


# ------------------------------------------------------------------------------------------ what cannot be trained on


def test_a_class_of_one_cell_is_refused_or_left_out(tmp_path):
    few = {f"{plate} A04": 0 for plate in ("P1", "P2", "P3")} | {"P4 A04": 1}
    with Lake.open(picture_lake(tmp_path / "few", cells=3, skip=few), read_only=True) as lake:
        with pytest.raises(
            TrainingError, match=r"1 treatments have one cell \(first: 'B@1uM'\).*--set least_cells=2"
        ):
            trained(lake, tmp_path, "cell_painting_cnn", "x")
        chosen = choose(
            lake, known_cells(lake).rows, settings_of("cell_painting_cnn", None, {"least_cells": 2})
        )
        assert chosen.cells.classes == ("A@10uM", "A@1uM", "DMSO")
        assert chosen.notes == ("1 treatments with fewer than 2 cells left out (1 cells; first: 'B@1uM')",)
    assert not (tmp_path / "crops").exists()


def test_one_class_is_refused(lake, tmp_path):
    with pytest.raises(
        TrainingError, match=r"two treatments or more, and there is only 'DMSO' among 48 cells"
    ):
        trained(lake, tmp_path, "cell_painting_cnn", "x", where="compound = 'DMSO'")


def test_bags_need_controls(lake, tmp_path):
    with pytest.raises(TrainingError, match=r"none of these cells is one: keep them in --where"):
        trained(lake, tmp_path, "attention_mil", "x", where="compound <> 'DMSO'")


def test_methods_that_are_not_trained_and_unknown_ones_say_so(lake, tmp_path):
    with pytest.raises(TrainingError, match=r"transfer: nothing of it is trained"):
        train(lake, "transfer", name="x", models=tmp_path, settings=Settings())
    with pytest.raises(UnknownNameError, match=r"unknown extractor 'cnn'"):
        train(lake, "cnn", name="x", models=tmp_path, settings=Settings())


def test_a_loss_that_is_no_number_stops_with_its_batch(lake, models):
    wanted = r"the loss is (nan|inf) in epoch \d+, step \d+: its batch of 16 cells is saved as"
    with pytest.raises(TrainingError, match=wanted) as told:
        trained(lake, models, "cell_painting_cnn", "nan", optimizer="sgd", learning_rate=1e18)
    assert "now 1e+18" in str(told.value)
    batch = load_file(models / "nan" / "not_finite.safetensors")
    assert batch["pixels"].shape == (16, 2, 32, 32)
    with (models / "nan" / "not_finite.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = known_cells(lake).rows
    assert [row["treatment"] for row in rows] == [known["treatment"][int(row)] for row in batch["row"]]
    assert not (models / "nan" / "card.json").exists()


def test_what_cannot_work_takes_no_former_model_away(lake, models):
    trained(lake, models, "gradient_reversal", "former", epochs=1)
    whole = read_model(models / "former").card.identity()
    begun = {"name": "former", "models": models, "fresh": True}
    settings = settings_of("gradient_reversal", None, SMALL)
    for arguments, wanted in (
        ({"precision": "bogus"}, r"unknown precision 'bogus'"),
        ({"devices": 0}, r"devices is 0: give 1 or more"),
        ({"workers": -1}, r"workers is -1: give 0 or more"),
    ):
        with pytest.raises((UnknownNameError, SettingError), match=wanted):
            train(lake, "gradient_reversal", settings=settings, **begun, **arguments)
    bags = settings_of("attention_mil", None, SMALL)
    with pytest.raises(TrainingError, match=r"none of these cells is one"):
        train(lake, "attention_mil", settings=bags, where="compound <> 'DMSO'", **begun)
    assert read_model(models / "former").card.identity() == whole


def test_one_name_is_trained_by_one_process(lake, models):
    with (
        alone(models / "busy"),
        pytest.raises(TrainingError, match=r"busy is being trained by another process"),
    ):
        trained(lake, models, "cell_painting_cnn", "busy", epochs=1)
    assert trained(lake, models, "cell_painting_cnn", "busy", epochs=1).outcome == "trained"


def test_the_folder_of_crops_is_no_model(lake, models):
    with pytest.raises(TrainingError, match=r"model name 'crops': .* holds the crops of all models"):
        trained(lake, models, "cell_painting_cnn", "crops")


def test_a_stop_that_could_not_be_written_is_not_trained_past(lake, models, monkeypatch):
    changed = {"epochs": 40, "patience": 1, "stop_on": "training_loss", "learning_rate": 0.05}
    straight = trained(lake, models, "cell_painting_cnn", "stopped", **changed)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(folders, "write_model", full)
        with pytest.raises(OSError, match="No space left"):
            trained(lake, models, "cell_painting_cnn", "late", **changed)
    late = trained(lake, models, "cell_painting_cnn", "late", **changed)
    assert (late.outcome, late.epochs, late.identity) == ("resumed", straight.epochs, straight.identity)


def test_a_signal_that_ends_a_job_is_no_success(lake, models, monkeypatch):
    def ended(self: object, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Log, "on_train_epoch_end", ended)
    with pytest.raises(
        TrainingError, match=r"training of 'ended' was stopped after 0 whole epochs: the same command"
    ):
        trained(lake, models, "cell_painting_cnn", "ended")


@pytest.mark.parametrize("content", [b"cut short", b"\x80\x04c__builtin__\nprint\n."])
def test_a_damaged_checkpoint_is_told(lake, models, content):
    """Interrupted in its second epoch, and its checkpoint damaged, or replaced by what would run code."""
    name = f"damaged_{len(content)}"

    def interrupt(self: object, trainer: object, module: Any, *_: object) -> None:
        if module.current_epoch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(NumbersOnly, "on_train_batch_start", interrupt)
        with pytest.raises(TrainingError, match=r"was stopped after 1 whole epochs"):
            trained(lake, models, "cell_painting_cnn", name)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    (models / name / "state" / "last.ckpt").write_bytes(content)
    with pytest.raises(
        TrainingError, match=r"last.ckpt: is damaged, or no checkpoint of a training: .* --fresh"
    ):
        trained(lake, models, "cell_painting_cnn", name)


def test_a_foreign_log_is_told(tmp_path):
    (tmp_path / "log.csv").write_text("time,value\n1,2\n")
    with pytest.raises(TrainingError, match=r"log.csv: is not the log of a training"):
        read_log(tmp_path / "log.csv")


def test_weights_that_are_no_numbers_after_the_last_step_stop_too(lake, models):
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 1, .*its batch of 96 cells is saved"):
        trained(
            lake, models, "cell_painting_cnn", "last", epochs=1, batch_size=96, cells_per_class=24, optimizer="sgd",
            learning_rate=1e38, momentum=0.0,
        )  # fmt: skip
    assert not (models / "last" / "card.json").exists()


def test_plates_known_well_stop_no_training(lake, models):
    """What is logged, and may stop training, is the loss of treatments: that of plates is not in it."""
    trained(lake, models, "gradient_reversal", "reversed", epochs=1, reversal=0.0)
    trained(lake, models, "cell_painting_cnn", "plain", epochs=1)
    one, other = (float(read_log(models / name / "log.csv")[0]["loss"]) for name in ("reversed", "plain"))
    assert one == pytest.approx(other, rel=0.05)  # the loss of four plates would add 1.4


@pytest.mark.parametrize(("widths", "read"), [("64", (64,)), (" 8, 4 ", (8, 4))])
def test_widths_of_the_domain_are_read(widths, read):
    assert settings_of("gradient_reversal", None, {"domain_layers": widths}).domain_widths() == read


@pytest.mark.parametrize("widths", ["", "abc", "-5", "1 024", "8,,4"])
def test_widths_that_are_none_are_told(widths):
    with pytest.raises(
        SettingError, match=rf"setting domain_layers is {widths!r}: give widths such as 1024,512,128"
    ):
        settings_of("gradient_reversal", None, {"domain_layers": widths})


# ------------------------------------------------------------------------------------------ which cells


def test_held_out_plates_are_whole_and_their_treatments_train(lake):
    cells = choose(
        lake, known_cells(lake).rows, settings_of("cell_painting_cnn", None, {"holdout": "plates"})
    ).cells
    held = set(cells.plates[cells.is_held_out])
    assert held
    assert held.isdisjoint(cells.plates[~cells.is_held_out])
    assert set(cells.labels) == set(cells.labels[~cells.is_held_out])


def test_strong_treatments_are_chosen_by_their_wells(lake):
    """A at 10 uM, the widest spot, is by far the brightest in DNA: of means, the strongest; controls stay."""
    settings = settings_of(
        "cell_painting_cnn", None, {"strong_by": "means", "strongest": 1, "least_cells": 2}
    )
    chosen = choose(lake, known_cells(lake).rows, settings)
    assert chosen.cells.classes == ("A@10uM", "DMSO")
    assert chosen.notes[0].startswith("1 of 3 treatments are trained on, by strength in means; left out: 2 ")


def test_control_wells_are_capped(lake):
    rows = known_cells(lake).rows
    doubled = pl.concat(
        [rows, rows.filter(pl.col("well") == "A01").with_columns(pl.lit("H12").alias("well"))]
    )
    chosen = choose(lake, doubled, settings_of("cell_painting_cnn", None, {"control_wells": 1}))
    assert int(chosen.cells.is_control.sum()) == 16
    assert chosen.notes == ("48 cells of negative controls beyond 1 wells a plate left out",)


def test_cells_of_wells_without_treatment_are_told(lake):
    rows = known_cells(lake).rows.with_columns(
        treatment=pl.when(pl.col("plate") == "P1").then(None).otherwise(pl.col("treatment"))
    )
    chosen = choose(lake, rows, Settings())
    assert len(chosen.cells) == 72
    assert chosen.notes == ("24 cells of wells without a treatment are not trained on",)
    assert chosen.cells.rows.tolist() == np.flatnonzero(rows["plate"].to_numpy() != "P1").tolist()


# ------------------------------------------------------------------------------------------ devices


def test_a_gpu_that_is_not_there_is_told_before_anything_is_cut(lake, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SettingError, match=r"train: device 'cuda' was asked for and torch sees no GPU"):
        train(lake, "cell_painting_cnn", name="x", models=tmp_path, settings=Settings(), device="cuda")
    assert not (tmp_path / "crops").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_training_on_a_gpu(lake, models, precision):
    settings = settings_of("cell_painting_cnn", None, SMALL | {"epochs": 10, "holdout": "cells"})
    report = train(
        lake, "cell_painting_cnn", name=f"gpu_{precision[:2]}", models=models, settings=settings, device="cuda",
        precision=precision, workers=2,
    )  # fmt: skip
    assert report.validation_accuracy > 0.7


def by_two_processes(path: Path, models: Path, name: str, changed: dict[str, object]) -> dict[str, Any]:
    """Train as the command line does: Lightning starts the second process by the same command."""
    command = ["train", "cell_painting_cnn", "--lake", str(path), "--models", str(models), "--name", name]
    for key, value in (SMALL | changed).items():
        command += ["--set", f"{key}={value}"]
    command += ["--device", "cpu", "--devices", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "cli", *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LONG = pytest.mark.skipif(not os.environ.get("WELLHOUSE_LONG"), reason="long form: make proofs")


@LONG
def test_two_processes_share_the_steps_of_an_epoch(path, models):
    """On a CPU two processes do what two GPUs would: halves of the steps each, one model, one log."""
    report = by_two_processes(path, models, "two", {"epochs": 12, "holdout": "cells"})
    assert (report["outcome"], report["epochs"]) == ("trained", 12)
    assert report["validation_accuracy"] > 0.6
    assert read_model(models / "two").card.identity() == report["identity"]
    assert len(read_log(models / "two" / "log.csv")) == 12


@LONG
def test_two_processes_stop_together(path, models):
    """Each has batch statistics, and so a criterion, of its own: one of them decides."""
    report = by_two_processes(path, models, "together", {"epochs": 40, "patience": 1, "learning_rate": 0.05})
    assert report["epochs"] < 40


def test_a_feature_set_of_fewer_channels_takes_none_from_the_others(tmp_path):
    folder = picture_lake(tmp_path / "two").parent
    screen = read_screen(folder / "manifest.csv", layout=folder / "layout.csv")
    with Lake.open(folder / "lake") as lake:
        before = images_of(lake, ("s", "b1", "P1"))
        one = Means(("RNA",))
        ingest_screen(lake, screen, one, feature_set="one")
        assert images_of(lake, ("s", "b1", "P1"), CHANNELS).height == before.height
        assert {tuple(sorted(each)) for each in images_of(lake, ("s", "b1", "P1"))["channels"]} == {CHANNELS}
        files = before.explode("channels", "paths", "planes", "digests").sort(pl.all())
        after = (
            images_of(lake, ("s", "b1", "P1"))
            .explode("channels", "paths", "planes", "digests")
            .sort(pl.all())
        )
        assert after.equals(files.select(after.columns))
        ingest_screen(
            lake, screen, Means(("DNA",)), feature_set="other", settings=PipelineSettings(replace=True)
        )
        assert images_of(lake, ("s", "b1", "P1"), CHANNELS).is_empty()


# ------------------------------------------------------------------------------------------ small parts


def test_learning_rates_rise_and_fall():
    settings = settings_of("cell_painting_cnn", None, {"schedule": "cosine", "warmup": 2, "epochs": 6})
    assert [round(rate(settings, epoch), 4) for epoch in range(6)] == [
        0.3333,
        0.6667,
        1.0,
        0.8536,
        0.5,
        0.1464,
    ]
    assert rate(Settings(), 17) == 1.0


def test_effective_rank_by_hand():
    """Three equal directions: 3. One direction: 1."""
    assert effective_rank(torch.eye(3)) == pytest.approx(3, abs=1e-6)
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1, abs=1e-6)


def test_models_of_a_lake_lie_in_its_folder(lake, path):
    assert models_folder(lake) == path / "models"
    assert models_folder(lake, "elsewhere") == Path("elsewhere")


def test_a_model_that_was_changed_is_not_used(lake, models, tmp_path):
    trained(lake, models, "cell_painting_cnn", "whole", epochs=1)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    card = json.loads((models / "whole" / "card.json").read_text())
    (damaged / "model.safetensors").write_bytes((models / "whole" / "model.safetensors").read_bytes())
    (damaged / "card.json").write_text(json.dumps(card | {"mean": [0.0, 0.0]}))
    with pytest.raises(
        TrainingError, match=rf"says identity {card['identity'][:16]}.*it was changed by hand"
    ):
        read_model(damaged)
    (damaged / "card.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"is no model's card \(KeyError: 'method'\)"):
        read_model(damaged)
    (damaged / "card.json").write_text((models / "whole" / "card.json").read_text())
    (damaged / "model.safetensors").write_bytes((models / "true" / "model.safetensors").read_bytes())
    with pytest.raises(
        TrainingError, match=rf"card.json says {card['weights'][:16]}.*do not belong together"
    ):
        read_model(damaged)
    with pytest.raises(TrainingError, match=r"nowhere: there is no such folder of a model"):
        read_model(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match=r"holds no card.json, so it is no folder of a model"):
        read_model(tmp_path)


@pytest.mark.parametrize("method", [method.name for method in METHODS])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_settings(method, preset):
    made = settings_of(method, preset)
    assert (made.epochs >= 30) == (preset == "paper")
    assert (made.weights == "hub") == (preset == "paper" and method != "pseudo_classification")


def test_pictures_are_as_small_as_they_say(lake):
    assert known_cells(lake).is_crops
    assert TINY["crop"] > SIDE
