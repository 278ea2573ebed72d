"""Commands that train and extract: each parses, calls one function, and prints; `cli.py` lists them.

Nothing heavy is imported before a command runs.
"""

import os
import sys

import typer

from warehouse.commands import learning
from warehouse.commands.options import DEFAULT_LAKE, AsJson, LakePath, Where
from warehouse.console import json_pair, print_records, progress_bars


def methods(name: learning.MethodOrNone = None, as_json: AsJson = False) -> None:
    """List what images can be embedded with, trained or not; of one method its settings, and the small preset's.

    Example: `wellhouse methods cell_painting_cnn`
    """
    from extractors.methods import listed, settings_listed

    if name is None:
        learning.print_methods(listed(), None, as_json)
        return
    learning.print_methods(settings_listed(name), f"{name}: settings, for --set NAME=VALUE", as_json)


def train(
    method: learning.Method,
    name: learning.Name = None,
    preset: learning.Preset = "paper",
    cells: learning.Cells = None,
    where: Where = None,
    channels: learning.Channels = None,
    setting: learning.Setting = None,
    models: learning.Models = None,
    device: learning.Device = "auto",
    devices: learning.Devices = 1,
    precision: learning.Precision = "32",
    workers: learning.Workers = 0,
    fresh: learning.Fresh = False,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Train a method on cells that the lake knows; the same call goes on where it was stopped.

    Example: `wellhouse train cell_painting_cnn --name cnn --preset small --where "control_type <> 'positive'"`
    """
    from extractors.training.settings import settings_of

    settings = settings_of(method, preset, dict(map(json_pair, setting or [])))
    from extractors.training.model_folder import models_folder
    from extractors.training.run import train as run
    from warehouse.lake import Lake

    bars = sys.stderr.isatty()
    with Lake.open(lake, read_only=True) as opened, progress_bars("images") as progress:
        report = run(
            opened, method, name=name or method, models=models_folder(opened, models), settings=settings,
            cells_of=cells, where=where, channels=_names(channels) or None, device=device, devices=devices,
            precision=precision, workers=workers, fresh=fresh, progress=progress, bars=bars,
            say=None if bars else lambda line: typer.echo(line, err=True),
        )  # fmt: skip
    if os.environ.get("LOCAL_RANK", "0") == "0":  # of several GPUs one tells
        learning.print_training(report, as_json)


def extract(
    feature_set: learning.FeatureSet,
    extractor: learning.Extractor = None,
    model: learning.Model = None,
    models: learning.Models = None,
    cells: learning.Cells = None,
    channels: learning.Channels = None,
    setting: learning.Setting = None,
    source: learning.Sources = None,
    batch: learning.Batches = None,
    plate: learning.Plates = None,
    device: learning.DeviceOrNone = None,
    workers: learning.Workers = 0,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Embed the images that the lake knows, one transaction a plate; what is in with the same content is passed.

    Example: `wellhouse extract cnn`
    """
    from extractors.extraction import Asked
    from extractors.extraction import extract as run
    from warehouse.lake import Lake

    settings = dict(map(json_pair, setting or [])) | ({} if device is None else {"device": device})
    asked = Asked(
        feature_set, extractor, model, models, cells, _names(channels), settings, tuple(source or ()),
        tuple(batch or ()), tuple(plate or ()), workers,
    )  # fmt: skip
    with Lake.open(lake) as opened, progress_bars("images") as progress:
        made = run(opened, asked, progress)
    learning.print_extraction(made, feature_set, as_json)


def explain(
    feature_set: learning.Explained,
    cell: learning.Cell,
    out: learning.Out,
    of_class: learning.Class = None,
    layer: learning.Layer = None,
    models: learning.Models = None,
    setting: learning.Setting = None,
    lake: LakePath = DEFAULT_LAKE,
    as_json: AsJson = False,
) -> None:
    """Draw which parts of a cell's image raised the score of a class (Grad-CAM), beside its channels.

    Example: `wellhouse explain cnn --cell s1/b1/p1/A01/1/7 --out map.png`
    """
    from extractors.explaining import explain as run
    from warehouse.lake import Lake

    with Lake.open(lake, read_only=True) as opened:
        shown = run(
            opened, feature_set, cell, out, of_class=of_class, layer=layer, models=models,
            settings=dict(map(json_pair, setting or [])),
        )  # fmt: skip
    print_records([shown], as_json)


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(","))
