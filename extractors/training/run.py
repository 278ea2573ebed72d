"""Training a method on the cells that a lake knows: checked, cut, trained, written; taken up again after a kill."""

import logging
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from time import monotonic
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from extractors import registry
from extractors.training import model_folder as folders
from extractors.training.callbacks import (
    read_log,
)
from extractors.training.card import Card, differing
from extractors.training.choosing import Chosen, choose
from extractors.training.crops import CropSettings
from extractors.training.data import CropData
from extractors.training.lightning_side import accelerator_of, fit, trainer_of
from extractors.training.model_folder import models_folder
from extractors.training.modules import Learner
from extractors.training.networks import create, layers_of
from extractors.training.settings import Settings
from extractors.training.store import CropStore
from warehouse import __version__
from warehouse.errors import TrainingError
from warehouse.known_cells import KnownCells, known_cells
from warehouse.lake import Lake

__all__ = ["TrainingReport", "models_folder", "train"]


#: Threads that cut crops.
_THREADS = min(cpu_count() or 1, 16)
#: Processes that read ahead of a GPU.
_READERS = min(cpu_count() or 1, 8)


@dataclass(frozen=True)
class TrainingReport:
    """What became of a training.

    Attributes:
        name: of the model.
        method: of the registry.
        outcome: `trained`, `resumed` (taken up where it was stopped), or `complete` (nothing was left to do).
        identity: of the model, SHA-256.
        cells: that were trained on.
        held_out: cells that were validated on.
        plates: that they are from.
        classes: that were told apart.
        epochs: that ran, of this call and of former ones.
        loss: of the last epoch.
        accuracy: on training cells in the last epoch; None where the method classifies nothing.
        validation_accuracy: on held-out cells; None where none were held out.
        seconds: of this call.
        folder: of the model.
        notes: what a person should know.
    """

    name: str
    method: str
    outcome: str
    identity: str
    cells: int
    held_out: int
    plates: int
    classes: int
    epochs: int
    loss: float | None
    accuracy: float | None
    validation_accuracy: float | None
    seconds: float
    folder: str
    notes: tuple[str, ...]


