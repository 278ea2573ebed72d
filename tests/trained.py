"""A lake of single-cell pictures that differ by treatment and by plate, and models for tests of extraction."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch

from extractors.base import FieldSample
from extractors.pipeline import ingest_screen
from extractors.training.card import Card
from extractors.training.model_folder import write_model
from extractors.training.networks import create, layers_of
from extractors.training.settings import settings_of
from warehouse.lake import Lake
from warehouse.screens import read_screen

CHANNELS = ("DNA", "RNA")
SIDE = 20
#: Small enough that an epoch takes a tenth of a second; layer 12 is the last convolution of the first scale.
TINY: dict[str, object] = {
    "network": "multi_scale_cnn", "weights": "none", "layer": "pooled", "crop": 32, "epochs": 3, "batch_size": 8,
    "optimizer": "adamw", "learning_rate": 0.003,
}  # fmt: skip
#: Compound and concentration of each well of a plate.
WELLS = {
    "A01": ("DMSO", None),
    "A02": ("A", 1.0),
    "A03": ("A", 10.0),
    "A04": ("B", 1.0),
    "A05": ("DMSO", None),
}
WELLS["A06"] = WELLS["A05"]  # of two controls each is as far from their median as the other


class Means:
    """An extractor of nothing but each channel's mean, so that a lake comes to know cells quickly."""

    name = "means"
    version = "1"
    weights: str | None = None

    def __init__(self, channels: tuple[str, ...] = CHANNELS) -> None:
        self.channels = self.feature_names = channels
        self.dim = len(channels)
        self.parameters: dict[str, object] = {}

    def extract(self, samples: list[FieldSample]) -> list[np.ndarray]:
        return [
            np.repeat(sample.pixels.mean(axis=(1, 2))[None].astype(np.float32), len(sample.cells), axis=0)
            for sample in samples
        ]


def picture(rng: np.random.Generator, well: str, gain: float) -> np.ndarray:
    """A cell: a spot of DNA whose width, and rings of RNA whose number, tell the treatment: (2, SIDE, SIDE) uint16."""
    y, x = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2 + rng.normal(0, 0.7, 2)[:, None, None]
    r = np.hypot(x, y)
    width = {"A01": 3.0, "A02": 4.5, "A03": 6.5, "A04": 3.0, "A05": 3.0}.get(well, 3.0)
    waves = {"A01": 0.3, "A02": 0.3, "A03": 0.3, "A04": 1.2, "A05": 0.3}.get(well, 0.3)
    planes = np.stack([np.exp(-((r / width) ** 2)), 0.5 + 0.5 * np.cos(waves * r)])
    return (gain * (200 + 3000 * planes) + rng.normal(0, 60, planes.shape).clip(-150)).astype(np.uint16)


def picture_lake(folder: Path, cells: int = 4, skip: dict[str, int] | None = None) -> Path:
    """Two batches of two plates, six wells each, `cells` pictures a well (fewer where `skip` says so by well)."""
    rng, rows, wells = np.random.default_rng(3), [], []
    for batch, plate, gain in (("b1", "P1", 1.0), ("b1", "P2", 1.3), ("b2", "P3", 2.0), ("b2", "P4", 0.7)):
        (folder / plate).mkdir(parents=True)
        for well, (compound, dose) in WELLS.items():
            wells.append(
                {"source": "s", "batch": batch, "plate": plate, "well": well, "compound": compound}
                | {"concentration": dose, "unit": "uM" if dose else None}
                | {"control_type": "none" if dose else "negative"}
            )
            for cell in range((skip or {}).get(f"{plate} {well}", cells)):
                path = f"{plate}/{well}_{cell}.npy"
                np.save(folder / path, picture(rng, well, gain))
                rows.append(
                    {
                        "source": "s",
                        "batch": batch,
                        "plate": plate,
                        "well": well,
                        "field": "1",
                        "cell": str(cell),
                    }
                    | {f"path_{name}": path for name in CHANNELS}
                    | {f"plane_{name}": number for number, name in enumerate(CHANNELS)}
                )
    pl.DataFrame(rows).write_csv(folder / "manifest.csv")
    pl.DataFrame(wells).write_csv(folder / "layout.csv")
    with Lake.create(folder / "lake") as lake:
        screen = read_screen(folder / "manifest.csv", layout=folder / "layout.csv")
        reports = ingest_screen(lake, screen, Means())
    assert {report.outcome for report in reports} == {"added"}
    return folder / "lake"


def model_of(method: str, folder: Path, channels: tuple[str, ...] = CHANNELS, **changed: object) -> Path:
    """Write a model that was never trained, as `train` would: its numbers are as good as any for a contract."""
    settings = settings_of(method, None, TINY | {"illumination": False} | changed)
    torch.manual_seed(7)
    network = create(
        settings.network, len(channels), layers=layers_of(settings.layer), size=settings.size or settings.crop
    )
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    state |= {"head.weight": torch.zeros(2, network.final_dim), "head.bias": torch.zeros(2)}

    def card(weights: str) -> Card:
        scale = (0.25,) * len(channels)
        return Card(
            method, "1", channels, settings.as_dict(), scale, scale, ("A@1uM", "B@1uM"), {}, {"epochs": 0, "last": {}},
            "test", weights,
        )  # fmt: skip

    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder, state, card)
    return folder


@cache
def settings_for_test(method: str) -> dict[str, object]:
    """What a trained method's extractor needs beside channels: a model, in a folder that lasts as long as the tests."""
    return {"model": str(model_of(method, Path(_folder().name) / method))}


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory()
