"""Which parts of one cell's image spoke for a class: Grad-CAM of a trained model, for a cell that the lake knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from torch.nn.functional import linear

from extractors import pipeline, registry
from extractors.base import CELL_GEOMETRY, FieldSample
from extractors.embedding import Known, PipelineSettings, load
from extractors.known_images import at_hand
from extractors.learned import Learned
from extractors.remake import remade
from extractors.training.crops import LARGEST
from extractors.training.gradcam import grad_cam, save_picture
from extractors.training.model_folder import models_folder
from warehouse import feature_sets
from warehouse.errors import ImageError, TrainingError
from warehouse.feature_sets import FeatureSet
from warehouse.known_cells import images_of
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.sqltext import relation

_KEY = ("source", "batch", "plate", "well", "field", "cell")


@dataclass(frozen=True)
class Explanation:
    """What a picture shows.

    Attributes:
        cell: its key path.
        treatment: of its well; None where that is not known.
        explained: the class whose score the map is of.
        probability: that the model gives it, 0 to 1.
        taken_for: the most probable class.
        taken_for_probability: of it.
        classes: how many the model tells apart.
        picture: the file.
    """

    cell: str
    treatment: str | None
    explained: str
    probability: float
    taken_for: str
    taken_for_probability: float
    classes: int
    picture: str


def explain(
    lake: Lake,
    feature_set: str,
    cell: str,
    out: Path,
    *,
    of_class: str | None = None,
    layer: str | None = None,
    models: str | None = None,
    settings: Mapping[str, object] | None = None,
) -> Explanation:
    """Write a picture of a cell's channels, and of what in them raises the score of a class.

    Args:
        lake: an open lake.
        feature_set: of a trained model.
        cell: source/batch/plate/well/field/cell.
        out: the PNG; one that is there is replaced.
        of_class: a class of the model; None for that of the cell's well, else the most probable one.
        layer: of the network; None for its last.
        models: folder of models; None for the lake's.
        settings: of the extractor, `model` and `device`.

    Raises:
        UnknownNameError: no such feature set, cell, class or layer.
        SearchError: the model cannot be had as it was.
        TrainingError: the feature set is of no trained model, or of one that tells no classes apart.
        ImageError: the image cannot be read, or the picture cannot be written.
        ScreenError: the image is another than the one that came in.
    """
    target = feature_sets.find(lake, feature_set)
    known = {entry.name: entry for entry in registry.ALL}
    if target.extractor not in known or known[target.extractor].trains is None:
        message = (
            f"feature set {feature_set!r} was made by {target.extractor}, which is not trained here: there are no "
            "classes whose score could be explained"
        )
        raise TrainingError(message)
    row = _cell(lake, target, cell)
    extractor, extraction = remade(target, settings, 1, models_folder(lake, models))
    assert isinstance(extractor, Learned)
    head = _head(extractor, feature_set)
    sample, number, made = _sample(lake, target, extractor, extraction, row)
    crop = made.crops(sample)[number]
    x = made.normalised(crop[None])
    with torch.inference_mode():
        shares = head(made.network(x).final).softmax(dim=1)[0].cpu().numpy()
    classes = made.card.classes
    own = row["treatment"] if made.card.settings["label"] == "treatment" else row["compound"]
    if of_class is not None and of_class not in classes:
        raise unknown(of_class, f"class of {feature_set}", classes)
    most = int(shares.argmax())
    wanted = classes.index(of_class or own) if (of_class or own) in classes else most
    heat = grad_cam(made.network, head, x, wanted, layer)
    side = sample.pixels.shape[2] if sample.is_crop else made.crop_settings.crop
    title = f"{cell}: {classes[wanted]}, {shares[wanted]:.1%}"
    try:
        pixels = crop / LARGEST[made.crop_settings.dtype]
        save_picture(out, pixels, made.channels, heat, title=title, crop_px=side)
    except OSError as error:
        message = f"{out}: cannot be written ({error.strerror or error}): name another file with --out"
        raise ImageError(message) from error
    return Explanation(
        cell, row["treatment"], classes[wanted], float(shares[wanted]), classes[most], float(shares[most]),
        len(classes), str(out),
    )  # fmt: skip


def _cell(lake: Lake, target: FeatureSet, cell: str) -> dict[str, str | None]:
    """Find a cell: its key, its place, and what was done to its well."""
    parts = cell.split("/")
    rows = pl.DataFrame()
    if len(parts) == len(_KEY):
        rows = lake.frame(
            "SELECT cells.* EXCLUDE (embedding), wells.treatment, wells.compound "
            f"FROM {relation(target.name, 'cells')} AS cells "
            "LEFT JOIN main.wells AS wells USING (source, batch, plate, well) "
            "WHERE source = ? AND batch = ? AND plate = ? AND well = ? AND field = ? AND cell = ?",
            parts,
        )
    if rows.is_empty():
        first = lake.connection.execute(
            "SELECT concat_ws('/', source, batch, plate, well, field, cell) "
            f"FROM {relation(target.name, 'cells')} ORDER BY ALL LIMIT 1"
        ).fetchone()
        example = "it has none" if first is None else f"such as {first[0]}"
        how = "write SOURCE/BATCH/PLATE/WELL/FIELD/CELL"
        message = f"feature set {target.name!r} has no cell {cell!r}: {how}, {example}"
        raise TrainingError(message)
    return dict(rows.row(0, named=True))


def _head(extractor: Learned, feature_set: str) -> torch.nn.Module:
    """Give what tells the classes apart: a linear layer over the network's last features."""
    for start in ("", "classify."):
        if f"{start}weight" in extractor.head and len(extractor.head[f"{start}weight"]) == len(
            extractor.card.classes
        ):
            weight, bias = (
                extractor.head[f"{start}{name}"].to(extractor.device) for name in ("weight", "bias")
            )
            return _Linear(weight, bias)
    message = (
        f"the model of feature set {feature_set!r} ({extractor.name}) tells no classes apart: there is no score that "
        "could be explained"
    )
    raise TrainingError(message)


