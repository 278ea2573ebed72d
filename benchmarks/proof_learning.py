"""Do trained methods learn? On a synthetic screen with strong batch effects, and on 1,000 real crops.

`make learning-proof` prints the tables; `python -m benchmarks.proof_learning PART... [--folder F]` does some of it, and
goes on in a folder where an earlier run stopped. No label of what a compound does enters any training.
"""

import argparse
import csv
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import polars as pl
import polars.selectors as cs

from extractors import pipeline, registry
from extractors.extraction import Asked, extract
from extractors.simulator import CHANNELS, SimulatorSettings, simulate_screen
from extractors.training.run import TrainingReport, train
from extractors.training.settings import METHODS, settings_of
from warehouse.correct import correct
from warehouse.evaluation import Evaluation, compare, evaluate
from warehouse.lake import Lake
from warehouse.screens import Screen, read_screen

#: Every treatment is in one well of each of three batches, which look three times as different as they commonly do.
#: A well is a query: NSB asks for its mechanism among wells of other compounds in other batches. Presets were chosen on
#: seed 0 of this screen.
SCREEN = SimulatorSettings(
    seed=1, batches=3, plates_per_batch=2, wells_per_plate=26, phenotypes=12, compounds_per_phenotype=3, doses=(2.0,),
    dmso_wells=8, positive_wells=0, field_px=256, cells_per_field=16, batch_strength=3.0, noise=2.0,
)  # fmt: skip
#: The packaged network on crops as large as those that the methods are trained on.
TRANSFER: Mapping[str, object] = {"size": 64, "crop": 64}
#: How all feature sets are corrected, and compared.
RECIPES = ("center", "center+sphering")
#: Measurements have units of their own, and are brought to one scale before.
MEASURED = "standardize(on=all)+center"
NAMES = tuple(method.name for method in METHODS)


@dataclass(frozen=True)
class Trained:
    """A model and the feature set of its name."""

    name: str
    report: TrainingReport


def simulated(
    folder: Path, settings: SimulatorSettings = SCREEN, transfer: Mapping[str, object] = TRANSFER
) -> Lake:
    """Open the lake of a synthetic screen in a folder; it is made, with `transfer`, where it is not there.

    Args:
        folder: of screen and lake.
        settings: of the simulator.
        transfer: settings of the extractor whose cells are then trained on.
    """
    if not (folder / "screen" / "manifest.csv").is_file():
        simulate_screen(folder / "screen", settings)
    names = {name: folder / "screen" / f"{name}.csv" for name in ("layout", "annotations")}
    screen = read_screen(folder / "screen" / "manifest.csv", **names)
    return _ingested(folder / "lake", screen, dict(transfer))


def _ingested(folder: Path, screen: Screen, settings: dict[str, object]) -> Lake:
    lake = Lake.open(folder) if folder.exists() else Lake.create(folder)
    channels = tuple(settings.pop("channels", CHANNELS))  # type: ignore[arg-type]
    pipeline.ingest_screen(lake, screen, registry.create("transfer", channels, settings))
    return lake


def learned(lake: Lake, method: str, name: str, changes: Mapping[str, object] | None = None) -> Trained:
    """Train a method by its small preset on the cells of `transfer`, and extract with it.

    Args:
        lake: open for writing.
        method: of the registry.
        name: of the model and of its feature set.
        changes: of settings, by name.
    """
    settings = settings_of(method, "small", changes)
    models = lake.path / "models"
    report = train(lake, method, name=name, models=models, settings=settings, cells_of="transfer")
    extract(lake, Asked(name, cells="transfer"))
    print(
        f"{name}: {report.epochs} epochs of {report.cells:,} cells in {report.seconds:.0f} s, accuracy "
        f"{_shown(report.accuracy)} (held out {_shown(report.validation_accuracy)})",
        flush=True,
    )
    return Trained(name, report)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def scores(
    lake: Lake,
    names: Sequence[str],
    recipe: str,
    metrics: Sequence[str] = ("nsc", "nsb"),
    level: str | None = None,
) -> list[Evaluation]:
    """Correct feature sets with a recipe and evaluate them by mechanism, at treatment level unless another is given."""
    for name in names if recipe != "none" else ():
        correct(lake, name, recipe)
    return evaluate(lake, names, metrics, recipe=recipe, labels="moa", level=level)


