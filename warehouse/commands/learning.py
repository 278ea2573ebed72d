"""Options of the commands that train and extract, which need extractors (`extractors/commands.py`); their tables."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from warehouse.console import print_answer, print_records, with_values

Method = Annotated[str, typer.Argument(help="A trained method; `wellhouse methods` lists them.")]
MethodOrNone = Annotated[str | None, typer.Argument(help="One of them: its settings, and what they mean.")]
Name = Annotated[
    str | None, typer.Option("--name", help="Of the model and its feature set; default the method's.")
]
Preset = Annotated[str, typer.Option("--preset", help="paper, or small: minutes on two cores.")]
Cells = Annotated[
    str | None,
    typer.Option("--cells", help="Feature set that says where cells lie; default the one there is."),
]
Channels = Annotated[
    str | None,
    typer.Option("--channels", help="Channels to use, in order: DNA,ER,RNA; default those of the cells."),
]
Setting = Annotated[list[str] | None, typer.Option("--set", help="A setting: epochs=5; may be repeated.")]
Models = Annotated[
    str | None,
    typer.Option("--models", help="Folder of models; default `models` in the lake's folder, or here."),
]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU where there is one), cpu or cuda.")]
DeviceOrNone = Annotated[
    str | None, typer.Option("--device", help="auto (a GPU where there is one), cpu or cuda.")
]
Devices = Annotated[int, typer.Option("--devices", min=1, help="How many GPUs share the work.")]
Precision = Annotated[str, typer.Option("--precision", help="32, bf16-mixed or 16-mixed.")]
Workers = Annotated[
    int,
    typer.Option("--workers", min=0, help="Processes (extract: threads) that read ahead; 0: a good number."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin again, whatever the model's folder holds.")]
FeatureSet = Annotated[
    str, typer.Argument(help="Feature set to go on with; or name of a model, or of what --extractor makes.")
]
Extractor = Annotated[
    str | None,
    typer.Option("--extractor", help="What makes a new feature set, where no model of its name does."),
]
Model = Annotated[
    str | None, typer.Option("--model", help="Folder of the trained model; default the one of this name.")
]
Plates = Annotated[list[str] | None, typer.Option("--plate", help="Only this plate; may be repeated.")]
Batches = Annotated[list[str] | None, typer.Option("--batch", help="Only this batch; may be repeated.")]
Sources = Annotated[list[str] | None, typer.Option("--source", help="Only this source; may be repeated.")]
Explained = Annotated[str, typer.Argument(help="Feature set of a trained model.")]
Cell = Annotated[str, typer.Option("--cell", help="SOURCE/BATCH/PLATE/WELL/FIELD/CELL.")]
Out = Annotated[Path, typer.Option("--out", help="PNG to write.")]
Class = Annotated[
    str | None,
    typer.Option("--class", help="Class to explain; default the cell's own, else the one it is taken for."),
]
Layer = Annotated[str | None, typer.Option("--layer", help="Layer to look at; default the network's last.")]


def print_training(report: Any, as_json: bool) -> None:
    """Print what came of a training, what should be known of it, and what comes next."""
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    held_out = f" ({report.held_out} more held out)" if report.held_out else ""
    numbers = {
        "loss": report.loss,
        "accuracy": report.accuracy,
        "validation accuracy": report.validation_accuracy,
    }
    known = "".join(f", {name} {value:.4g}" for name, value in numbers.items() if value is not None)
    text = (
        f"{report.name}: {report.outcome}, {report.cells} cells{held_out} of {report.plates} plates, {report.classes} "
        f"classes, {report.epochs} epochs{known}\n"
        f"model {report.folder}, identity {report.identity[:16]}\n"
        f"next: wellhouse extract {report.name}"
    )
    print_answer(asdict(report), as_json, text)


def print_extraction(made: Any, feature_set: str, as_json: bool) -> None:
    """Print one row a plate; those that failed also as an error line each, and the command then ends with 1.

    Raises:
        SystemExit: a plate failed.
    """
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    failed = [report for report in made.reports if report.outcome == "failed"]
    if len(failed) < len(made.reports) or as_json:
        print_records(made.reports, as_json)
    for report in failed:
        typer.echo(f"error: plate {report.plate!r}: {report.reason}", err=True)
    if failed:
        again = f"mend what is wrong, then `wellhouse extract {feature_set}` again"
        typer.echo(f"note: {len(failed)} of {len(made.reports)} plates failed: {again}", err=True)
        sys.exit(1)


def print_methods(rows: list[dict[str, object]], title: str | None, as_json: bool) -> None:
    """Print the list of methods, or the settings of one under its title."""
    import polars as pl

    print_answer(rows, as_json, with_values(pl.DataFrame(rows, infer_schema_length=None)), title)
