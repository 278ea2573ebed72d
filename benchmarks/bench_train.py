"""Training and extraction against the bare network on tensors that are in memory: what all around it costs."""

import csv
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.measure import Row, in_process, peak_mib, seconds
from benchmarks.proof_learning import simulated
from extractors.extraction import Asked, extract
from extractors.learned import Learned
from extractors.simulator import CHANNELS, SimulatorSettings
from extractors.training.crops import CropSettings
from extractors.training.networks import create
from extractors.training.run import train
from extractors.training.settings import Settings, settings_of
from extractors.training.store import CropStore
from warehouse.known_cells import known_cells
from warehouse.lake import Lake

METHOD, EPOCHS, CLASSES = "cell_painting_cnn", 4, 13
SCREEN = SimulatorSettings(
    batches=2, plates_per_batch=1, wells_per_plate=24, phenotypes=6, compounds_per_phenotype=2, doses=(2.0,),
    dmso_wells=4, positive_wells=0, fields=2, field_px=256, cells_per_field=12,
)  # fmt: skip


def run() -> list[Row]:
    """Measure in a process of its own, so that memory is what training takes."""
    return [Row(**row) for row in in_process("benchmarks.bench_train", "measure")["rows"]]  # type: ignore[attr-defined]


def measure() -> list[Row]:
    """Time cutting, training, and extraction, each beside what it cannot be faster than."""
    torch.set_num_threads(2)
    settings = settings_of(METHOD, "small", {"epochs": EPOCHS})
    with (
        tempfile.TemporaryDirectory() as folder,
        simulated(Path(folder), SCREEN, {"size": 32, "crop": 64}) as lake,
    ):
        before = peak_mib()
        rows = [_cutting(lake, settings)]
        earlier = _bare_training(settings, CLASSES)
        report = train(
            lake, METHOD, name="cnn", models=lake.path / "models", settings=settings, cells_of="transfer"
        )
        trained = peak_mib()
        with (Path(report.folder) / "log.csv").open(newline="", encoding="utf-8") as file:
            whole = median(float(row["cells_per_second"]) for row in list(csv.DictReader(file))[1:])
        bare = (earlier + _bare_training(settings, CLASSES)) / 2  # before and after: a machine's speed drifts
        rows.append(
            Row(
                f"training, {METHOD}, small preset (5 × 48 × 48): read, augment, step, log",
                f"{whole:.0f} cells/s; {trained:,.0f} MiB at most ({trained - before:,.0f} more than before)",
                f"the bare training step on resident tensors: {bare:.0f} cells/s",
                whole / bare,
                "≥ 0.80",
            )
        )
        return rows + _extraction(lake, Path(report.folder))


def _cutting(lake: Lake, settings: Settings) -> Row:
    known = known_cells(lake, cells_of="transfer")
    start = perf_counter()
    store = CropStore.open_or_cut(
        lake.path / "models" / "crops", lake, known, CropSettings.of(settings.as_dict())
    )
    cut = perf_counter() - start
    fields = known.rows.select("plate", "well", "field").n_unique()
    indices = np.random.default_rng(0).permutation(len(store))
    reading = seconds(lambda: [store.gather(indices[i : i + 32]) for i in range(0, len(store), 32)], 3)
    return Row(
        "crops of 64 pixels, resized to 48, out of fields of 5 × 256 × 256: read, illumination, clip, cut, write, once",
        f"{1000 * cut / fields:.0f} ms a field; {len(store):,} crops in {cut:.1f} s",
        f"reading them again in random order: {len(store) / reading:,.0f} crops/s",
        (len(store) / cut) / (len(store) / reading),
        "reported",
    )


def _bare_training(settings: Settings, classes: int) -> float:
    """Give cells/s of forward pass, loss, backward pass and step on one batch that stays in memory."""
    network = create(
        settings.network, len(CHANNELS), layers=(settings.layer,), weights="none", size=settings.size
    ).to(memory_format=torch.channels_last)
    head = torch.nn.Linear(network.final_dim, classes)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], settings.learning_rate)
    batch = torch.randn(settings.batch_size, len(CHANNELS), settings.size, settings.size)
    batch = batch.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(settings.batch_size) % classes
    network.train()

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(head(network(batch).final), labels).backward()
        optimizer.step()

    return settings.batch_size / seconds(step, 20, warm_up=3)


def _extraction(lake: Lake, model: Path) -> list[Row]:
    extractor = Learned(CHANNELS, method=METHOD, model=model)
    crops = np.random.default_rng(0).integers(0, 256, (512, len(CHANNELS), 48, 48), dtype=np.uint8)
    size = extractor.batch_size
    tensors = [extractor.normalised(crops[i : i + size]) for i in range(0, len(crops), size)]

    def bare() -> None:
        with torch.inference_mode():
            for batch in tensors:
                extractor.network.embed(batch)

    alone = len(crops) / seconds(bare, 5)
    own = len(crops) / seconds(lambda: extractor.embed(crops), 5)
    start = perf_counter()
    reports = extract(lake, Asked("cnn", cells="transfer")).reports
    whole = sum(report.cells_in for report in reports) / (perf_counter() - start)
    return [
        Row(
            "extraction, learned, crops of 5 × 48 × 48 in memory to embeddings",
            f"{own:.0f} cells/s",
            f"the bare forward pass on the same tensors: {alone:.0f} cells/s",
            own / alone,
            "≥ 0.80",
        ),
        Row(
            "extract, two plates of known cells: read, illumination, cut, embed, aggregate, commit",
            f"{whole:.0f} cells/s",
            f"the bare forward pass: {alone:.0f} cells/s (fields are read and committed at any size)",
            whole / alone,
            "reported",
        ),
    ]


if __name__ == "__main__" and sys.argv[1:] == ["measure"]:
    print(json.dumps({"rows": [vars(row) for row in measure()]}))