class _Linear(torch.nn.Module):
    """A linear layer of weights that are given."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give (n, classes) scores of (n, d) features."""
        return linear(x.float(), self.weight, self.bias)


def _sample(
    lake: Lake,
    target: FeatureSet,
    extractor: Learned,
    extraction: PipelineSettings,
    row: Mapping[str, str | None],
) -> tuple[FieldSample, int, Learned]:
    """Read the cell's image, say which of its cells it is, and give the extractor for its plate."""
    is_crops = target.parameters["input"] == "crops"
    key = (str(row["source"]), str(row["batch"]), str(row["plate"]))
    rows = images_of(lake, key, is_crops=is_crops)
    of_cell = (pl.col("well") == row["well"]) & (pl.col("field") == row["field"])
    of_cell = of_cell & (pl.col("cell") == row["cell"]) if is_crops else of_cell
    needs_plate = extractor.needs_plate and not is_crops
    with at_hand(rows if needs_plate else rows.filter(of_cell), target.channels) as (_, images, digests):
        made = pipeline.for_plate(extractor, images, 1)
        image = next(
            each
            for each in images
            if (each.well, each.field) == (row["well"], row["field"])
            and (not is_crops or each.cell == row["cell"])
        )
        place = pl.DataFrame([{name: row[name] for name in CELL_GEOMETRY}], schema=dict(CELL_GEOMETRY))
        cells = {} if extractor.needs_masks else {(image.well, image.field): place}
        sample = load(image, target.channels, extraction, Known(cells, digests, is_measured=True))
    if isinstance(sample, str):
        raise ImageError(sample)
    assert isinstance(made, Learned)
    return sample, sample.cells["cell"].to_list().index(row["cell"]), made
