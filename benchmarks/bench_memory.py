"""Peak memory of ingesting plates, few against many: it must not grow with their number."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Row, in_process, peak_mib

FEW, MANY = 2, 8


def run() -> list[Row]:
    """Ingest few and many plates, each in a process of its own, and compare the peaks."""
    few, many = (in_process("benchmarks.bench_memory", str(count))["mib"] for count in (FEW, MANY))
    return [
        Row(
            f"peak memory, {MANY} plates from images",
            f"{many:.0f} MiB",
            f"{FEW} plates: {few:.0f} MiB",
            many / few,
            "independent of the number",
        )
    ]


def ingest(plates: int) -> float:
    """Ingest simulated plates from images and return this process's peak memory in MiB."""
    from extractors import pipeline, registry
    from extractors.simulator import CHANNELS, SimulatorSettings, simulate_screen
    from warehouse.lake import Lake
    from warehouse.screens import read_screen

    settings = SimulatorSettings(batches=1, plates_per_batch=plates, cells_per_field=6)
    with tempfile.TemporaryDirectory() as folder:
        made = simulate_screen(Path(folder) / "screen", settings)
        screen = read_screen(made.manifest, layout=made.layout)
        extractor = registry.create("transfer", CHANNELS, {"size": 32, "crop": 64})
        with Lake.create(Path(folder) / "lake") as lake:
            pipeline.ingest_screen(lake, screen, extractor)
    return peak_mib()


if __name__ == "__main__":
    print(json.dumps({"mib": ingest(int(sys.argv[1]))}))
