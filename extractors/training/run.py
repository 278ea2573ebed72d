"""Training a method on the cells that a lake knows: checked, cut, trained, written; taken up again after a kill."""

import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from extractors import registry
from extractors.devices import device_of
from extractors.training import model_folder as folders
from extractors.training.callbacks import EffectiveRank, Log, NumbersOnly, Patience, read_log
from extractors.training.card import Card, differing
from extractors.training.choosing import Chosen, choose
from extractors.training.crops import CropSettings
from extractors.training.data import CropData
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


def crop_settings(settings: Settings) -> CropSettings:
    """Give the part of the settings that decides a crop's pixels."""
    return CropSettings(
        crop=settings.crop, size=settings.size or None, clip=(settings.clip_low, settings.clip_high),
        dtype=settings.pixels, illumination=settings.illumination, masked=settings.masked,
    )  # fmt: skip


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
        devices: how many GPUs share a step, or on a CPU processes; the steps of an epoch are shared out.
        precision: of Lightning: `32`, `bf16-mixed`, `16-mixed`.
        workers: processes that read crops ahead.
        fresh: begin again, whatever the folder holds.
        progress: told of crops that are cut: plate, done, total.
        say: told of each epoch in a line.
        bars: show a bar for each epoch on stderr.

    Raises:
        TrainingError: the cells cannot be trained on, or the folder holds a training of other settings; before
            any step. A loss that is not finite: its batch is saved.
        WeightsError: the weights to begin with do not fit.
        SettingError: a setting that the network does not take, or a device that is not there.
        UnknownNameError: an unknown method, feature set or network.
    """
    started = monotonic()
    learner = _learner_of(method)
    accelerator = _accelerator(device)
    folder = folders.folder_of(models, name)
    known = known_cells(lake, cells_of=cells_of, where=where, channels=channels)
    choose(lake, known.rows, settings)  # what cannot be trained on is told before anything is cut
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # tips, and what the report says anyway
    lightning.seed_everything(settings.seed, verbose=False)
    network = create(
        settings.network, len(known.channels), layers=layers_of(settings.layer), weights=settings.weights,
        size=settings.size or settings.crop,
    )  # fmt: skip
    store = CropStore.open_or_cut(models / "crops", lake, known, crop_settings(settings), progress=progress)
    chosen = choose(lake, store.rows, settings)
    notes = (*_left_out(known, store), *chosen.notes)
    asked: dict[str, Any] = {
        "method": method, "version": learner.version, "channels": list(known.channels), "settings": settings.as_dict(),
        "cells_of": known.feature_set.name, "where": where, "crops": store.digest,
        "cells": folders.digest_of(chosen.fingerprint()),
    }  # fmt: skip
    if not fresh:
        _refuse_other(folder, asked)
        if folders.is_trained(folder):
            card = folders.read_model(folder).card
            return _report(name, card, chosen, folder, "complete", monotonic() - started, notes)
    # Of several processes, which Lightning starts by the same command, the first has cleared the folder.
    if fresh and rank_zero_only.rank in (None, 0):
        _clear(folder)
    mean, std = store.statistics(chosen.cells.rows[~chosen.cells.is_held_out])
    module = learner(network, settings, chosen.cells.counts(), mean, std)
    data = CropData(
        store, chosen.cells, module.plan, module.validate, batch_size=settings.batch_size, seed=settings.seed,
        workers=workers,
    )  # fmt: skip
    (folder / folders.STATE).mkdir(parents=True, exist_ok=True)
    folders.write_text(folder / folders.SETTINGS, folders.json_text(asked))
    trainer, patience = _trainer(settings, accelerator, devices, precision, folder, data, say, bars)
    kept, is_resumed = _fitted(trainer, module, data, folder, patience)
    if trainer.is_global_zero:
        began_with = {"precision": precision, "initial_weights": network.weights_sha256}
        rows = read_log(folder / folders.LOG)
        folders.write_model(
            folder, kept, lambda weights: _card(asked, chosen, lake, mean, std, rows, weights, began_with)
        )
        shutil.rmtree(folder / folders.STATE, ignore_errors=True)  # there is nothing to take up again
    trainer.strategy.barrier()
    outcome = "resumed" if is_resumed else "trained"
    card = folders.read_model(folder).card
    return _report(name, card, chosen, folder, outcome, monotonic() - started, notes)


def _fitted(
    trainer: lightning.Trainer, module: Learner, data: CropData, folder: Path, patience: Patience
) -> tuple[dict[str, torch.Tensor], bool]:
    """Train to the end, from where a former call stopped: the model's tensors, and whether there was such a call."""
    last = folder / folders.STATE / "last.ckpt"
    is_resumed = last.is_file()
    with warnings.catch_warnings():
        # Lightning's advice on workers and on logging is not the user's to take.
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data, ckpt_path=last if is_resumed else None, weights_only=True)
    return (patience.best() if patience.patience else module.kept()), is_resumed


def _learner_of(method: str) -> type[Learner]:
    target = registry.entry(method).trains
    if target is None:
        trained = ", ".join(entry.name for entry in registry.ALL if entry.trains)
        message = f"{method}: nothing of it is trained: extract with it at once, or train one of {trained}"
        raise TrainingError(message)
    found: type[Learner] = registry.loaded(target)
    return found


def _accelerator(device: str) -> str:
    return "gpu" if device_of(device, "train").type == "cuda" else "cpu"


def _trainer(
    settings: Settings,
    accelerator: str,
    devices: int,
    precision: str,
    folder: Path,
    data: CropData,
    say: Callable[[str], None] | None,
    bars: bool,
) -> tuple[lightning.Trainer, Patience]:
    """Make Lightning's trainer, and what keeps the best model."""
    state = folder / folders.STATE
    patience = Patience(state, settings.stop_on, settings.patience)
    callbacks = [
        NumbersOnly(folder, lambda rows: data.store.rows[rows.numpy()].to_dicts()),
        EffectiveRank(data),
        patience,
        Log(folder / folders.LOG, say),
        # The last: a checkpoint that is there says that all of its epoch is.
        ModelCheckpoint(state, "last", enable_version_counter=False, save_on_train_epoch_end=True),
        *([RichProgressBar(refresh_rate=5, console_kwargs={"stderr": True})] if bars else []),
    ]
    is_gpu = accelerator == "gpu"
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        sync_batchnorm=is_gpu and devices > 1,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=settings.epochs,
        gradient_clip_val=settings.clip_gradient or None,
        callbacks=callbacks,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        log_every_n_steps=10,
        # The plan of an epoch is drawn when it begins.
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        # Not on a GPU: kernels that add up in one order are slower, and some do not exist.
        deterministic=not is_gpu,
        benchmark=is_gpu,
        enable_progress_bar=bars,
        enable_model_summary=False,
    )
    return trainer, patience


def _refuse_other(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse to go on with a training of other settings or cells: its model would be neither one nor the other."""
    if not (folder / folders.SETTINGS).is_file():
        return
    was = folders.read_json(folder / folders.SETTINGS)
    flat_was, flat_now = ({**each, **each["settings"], "settings": None} for each in (was, asked))
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
    for name in (folders.WEIGHTS, folders.LOG, "not_finite.safetensors", "not_finite.csv"):
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
