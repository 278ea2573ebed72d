"""What happens beside training: the log, the watch for losses that are no number, the early stop."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from extractors import weights
from extractors.training.data import Batch, CropData
from extractors.training.model_folder import read_json, write_tensors, write_text
from extractors.training.modules import Learner, scaled
from warehouse.errors import TrainingError

#: Columns of log.csv; one that a method does not have stays empty.
COLUMNS = (
    "epoch", "loss", "accuracy", "f1", "validation_loss", "validation_accuracy", "validation_f1", "effective_rank",
    "learning_rate", "cells_per_second", "seconds",
)  # fmt: skip


class NumbersOnly(lightning.Callback):
    """Stops at a loss that is not finite, and saves the batch that led to it.

    A loss is looked at two steps later: by then a GPU has it, and nothing waits.

    Args:
        folder: of the model; `not_finite.safetensors` and `not_finite.csv` are written there.
        name_of: names the cells of store rows.
    """

    def __init__(self, folder: Path, name_of: Callable[[Tensor], list[dict[str, Any]]]) -> None:
        self.folder, self.name_of = folder, name_of
        self._last: Batch = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Look at the step before the last."""
        self._look(module, keep=1)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Look at the last steps."""
        self._look(module, keep=0)

    def _look(self, module: Learner, keep: int) -> None:
        while len(module.pending) > keep:
            loss, self._last = module.pending.pop(0)
            if not bool(torch.isfinite(loss)):
                self.stop(module, float(loss))

    def stop(self, module: Learner, loss: float) -> None:
        """Save the batch that was looked at last, and stop.

        Raises:
            TrainingError: always.
        """
        batch = self._last
        path = self.folder / "not_finite.safetensors"
        write_tensors(path, {name: value for name, value in batch.items() if isinstance(value, Tensor)})
        cells = self.name_of(batch["row"].cpu())
        with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(cells[0]))
            writer.writeheader()
            writer.writerows(cells)
        message = (
            f"the loss is {loss} in epoch {module.current_epoch + 1}, step {batch['step'] + 1}: its batch of "
            f"{len(cells)} cells is saved as {path} and its cells are listed beside it. Look at its images, or lower "
            f"learning_rate (now {module.settings.learning_rate:g}) or set clip_gradient, and train with --fresh"
        )
        raise TrainingError(message)


class Log(lightning.Callback):
    """Writes a row an epoch to log.csv, and says it; an epoch that runs again after a kill replaces its row.

    Args:
        path: of log.csv.
        say: is given a line an epoch; None says nothing.
    """

    def __init__(self, path: Path, say: Callable[[str], None] | None = None) -> None:
        self.path, self.say = path, say
        self._started, self._seen, self._rate = 0.0, 0, 0.0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Start the clock; the learning rate is that of the epoch, and moves at its end."""
        self._started, self._seen, self._rate = monotonic(), 0, trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count cells."""
        self._seen += len(batch["row"])

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Write the epoch's row; the loss is the mean over processes."""
        seconds = monotonic() - self._started
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values["loss"] = float(
            trainer.strategy.reduce(trainer.callback_metrics["loss_epoch"], reduce_op="mean")
        )
        if not trainer.is_global_zero:
            return
        values |= {
            "epoch": module.current_epoch + 1,
            "learning_rate": self._rate,
            "cells_per_second": self._seen * trainer.world_size / max(seconds, 1e-9),
            "seconds": seconds,
        }
        rows = [row for row in read_log(self.path) if int(row["epoch"]) < values["epoch"]]
        row = {name: _shown(values.get(name)) for name in COLUMNS}
        lines = [",".join(COLUMNS), *(",".join(one[name] for name in COLUMNS) for one in [*rows, row])]
        write_text(self.path, "\n".join(lines) + "\n")
        if self.say:
            said = [
                f"{name} {row[name]}"
                for name in (
                    "loss",
                    "accuracy",
                    "f1",
                    "validation_accuracy",
                    "validation_f1",
                    "effective_rank",
                )
                if row[name]
            ]
            left = seconds * (trainer.max_epochs - values["epoch"])
            self.say(
                f"epoch {int(values['epoch'])}/{trainer.max_epochs}: {', '.join(said)}; "
                f"{values['cells_per_second']:.0f} cells/s, {_clock(left)} left"
            )