def train(
    lake: Lake,
    method: str,
    *,
    name: str,
    models: Path,
    settings: Settings,
    cells_of: str | None = None,
    where: str | None = None,
    channels: tuple[str, ...] | None = None,
    device: str = "auto",
    devices: int = 1,
    precision: str = "32",
    workers: int = 0,
    fresh: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    bars: bool = False,
) -> TrainingReport:
    """Train a method, and write the model's folder.

    Called again with the same settings and cells it goes on where it was stopped, to the very model that it would
    have come to (on a CPU), or finds that nothing is left to do.

    Args:
        lake: open for reading.
        method: a trained method of the registry.
        name: of the model's folder, and of the feature set to come.
        models: folder of models; crops are kept in `crops` there.
        settings: of `settings_of`.
        cells_of: feature set whose cells they are; None for the one there is.
        where: SQL predicate over cells.
        channels: in order; None for those of the feature set.
        device: `auto`, `cpu` or `cuda`.
        devices: how many GPUs, or on a CPU processes, share the steps of an epoch out; steps beyond a multiple of
            their number are left out of it.
        precision: of Lightning: `32`, `bf16-mixed`, `16-mixed`.
        workers: processes that read crops ahead; 0 for none on a CPU, which is busy anyway, and up to 8 beside a GPU.
        fresh: begin again, whatever the folder holds.
        progress: told of crops that are cut: plate, done, total.
        say: told of each epoch in a line.
        bars: show a bar for each epoch on stderr.

    Raises:
        TrainingError: the cells cannot be trained on, or the folder holds a training of other settings; before
            any step. A loss that is not finite: its batch is saved.
        WeightsError: the weights to begin with do not fit.
        SettingError: a setting that the network does not take, or a device that is not there.
        UnknownNameError: an unknown method, feature set, network, device or precision.
    """
    started = monotonic()
    learner = _learner_of(method)
    accelerator = accelerator_of(device, devices, precision, workers)
    folder = folders.folder_of(models, name)
    # Of several processes, which Lightning starts by the same command, the first holds the folder for all.
    is_first = rank_zero_only.rank in (None, 0)
    with folders.alone(folder) if is_first else nullcontext():
        known = known_cells(lake, cells_of=cells_of, where=where, channels=channels)
        asked: dict[str, Any] = {
            "method": method, "version": learner.version, "channels": list(known.channels), "where": where,
            "settings": settings.as_dict(), "cells_of": known.feature_set.name,
        }  # fmt: skip
        if not fresh:
            _refuse_other(folder, asked)
        is_done = folders.is_trained(folder) and not fresh
        # What cannot be trained on is told before anything is cut.
        first = choose(lake, known.rows, settings)
        module = None if is_done else _made(learner, known, settings, first)
        store = CropStore.open_or_cut(
            models / folders.CROPS,
            lake,
            known,
            CropSettings.of(settings.as_dict()),
            workers=_THREADS,
            progress=progress,
        )
        chosen = choose(lake, store.rows, settings)
        notes = (*_left_out(known, store), *chosen.notes)
        asked |= {"crops": store.digest, "cells": folders.digest_of(chosen.fingerprint())}
        if not fresh:
            _refuse_other(folder, asked)
        if module is None:
            shutil.rmtree(folder / folders.STATE, ignore_errors=True)  # a kill may have left it
            card = folders.read_model(folder).card
            return _report(name, card, chosen, folder, "complete", monotonic() - started, notes)
        if chosen.cells.counts() != first.cells.counts():  # images that cannot be read were a class's last
            module = _made(learner, known, settings, chosen)
        mean, std = _scale(store, chosen)
        module.scale_by(mean, std)
        data = CropData(
            store, chosen.cells, module.plan, module.validate, batch_size=settings.batch_size, seed=settings.seed,
            workers=workers or (_READERS if accelerator == "gpu" else 0),
        )  # fmt: skip
        trainer, patience = trainer_of(settings, accelerator, devices, precision, folder, data, say, bars)
        if fresh and is_first:
            _clear(folder)
        (folder / folders.STATE).mkdir(parents=True, exist_ok=True)
        if is_first:
            folders.write_text(folder / folders.SETTINGS, folders.json_text(asked))
        is_resumed = fit(trainer, module, data, folder, patience)
        if trainer.is_global_zero:
            kept = patience.best() if patience.patience else module.kept()
            _refuse_not_finite(kept, folder)
            began_with = {"precision": precision, "initial_weights": module.network.weights_sha256}
            rows = read_log(folder / folders.LOG)
            folders.write_model(
                folder, kept, lambda weights: _card(asked, chosen, lake, mean, std, rows, weights, began_with)
            )
            shutil.rmtree(folder / folders.STATE, ignore_errors=True)  # there is nothing to take up again
        trainer.strategy.barrier()
        card = folders.read_model(folder).card
    outcome = "resumed" if is_resumed else "trained"
    return _report(name, card, chosen, folder, outcome, monotonic() - started, notes)


