"""Lightning's side of training: on which devices, what runs beside it, and taking up what was stopped."""

import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from extractors.base import SettingError
from extractors.devices import device_of
from extractors.training import model_folder as folders
from extractors.training.callbacks import (
    Beside,
    EffectiveRank,
    Log,
    NumbersOnly,
    Patience,
    read_checkpoint,
    read_log,
)
from extractors.training.data import CropData
from extractors.training.modules import Learner
from extractors.training.settings import Settings
from warehouse.errors import TrainingError
from warehouse.names import unknown

PRECISIONS = ("32", "bf16-mixed", "16-mixed")


def fit(
    trainer: lightning.Trainer, module: Learner, data: CropData, folder: Path, patience: Patience
) -> bool:
    """Train to the end, from where a former call stopped; say whether there was such a call.

    Raises:
        TrainingError: training was stopped, by Ctrl-C or a signal, or its checkpoint is damaged.
    """
    last = folder / folders.STATE / "last.ckpt"
    is_resumed = last.is_file()
    if is_resumed and patience.patience:
        checkpoint = read_checkpoint(last)
        if patience.is_over(int(checkpoint["epoch"])):
            return True  # it had stopped, and only the model was not written any more
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            # Lightning's advice on workers and on logging is not the user's to take.
            warnings.simplefilter("ignore")
            trainer.fit(module, datamodule=data, ckpt_path=last if is_resumed else None, weights_only=True)
    except SystemExit as error:  # so Lightning ends at Ctrl-C, and at the signal that ends a job's time
        epochs = len(read_log(folder / folders.LOG))
        message = (
            f"training of {folder.name!r} was stopped after {epochs} whole epochs: the same command goes on"
        )
        raise TrainingError(message) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Lightning, once interrupted, ignores it for good
    return is_resumed


def accelerator_of(device: str, devices: int, precision: str, workers: int) -> str:
    """Choose Lightning's accelerator, and check what goes with it.

    Raises:
        UnknownNameError: no such device or precision.
        SettingError: a number below the least, or a GPU where there is none.
    """
    if precision not in PRECISIONS:
        raise unknown(precision, "precision", PRECISIONS)
    for what, value, least in (("devices", devices, 1), ("workers", workers, 0)):
        if value < least:
            message = f"train: {what} is {value}: give {least} or more"
            raise SettingError(message)
    return "gpu" if device_of(device, "train").type == "cuda" else "cpu"


def trainer_of(
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
    numbers = NumbersOnly(folder, lambda rows: data.store.rows[rows.numpy()].to_dicts())
    callbacks = [
        numbers,
        EffectiveRank(data, numbers),
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
        # Each device has batch statistics of its own: torch's common ones would take timm's activations away.
        strategy="ddp" if devices > 1 else "auto",
        plugins=[Beside()],
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
