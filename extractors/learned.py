"""Extraction with a model that was trained here: the same crops as in training, one pass through its network."""

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from extractors.base import FieldSample, SettingError
from extractors.devices import device_of
from extractors.training.crops import LARGEST, CropSettings, prepare
from extractors.training.illumination import illumination_of
from extractors.training.model_folder import read_model
from extractors.training.networks import create, layers_of
from warehouse.errors import TrainingError
from warehouse.names import unknown

#: Settings of a model that decide what an image becomes before the network sees it, and where the embedding is read.
_TOLD = (
    "network", "layer", "crop", "size", "clip_low", "clip_high", "pixels", "illumination", "masked",
)  # fmt: skip


class Learned:
    """Extractor of every method that is trained.

    Args:
        channels: in order; those of the model.
        method: that the model must be of.
        model: folder of the model, as `wellhouse train` leaves it.
        batch_size: crops a forward pass.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`.
        recorded: what a feature set of this model says of itself, checked against the card.

    Raises:
        UnknownNameError: a setting or device is in no list.
        SettingError: no model is named, other channels than the model's, or a recorded setting is not the model's.
        TrainingError: the folder holds no whole model, one of another method, or weights of another network.
    """

    level = "cell"

    def __init__(
        self,
        channels: tuple[str, ...],
        *,
        method: str,
        model: str | Path = "",
        batch_size: int = 64,
        device: str = "auto",
        **recorded: object,
    ) -> None:
        others = [name for name in recorded if name not in (*_TOLD, "identity")]
        if others:
            known = [
                name
                for name in inspect.signature(type(self)).parameters
                if name not in ("channels", "method", "recorded")
            ]
            raise unknown(others[0], f"setting of {method}", known)
        if not model:
            message = (
                f"{method} extracts with a trained model: name its folder with --set model=FOLDER, or train one with "
                f"`wellhouse train {method}`"
            )
            raise SettingError(message)
        if type(batch_size) is not int or batch_size < 1:
            message = f"{method}: batch_size is {batch_size!r}: give a whole number of 1 or more"
            raise SettingError(message)
        found = read_model(Path(model))
        card = found.card
        if card.method != method:
            message = f"{model}: is a model of {card.method}, not of {method}: name it with --extractor {card.method}"
            raise TrainingError(message)
        if card.channels != tuple(channels):
            message = (
                f"{model}: was trained on channels {', '.join(card.channels)}, and is given {', '.join(channels)}: "
                f"name them in its order with --channels {','.join(card.channels)}"
            )
            raise SettingError(message)
        self.card, self.name, self.version, self.channels = card, method, card.version, card.channels
        told = {name: card.settings[name] for name in _TOLD} | {"identity": card.identity()}
        wrong = next((name for name, value in recorded.items() if told[name] != value), None)
        if wrong is not None:
            message = f"{model}: has {wrong} {told[wrong]!r}, and {recorded[wrong]!r} is wanted: it is another model"
            raise SettingError(message)
        self.crop_settings = CropSettings.of(told)
        self.network = create(
            told["network"], len(channels), layers=layers_of(told["layer"]), size=self.crop_settings.side
        )
        _load(self.network, found.part("network"), f"{model}: {told['network']}")
        self.head = found.part("head")
        self.device = device_of(device, method)
        self.network.eval().to(self.device, memory_format=torch.channels_last)
        largest = LARGEST[self.crop_settings.dtype]
        self._mean = torch.tensor(card.mean, device=self.device)[:, None, None] * largest
        self._std = torch.tensor(card.std, device=self.device)[:, None, None] * largest
        self.batch_size = batch_size
        self.dim = self.network.dim
        width = len(str(self.dim))
        self.feature_names = tuple(f"feature_{i:0{width}d}" for i in range(1, self.dim + 1))
        self.weights = card.weights
        # Only what changes the numbers; the identity stands for all of the card's settings.
        self.parameters: dict[str, object] = dict(told)
        self._illumination: np.ndarray | None = None

    @property
    def needs_plate(self) -> bool:
        """Whether a field can be looked at only after `for_plate`: its plate's illumination is corrected."""
        return self.crop_settings.illumination

    @property
    def needs_masks(self) -> bool:
        """Whether a field must come with its masks."""
        return self.crop_settings.masked

    def for_plate(self, images: Iterable[np.ndarray]) -> "Learned":
        """Give the extractor for one plate.

        Args:
            images: fields of the plate, (C, H, W) each; none where the images are single-cell pictures.
        """
        made, fields = copy.copy(self), iter(images)
        first = next(fields, None)
        made._illumination = None if first is None else illumination_of(chain([first], fields))
        return made

    def prepared(self, sample: FieldSample) -> FieldSample:
        """Cut a sample's crops ahead of `extract`."""
        return replace(sample, crops=self.crops(sample))

    def crops(self, sample: FieldSample) -> np.ndarray:
        """Cut what the network sees of a field or picture: (n, C, S, S) uint8 or uint16."""
        if sample.crops is not None:
            return sample.crops
        return prepare(sample, self.crop_settings, self._illumination)

    def normalised(self, crops: np.ndarray) -> torch.Tensor:
        """Bring crops to the network's scale, on its device: (n, C, S, S) float32."""
        pixels = torch.from_numpy(crops).to(self.device).float()
        return ((pixels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    def extract(self, samples: Sequence[FieldSample]) -> list[np.ndarray]:
        """Embed every cell of each sample; see `extractors.base.Extractor`."""
        if not samples:
            return []
        crops = [self.crops(sample) for sample in samples]
        embedded = self.embed(np.concatenate(crops))
        return np.split(embedded, np.cumsum([len(each) for each in crops])[:-1])

    def embed(self, crops: np.ndarray) -> np.ndarray:
        """Embed crops as `crops` gives them: (n, C, S, S) to (n, dim) float32."""
        out = np.empty((len(crops), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(crops), self.batch_size):
                part = slice(start, start + self.batch_size)
                out[part] = self.network.embed(self.normalised(crops[part])).float().cpu().numpy()
        return out


def _load(network: torch.nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Put a model's weights into the network that its card names.

    Raises:
        TrainingError: they are another network's; the first tensor that does not fit.
    """
    wanted = network.state_dict()
    for name in {**wanted, **state}:
        here, there = (tuple(each[name].shape) if name in each else None for each in (wanted, state))
        if here != there:
            saved = "is not among the weights" if there is None else f"has shape {there}"
            asked = "is no part of the network" if here is None else f"the network has {here}"
            message = (
                f"{where} that card.json names is not the network of model.safetensors (tensor {name!r} {saved}, "
                f"{asked}): copy the whole folder again, or train it again"
            )
            raise TrainingError(message)
    network.load_state_dict(state)
