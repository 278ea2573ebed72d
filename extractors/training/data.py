"""Batches for training: what is known of each cell, which cells an epoch takes, and the pixels of a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import lightning
import numpy as np
import polars as pl
import torch
from torch.utils.data import DataLoader, Dataset

from extractors.training.store import CropStore

#: Cells whose embeddings tell how many directions a network uses: enough for the rank of 672 features.
_SAMPLE = 512


@dataclass(frozen=True)
class Cells:
    """What is known of the cells that take part in training; arrays of n, codes count from 0.

    Attributes:
        rows: int64, of the store.
        labels: int64, of `classes`.
        compounds: int64, codes.
        doses: int64, rank of the concentration among those of the compound, -1 without one.
        levels: int64, how many concentrations the compound has.
        plates: int64, codes.
        wells: int64, codes.
        is_control: bool, negative controls.
        is_held_out: bool, cells to validate on.
        classes: names.
    """

    rows: np.ndarray
    labels: np.ndarray
    compounds: np.ndarray
    doses: np.ndarray
    levels: np.ndarray
    plates: np.ndarray
    wells: np.ndarray
    is_control: np.ndarray
    is_held_out: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self) -> dict[str, int]:
        """Say how many different values each code has."""
        return {
            "classes": len(self.classes),
            "compounds": int(self.compounds.max()) + 1,
            "doses": int(self.levels.max()),
            "plates": int(self.plates.max()) + 1,
        }


def codes(rows: pl.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Number the distinct values of columns in their order: (n,) int64."""
    return rows.select(pl.struct(columns).rank("dense")).to_series().to_numpy().astype(np.int64) - 1


@dataclass(frozen=True)
class Plan:
    """The steps of an epoch: rows of `Cells` for each, and for bags the label of each bag."""

    steps: list[np.ndarray]
    labels: list[np.ndarray] | None = None


class Planner(Protocol):
    """Decides which cells an epoch takes; the same numbers for the same generator."""

    def __call__(self, cells: Cells, chosen: np.ndarray, rng: np.random.Generator) -> Plan:
        """Plan an epoch of the chosen cells ((m,) positions in `cells`)."""
        ...


#: A step: tensors of its cells, and the number of the step in its epoch.
Batch = dict[str, Any]


class Steps(Dataset[Batch]):
    """The batches of one epoch: item i is step i, whole."""

    def __init__(self, store: CropStore, cells: Cells, plan: Plan, numbers: Sequence[int]) -> None:
        self.store, self.cells, self.plan, self.numbers = store, cells, plan, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Batch:
        """Give pixels (b, C, S, S) as they are kept, and what is known of them: (b,) int64 each."""
        number = self.numbers[index]
        chosen = self.plan.steps[number]
        cells = self.cells
        batch: Batch = {
            "pixels": torch.from_numpy(self.store.gather(cells.rows[chosen])),
            "step": number,
            "row": torch.from_numpy(cells.rows[chosen]),
        }
        for name in ("labels", "compounds", "doses", "levels", "plates"):
            batch[name] = torch.from_numpy(getattr(cells, name)[chosen])
        if self.plan.labels is not None:
            batch["labels"] = torch.from_numpy(self.plan.labels[number])
        return batch


class CropData(lightning.LightningDataModule):
    """Batches of crops for a method.

    Args:
        store: crops.
        cells: that take part.
        plan: which cells an epoch takes.
        validate: the same of held-out cells; None for each of them once, in order.
        batch_size: of validation, cells.
        seed: an epoch's plan hangs on it and on the epoch's number, and on nothing that ran before.
        workers: processes that read ahead; 0 reads in this one.
    """

    def __init__(
        self,
        store: CropStore,
        cells: Cells,
        plan: Planner,
        validate: Planner | None = None,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.store, self.cells, self.plan, self.validate = store, cells, plan, validate
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.training = np.flatnonzero(~cells.is_held_out)
        self.held_out = np.flatnonzero(cells.is_held_out)
        rng = np.random.default_rng([seed, 2**31])
        sample = rng.choice(self.training, min(_SAMPLE, len(self.training)), replace=False)
        self.sample = np.sort(sample)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Give the steps of the epoch that is about to run."""
        trainer = self.trainer
        assert trainer is not None
        rng = np.random.default_rng([self.seed, trainer.current_epoch])
        plan = self.plan(self.cells, self.training, rng)
        # Each of several processes takes every n-th step, and all as many: they wait for each other at each.
        each = len(plan.steps) // trainer.world_size or 1
        own = [
            number % len(plan.steps)
            for number in range(trainer.global_rank, each * trainer.world_size, trainer.world_size)
        ]
        return self._loader(plan, own)

    def val_dataloader(self) -> DataLoader[Batch] | list[None]:
        """Give the held-out cells, the same steps after every epoch."""
        if not len(self.held_out):
            return []
        if self.validate is None:
            return self._loader(in_order(self.held_out, self.batch_size))
        return self._loader(
            self.validate(self.cells, self.held_out, np.random.default_rng([self.seed, 2**31 + 1]))
        )

    def sample_dataloader(self) -> DataLoader[Batch]:
        """Give up to 512 training cells, the same in every epoch."""
        return self._loader(in_order(self.sample, self.batch_size), workers=0)

    def _loader(
        self, plan: Plan, numbers: Sequence[int] | None = None, workers: int | None = None
    ) -> DataLoader[Batch]:
        steps = Steps(self.store, self.cells, plan, range(len(plan.steps)) if numbers is None else numbers)
        workers = self.workers if workers is None else workers
        return DataLoader(
            steps, batch_size=None, shuffle=False, num_workers=workers, pin_memory=torch.cuda.is_available()
        )


def in_order(chosen: np.ndarray, size: int) -> Plan:
    """Plan every chosen cell once, in order."""
    return Plan([chosen[start : start + size] for start in range(0, len(chosen), size)])


def in_steps(chosen: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut cells into steps of one size; a last step of one cell, of which no batch statistics exist, is left out."""
    steps = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return [step for step in steps if len(step) > 1]
