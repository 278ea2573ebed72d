"""Crops a second of `transfer`, from raw pixels to embeddings, against the bare model on the same tensors."""

import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from benchmarks.measure import Row
from extractors import pipeline, registry
from extractors.base import CELL_GEOMETRY, FieldSample
from extractors.simulator import CHANNELS, SimulatorSettings, simulate_screen
from extractors.transfer import Transfer
from warehouse.lake import Lake
from warehouse.screens import read_screen

CROPS = 64
ROUNDS = 5


def run() -> list[Row]:
    """Time the extractor and the model in turn, so that a drift of the machine meets both."""
    rng = np.random.default_rng(0)
    channels = ("DNA", "Tubulin", "Actin")
    extractor = Transfer(channels)
    crops = list(rng.integers(0, 4096, (CROPS, len(channels), 68, 68), dtype=np.uint16))
    samples = [_sample(crop, channels) for crop in crops]
    planes = [plane for crop in crops for plane in crop]
    size = extractor.batch_size
    tensors = [
        extractor.prepare(planes[start : start + size]).to(
            extractor.device, memory_format=torch.channels_last
        )
        for start in range(0, len(planes), size)
    ]

    def bare() -> None:
        with torch.inference_mode():
            for batch in tensors:
                extractor.model(batch)

    ours, model = [], []
    for _ in range(ROUNDS + 1):
        ours.append(_timed(lambda: extractor.extract(samples)))
        model.append(_timed(bare))
    own, alone = CROPS / median(ours[1:]), CROPS / median(model[1:])
    return [
        Row(
            "transfer, 3 × 68 × 68 crops, resized to 224",
            f"{own:.1f} crops/s",
            f"the bare model on the same tensors: {alone:.1f} crops/s",
            own / alone,
            "≥ 0.80",
        ),
        _whole_path(),
    ]


def _whole_path() -> Row:
    """Time the ingestion of a simulated plate from files, against the model's own time on its cells."""
    with tempfile.TemporaryDirectory() as folder:
        settings = SimulatorSettings(batches=1, plates_per_batch=2, cells_per_field=20)
        made = simulate_screen(Path(folder) / "screen", settings)
        screen = read_screen(made.manifest, layout=made.layout, annotations=made.annotations)
        extractor = registry.create("transfer", CHANNELS, {"size": 128, "crop": 64})
        assert isinstance(extractor, Transfer)
        with Lake.create(Path(folder) / "lake") as lake:
            start = perf_counter()
            reports = pipeline.ingest_screen(lake, screen, extractor)
            whole = perf_counter() - start
        cells = sum(report.cells_in for report in reports)
        planes = cells * len(CHANNELS)
        batch = torch.randn(extractor.batch_size, 1, 128, 128).to(memory_format=torch.channels_last)
        rounds = planes // extractor.batch_size

        def bare() -> None:
            with torch.inference_mode():
                for _ in range(rounds):
                    extractor.model(batch)

        bare()
        alone = _timed(bare)
    return Row(
        "ingest, two plates of fields: read, segment, embed, aggregate, commit",
        f"{cells / whole:.1f} cells/s",
        f"the bare model on as many crops: {cells / alone:.1f} cells/s",
        alone / whole,
        "reported",
    )


def _timed(work: object) -> float:
    start = perf_counter()
    work()  # type: ignore[operator]
    return perf_counter() - start


def _sample(crop: np.ndarray, channels: tuple[str, ...]) -> FieldSample:
    import polars as pl

    table = pl.DataFrame(
        {name: ["1"] if name == "cell" else [None] for name in CELL_GEOMETRY}, schema=dict(CELL_GEOMETRY)
    )
    return FieldSample(crop, channels, table, None, is_crop=True)
