"""The folder of a model: weights as tensors only, a card, and what is needed to take training up again."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from extractors import weights as weights_files
from extractors.training.card import Card, read_card
from warehouse.errors import TrainingError
from warehouse.feature_sets import check_name
from warehouse.lake import Lake

WEIGHTS, CARD, SETTINGS, STATE, LOG = "model.safetensors", "card.json", "settings.json", "state", "log.csv"
#: The folder of crops, beside those of models.
CROPS = "crops"


@dataclass(frozen=True)
class Model:
    """A trained model as it lies on disk.

    Attributes:
        folder: where.
        card: what it is.
        state: name to tensor: `network.*` and `head.*`.
    """

    folder: Path
    card: Card
    state: dict[str, torch.Tensor]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """Give the tensors of one part (`network`, `head`), without its name."""
        start = f"{name}."
        return {
            key.removeprefix(start): tensor for key, tensor in self.state.items() if key.startswith(start)
        }


def models_folder(lake: Lake, given: Path | str | None = None) -> Path:
    """Say where a lake's models lie: in its folder, or for a team lake in `models` here, or where it was said."""
    if given is not None:
        return Path(given)
    return Path("models") if lake.is_team else lake.path / "models"


def folder_of(models: Path, name: str) -> Path:
    """Give the folder of a model, whose name is that of a feature set.

    Raises:
        ProfileError: a name that no feature set can have.
        TrainingError: the name of the folder of crops.
    """
    check_name(name)
    if name == CROPS:
        message = f"model name {name!r}: {models / CROPS} holds the crops of all models: give another --name"
        raise TrainingError(message)
    return models / name


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a model's folder while it is trained; the lock goes with the process, however that ends.

    Raises:
        TrainingError: another process trains this model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            message = f"{folder} is being trained by another process: wait for it, or give another --name"
            raise TrainingError(message) from error
        yield


def is_trained(folder: Path) -> bool:
    """Whether a folder holds a model whose training is done."""
    return (folder / CARD).is_file()


def read_model(folder: Path) -> Model:
    """Read a trained model, and check that weights and card belong together.

    Args:
        folder: of `wellhouse train`.

    Raises:
        TrainingError: no model is there, its training is not done, or the weights are not the card's.
        WeightsError: the weights are no file of tensors.
    """
    if not folder.is_dir():
        message = f"{folder}: there is no such folder of a model: train one with `wellhouse train`"
        raise TrainingError(message)
    if not is_trained(folder):
        is_begun = (folder / SETTINGS).is_file()
        what = (
            "training is not done: run the same `wellhouse train` again to go on" if is_begun else
            "holds no card.json, so it is no folder of a model"
        )  # fmt: skip
        message = f"{folder}: {what}"
        raise TrainingError(message)
    card = read_card((folder / CARD).read_text(encoding="utf-8"), str(folder / CARD))
    path = folder / WEIGHTS
    state = weights_files.read(path)
    if (found := weights_files.sha256(path)) != card.weights:
        message = (
            f"{path}: has SHA-256 {found[:16]}…, and card.json says {card.weights[:16]}…: they do not belong together: "
            "copy the whole folder again, or train it again"
        )
        raise TrainingError(message)
    return Model(folder, card, state)


def write_model(folder: Path, state: Mapping[str, torch.Tensor], card_of: Any) -> Card:
    """Write weights and then the card, each whole or not at all: without a card there is no model.

    Args:
        folder: of the model.
        state: name to tensor.
        card_of: makes the card of the SHA-256 of the weights.
    """
    (folder / CARD).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS, state)
    card: Card = card_of(weights_files.sha256(folder / WEIGHTS))
    write_text(folder / CARD, card.text())
    return card


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a file of tensors whole, or not at all; readable by whom the folder lets read."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(
        save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    )
    unfinished.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole, or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a small file that this module wrote.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read ({error}): begin again with --fresh"
        raise TrainingError(message) from error
    return dict(found)


def json_text(value: object) -> str:
    """Give a JSON value as the text of a file."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def digest_of(value: object) -> str:
    """Hash a JSON value."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