def table(found: Sequence[Evaluation]) -> pl.DataFrame:
    """Set scores side by side: value, 95 % interval, difference to the first with its interval."""
    values = ("value", "low", "high", "difference", "difference_low", "difference_high")
    return (
        compare(found)
        .select("metric", "feature_set", "recipe", *values, "n")
        .with_columns(cs.float().round(3))
    )


def curves(lake: Lake, name: str) -> pl.DataFrame:
    """Read a model's log: accuracy and F1 of training and held-out cells, an epoch a row."""
    with (lake.path / "models" / name / "log.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ("epoch", "loss", "accuracy", "f1", "validation_accuracy", "validation_f1")
    return pl.DataFrame([{column: row[column] or None for column in columns} for row in rows]).cast(
        {"epoch": pl.Int64} | dict.fromkeys(columns[1:], pl.Float64)
    )


# ------------------------------------------------------------------------------------------ what is printed


def prove_simulator(folder: Path) -> None:
    """Each method against `transfer` on NSB, and against itself with shuffled labels."""
    with simulated(folder / "simulator") as lake:
        for method in NAMES:
            learned(lake, method, method)
        for method in NAMES:
            learned(lake, method, f"{method}_shuffled", {"shuffle_labels": True})
        names = ("transfer", *NAMES, *(f"{name}_shuffled" for name in NAMES))
        for recipe in RECIPES:
            _print(table(scores(lake, names, recipe, level="well")))


def prove_curves(folder: Path) -> None:
    """Hold out cells, and then plates: how far accuracies part, and how far what is made of the embeddings."""
    with simulated(folder / "simulator") as lake:
        for holdout in ("cells", "plates"):
            learned(lake, "cell_painting_cnn", f"leave_{holdout}_out", {"holdout": holdout})
            _print(curves(lake, f"leave_{holdout}_out"))
        for recipe in RECIPES:
            _print(
                table(scores(lake, ("transfer", "leave_cells_out", "leave_plates_out"), recipe, level="well"))
            )


def prove_bbbc021(folder: Path) -> None:
    """1,000 real crops, trained on by treatment, beside `transfer` and `cellprofiler`."""
    data = Path(os.environ.get("WELLHOUSE_TEST_DATA", "../shared/data")) / "bbbc021"
    screen = read_screen(data / "crops.csv", images=data / "crops", annotations=data / "BBBC021_v1_moa.csv")
    settings = pipeline.PipelineSettings(field_operator="mean", well_operator="weighted_mean")
    place = folder / "bbbc021.lake"
    channels = ("DNA", "Tubulin", "Actin")
    with Lake.open(place) if place.exists() else Lake.create(place) as lake:
        for name, chosen in (("transfer", {}), ("cellprofiler", {"cell_channel": "Actin"})):
            pipeline.ingest_screen(
                lake, screen, registry.create(name, channels, dict(chosen)), settings=settings
            )
        for method in NAMES:
            learned(lake, method, method, {"crop": 68, "least_cells": 2, "illumination": False})
        correct(lake, "cellprofiler", MEASURED)
        for name in ("transfer", *NAMES):
            correct(lake, name, "center")
        sets = ["transfer:center", f"cellprofiler:{MEASURED}", *(f"{name}:center" for name in NAMES)]
        _print(table(evaluate(lake, sets, ["nsc", "nsb"], labels="moa")))


PARTS = {"simulator": prove_simulator, "curves": prove_curves, "bbbc021": prove_bbbc021}


def _print(frame: pl.DataFrame) -> None:
    with pl.Config(
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=160,
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
    ):
        print(frame, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the parts named, or all."""
    parser = argparse.ArgumentParser(prog="benchmarks.proof_learning", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument(
        "--folder", type=Path, help="where screens, lakes and models are kept; default: nowhere"
    )
    asked = parser.parse_args(arguments)
    if wrong := [part for part in asked.parts if part not in PARTS]:
        parser.error(f"no part {wrong[0]!r}: give {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as none:
        for part in asked.parts or PARTS:
            started = monotonic()
            print(f"\n== {part}", flush=True)
            PARTS[part](asked.folder or Path(none))
            print(f"{part}: {monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