def read_log(path: Path) -> list[dict[str, str]]:
    """Read log.csv; no row where there is none.

    Raises:
        TrainingError: it is not as `Log` wrote it.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if any(set(row) != set(COLUMNS) or not row["epoch"].isdecimal() for row in rows):
        message = f"{path}: is not the log of a training: begin again with --fresh"
        raise TrainingError(message)
    return rows


def _shown(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class EffectiveRank(lightning.Callback):
    """Measures after each epoch how many directions the embeddings of up to 512 cells use; no label enters.

    Args:
        data: gives the cells.
        numbers: stops training where the last step left weights that give no numbers.

    Source:
        RankMe, Garrido et al. 2023, equation 1.
    """

    def __init__(self, data: CropData, numbers: NumbersOnly) -> None:
        self.data, self.numbers = data, numbers

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Log `effective_rank`; of several processes the first one's."""
        was_training = module.training
        module.eval()
        with torch.no_grad():
            parts = [
                module.network.embed(module.normalised(scaled(batch["pixels"].to(module.device)))).float()
                for batch in self.data.sample_dataloader()
            ]
        module.train(was_training)
        embeddings = torch.cat(parts)
        if not bool(torch.isfinite(embeddings).all()):
            self.numbers.stop(module, math.nan)
        module.log("effective_rank", trainer.strategy.broadcast(effective_rank(embeddings)), prog_bar=True)


def effective_rank(embeddings: Tensor) -> float:
    """Give the exponential of the entropy of the singular values' shares: (n, d) to a number from 1 to min(n, d).

    Source:
        RankMe, Garrido et al. 2023, equation 1; Roy & Vetterli 2007.
    """
    values = torch.linalg.svdvals(embeddings.double())
    shares = values / values.sum().clamp_min(1e-300) + 1e-12
    return float(torch.exp(-(shares * shares.log()).sum()))


class Patience(lightning.Callback):
    """Keeps the best model by a criterion, and stops after so many epochs without a better one.

    Args:
        folder: for `best.safetensors` and `best.json`; they outlast a kill.
        criterion: a logged value; `effective_rank` should rise, losses should fall.
        patience: epochs; 0 never stops and keeps nothing.
    """

    def __init__(self, folder: Path, criterion: str, patience: int) -> None:
        self.weights, self.record = folder / "best.safetensors", folder / "best.json"
        self.criterion = {"training_loss": "loss_epoch"}.get(criterion, criterion)
        self.sign = 1 if criterion == "effective_rank" else -1
        self.patience = patience

    def best(self) -> dict[str, Tensor]:
        """Read the best model."""
        return weights.read(self.weights)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Keep the model if it is the best, or count."""
        if not self.patience:
            return
        # One process decides for all: their values may differ, and one alone must not go on.
        value = trainer.strategy.broadcast(float(trainer.callback_metrics[self.criterion]))
        best = read_json(self.record) if self.record.is_file() else None
        trainer.strategy.barrier()
        is_better = (
            best is None
            or best["epoch"] >= module.current_epoch
            or self.sign * value > self.sign * best["value"]
        )
        if is_better:
            best = {"epoch": module.current_epoch, "value": value}
            if trainer.is_global_zero:
                write_tensors(self.weights, module.kept())
        if module.current_epoch - best["epoch"] >= self.patience:
            best["stopped_at"] = module.current_epoch
            trainer.should_stop = True
        if trainer.is_global_zero:
            write_text(self.record, json.dumps(best))

    def is_over(self, epoch: int) -> bool:
        """Whether training stopped at the end of this epoch, counted from 0, in a former call."""
        return self.record.is_file() and read_json(self.record).get("stopped_at") == epoch


class Beside(TorchCheckpointIO):
    """Writes a checkpoint beside the former one and then in its place; reads it as tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save whole, or not at all."""
        unfinished = Path(f"{path}.unfinished")
        torch.save(checkpoint, unfinished)
        unfinished.replace(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> Any:
        """Read what `save_checkpoint` wrote.

        Raises:
            TrainingError: it is damaged, or holds more than tensors.
        """
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running anything that it holds.

    Raises:
        TrainingError: it is damaged, or holds more than tensors.
    """
    try:
        return dict(torch.load(path, map_location=map_location, weights_only=True))
    except Exception as error:  # UnpicklingError, but also EOFError, RuntimeError, KeyError for damaged files
        message = f"{path}: is damaged, or no checkpoint of a training: begin again with --fresh"
        raise TrainingError(message) from error