def _made(learner: type[Learner], known: KnownCells, settings: Settings, chosen: Chosen) -> Learner:
    """Make what is trained, and plan an epoch: settings and cells that do not go together are told here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # tips, and what the report says anyway
    lightning.seed_everything(settings.seed, verbose=False)
    network = create(
        settings.network, len(known.channels), layers=layers_of(settings.layer), weights=settings.weights,
        size=settings.size or settings.crop,
    )  # fmt: skip
    module = learner(network, settings, chosen.cells.counts())
    held_out = chosen.cells.is_held_out
    module.plan(chosen.cells, np.flatnonzero(~held_out), np.random.default_rng(0))
    if held_out.any() and module.validate is not None:
        try:
            module.validate(chosen.cells, np.flatnonzero(held_out), np.random.default_rng(0))
        except TrainingError as error:
            message = f"among the {int(held_out.sum())} cells that are held out: {error}"
            raise TrainingError(message) from error
    return module


def _scale(store: CropStore, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
    """Measure the mean and standard deviation of each channel over the training cells."""
    training = chosen.cells.rows[~chosen.cells.is_held_out]
    mean, std = store.statistics(training)
    for channel, spread in zip(store.channels, std, strict=True):
        if not spread > 0:
            message = (
                f"channel {channel!r} has one value in all crops of the {len(training)} training cells: nothing can be "
                "learned from it: leave it out with --channels, or take other cells with --where"
            )
            raise TrainingError(message)
    return mean, std


def _refuse_not_finite(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    wrong = next((name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())), None)
    if wrong is not None:
        message = (
            f"{folder}: tensor {wrong!r} is not finite after the last epoch: lower learning_rate or set clip_gradient, "
            "and train with --fresh"
        )
        raise TrainingError(message)


def _learner_of(method: str) -> type[Learner]:
    target = registry.entry(method).trains
    if target is None:
        trained = ", ".join(entry.name for entry in registry.ALL if entry.trains)
        message = f"{method}: nothing of it is trained: extract with it at once, or train one of {trained}"
        raise TrainingError(message)
    found: type[Learner] = registry.loaded(target)
    return found


def _refuse_other(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse to go on with a training of other settings or cells: its model would be neither one nor the other."""
    if not (folder / folders.SETTINGS).is_file():
        return
    was = folders.read_json(folder / folders.SETTINGS)
    flat_was, flat_now = ({**each, **each["settings"], "settings": None} for each in (was, asked))
    flat_was = {
        key: value for key, value in flat_was.items() if key in flat_now
    }  # the rest is compared later
    found = differing(flat_was, flat_now)
    if found is None:
        return
    what = {
        "crops": "the cells' images or their settings changed",
        "cells": "the cells or their labels changed",
    }
    reason = what.get(found.split(" ")[0], f"it was begun with {found}")
    message = f"{folder} holds another training: {reason}: give another --name, or begin again with --fresh"
    raise TrainingError(message)


def _clear(folder: Path) -> None:
    """Take a former training away, the card first: from then on there is no model."""
    (folder / folders.CARD).unlink(missing_ok=True)
    for name in (folders.SETTINGS, folders.WEIGHTS, folders.LOG, "not_finite.safetensors", "not_finite.csv"):
        (folder / name).unlink(missing_ok=True)
    for name in (folders.STATE, "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _left_out(known: KnownCells, store: CropStore) -> tuple[str, ...]:
    """Say what was left out, and why, and which channels are empty in some crops."""
    left = (f"{n} cells left out: {why}" for part in (known, store) for why, n in part.left_out.items())
    empty = (
        f"channel {name!r} has one value in {n} of {len(store)} crops"
        for name, n in store.constant.items()
        if n
    )
    return (*left, *empty)


def _card(
    asked: dict[str, Any],
    chosen: Chosen,
    lake: Lake,
    mean: np.ndarray,
    std: np.ndarray,
    rows: list[dict[str, str]],
    weights: str,
    began_with: dict[str, Any],
) -> Card:
    last = rows[-1] if rows else {}
    data = {key: asked[key] for key in ("cells_of", "where", "crops", "cells")} | {
        "lake": lake.address,
        "snapshot": lake.snapshot(),
        "trained_on": int((~chosen.cells.is_held_out).sum()),
        "held_out": int(chosen.cells.is_held_out.sum()),
    }
    training = {
        "epochs": len(rows),
        **began_with,
        "torch": torch.__version__,
        "last": {
            key: value for key, value in last.items() if value and key not in ("seconds", "cells_per_second")
        },
    }
    return Card(
        asked["method"], asked["version"], tuple(asked["channels"]), asked["settings"],
        tuple(round(float(value), 9) for value in mean), tuple(round(float(value), 9) for value in std),
        chosen.cells.classes, data, training, __version__, weights,
    )  # fmt: skip


def _report(
    name: str, card: Card, chosen: Chosen, folder: Path, outcome: str, seconds: float, notes: tuple[str, ...]
) -> TrainingReport:
    last = card.training["last"]
    numbers = (
        float(last[key]) if key in last else None for key in ("loss", "accuracy", "validation_accuracy")
    )
    cells = chosen.cells
    training = ~cells.is_held_out
    return TrainingReport(
        name, card.method, outcome, card.identity(), int(training.sum()), int((~training).sum()),
        len(np.unique(cells.plates)), len(cells.classes), int(card.training["epochs"]), *numbers, seconds, str(folder),
        notes,
    )  # fmt: skip
