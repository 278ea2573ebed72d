"""The profile of a picture: extracted as its feature set was, corrected with the stored fits, ready to search with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from extractors import pictures, pipeline
from extractors.base import Extractor
from extractors.embedding import Counts
from extractors.known_images import at_hand
from extractors.plate_images import PlateImage
from extractors.remake import remade
from extractors.training.model_folder import models_folder
from warehouse import feature_sets, levels, on_the_spot, profiles
from warehouse.embeddings import to_column, to_matrix
from warehouse.errors import ImageError, SearchError
from warehouse.feature_sets import FeatureSet
from warehouse.fits import Plate
from warehouse.known_cells import images_of
from warehouse.lake import Lake
from warehouse.plate_builder import PlateBuilder


@dataclass(frozen=True)
class ImageProfile:
    """What a picture looks like to a feature set.

    Attributes:
        name: of the picture.
        vector: (r,) float32 in the space of the recipe.
        raw: (d,) float32, before it was corrected.
        cells: that it is of.
        fields: that had cells.
        plate: source, batch and plate whose fits corrected it, or None.
        notes: what a person should know of it.
    """

    name: str
    vector: np.ndarray
    raw: np.ndarray
    cells: int
    fields: int
    plate: Plate | None
    notes: tuple[str, ...]


def profile_of_images(
    lake: Lake,
    feature_set: str,
    recipe: str,
    images: Sequence[Path | str],
    *,
    plate: Plate | None = None,
    well: str | None = None,
    field_names: Sequence[str] | None = None,
    name: str | None = None,
    settings: Mapping[str, object] | None = None,
    workers: int = 2,
) -> ImageProfile:
    """Make the profile of a picture as ingestion made those of the lake, and correct it; nothing is written.

    Several pictures are taken as fields (or, in a feature set of crops, as cells) of one well.

    Args:
        lake: an open lake.
        feature_set: its name; it was made from images by an extractor that is here.
        recipe: steps or name of a recipe that was fitted, or ``none``.
        images: ``CHANNEL=FILE`` for each channel, a second file of a channel beginning a second field; or files that
            hold all channels, one a field or one a crop. Their planes are those that the feature set's own files have,
            else its channels in order. ``CHANNEL=FILE:1`` takes plane 1 of a file, counted from 0.
        plate: source, batch and plate that the picture is of; for steps fitted plate by plate, or batch by batch
            (`warehouse.on_the_spot.plate_named` finds it by its text), and for an extractor that corrects each
            plate's illumination.
        well: that it is of, for the step `well_position`.
        field_names: the field of each picture; pictures of one name are crops of one field. Default: each picture a
            field of its own, all crops of one.
        name: of the picture; default its files'.
        settings: of the extractor that change no number, `device` and `batch_size`, or `weights` where the file is
            not the default one.
        workers: threads that read and segment.

    Raises:
        SearchError: the extractor cannot be had as it was then (another version, other weights, profiles that were
            imported): what differs; or no cell could be used.
        ImageError: a file cannot be used; which, and why.
        UnknownNameError: no such feature set, recipe, channel or plate.
        RecipeError: the recipe cannot correct one profile alone, or needs the plate.
    """
    target = feature_sets.find(lake, feature_set)
    if target.extractor == "import":
        message = (
            f"feature set {target.name!r} was imported: no extractor can make its profiles; search with a feature set "
            "that was ingested from images, or import the picture's profile and search with its well"
        )
        raise SearchError(message)
    fitted = profiles.find_recipe(lake, target, recipe)
    correction = on_the_spot.correction(lake, target, fitted, plate, well=well)
    taken = pictures.gathered(lake, target, images, field_names, plate)
    extractor, extraction = remade(target, settings, workers, models_folder(lake))
    if target.parameters.get("input") != "crops" and getattr(extractor, "needs_plate", False):
        extractor = _of_plate(lake, target, extractor, plate, workers)
    counts = Counts()
    with PlateBuilder(target, allow_missing=False) as cells:
        pipeline.extract(taken, extractor, extraction, counts, cells)
        rejected = cells.rejections()
        made = cells.fields()
        wells = cells.wells(made)
    title = name or _title(taken)
    if counts.rejections:
        raise ImageError(counts.rejections[0][3])
    if made.is_empty():
        raise SearchError(_why_no_cell(target, title, rejected))
    raw, count = to_matrix(wells["embedding"], target.dim), wells["cell_count"][0]
    if correction.recipe.level == "field":
        matrix = correction.apply(to_matrix(made["embedding"], target.dim), made["cell_count"].to_list())
        of_fields = levels.wells_from_fields(made.with_columns(to_column(matrix)), matrix.shape[1], "mean")
        vector = to_matrix(of_fields["embedding"], matrix.shape[1])[0]
    else:
        vector = correction.apply(raw, [count])[0]
    notes = (*_notes(target, taken, made, rejected, cells.seen), *correction.notes)
    return ImageProfile(title, vector, raw[0], int(count), len(made), plate, notes)


def _of_plate(
    lake: Lake, target: FeatureSet, extractor: Extractor, plate: Plate | None, workers: int
) -> Extractor:
    """Give the extractor for the plate that a picture is of, whose light only the plate's other images tell.

    Raises:
        SearchError: no plate is named, or the lake has no images of it with these channels.
    """
    if plate is None:
        message = (
            f"feature set {target.name!r} corrects the illumination of each plate: name the picture's plate with "
            "--plate source/batch/plate"
        )
        raise SearchError(message)
    rows = images_of(lake, plate, target.channels, is_crops=False)
    if rows.is_empty():
        message = (
            f"plate {'/'.join(plate)} has no whole fields with channels {', '.join(target.channels)} in the lake: its "
            "illumination is not known"
        )
        raise SearchError(message)
    with at_hand(rows, target.channels) as (_, images, _):
        return pipeline.for_plate(extractor, images, workers)


def _title(taken: Sequence[PlateImage]) -> str:
    paths = list(dict.fromkeys(path.name for picture in taken for path, _ in picture.files.values()))
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _why_no_cell(target: FeatureSet, title: str, rejected: pl.DataFrame) -> str:
    if len(rejected):
        return (
            f"{title}: none of its {len(rejected)} cells can be used (first: {rejected['reason'][0]}): take a picture "
            "with whole cells in focus"
        )
    found: Any = target.parameters.get("segmentation") or {}
    return (
        f"{title}: no cell was found in channel {found.get('dna_channel')!r} by the segmentation of feature set "
        f"{target.name!r} (nuclei of {found.get('min_area_px')} to {found.get('max_area_px')} px): is it a whole field "
        "of the same magnification, with nuclei in that channel?"
    )


def _notes(
    target: FeatureSet, taken: Sequence[PlateImage], made: pl.DataFrame, rejected: pl.DataFrame, seen: int
) -> Iterator[str]:
    if target.parameters.get("input") == "crops":
        yield f"feature set {target.name!r} is of single-cell crops: each picture was taken as one cell"
    elif len(made) < len(taken):
        empty = sorted({picture.field for picture in taken} - set(made["field"]))
        yield f"{len(empty)} of {len(taken)} fields without a cell left out (first: field {empty[0]})"
    if len(rejected):
        yield f"{len(rejected)} of {seen} cells left out (first: {rejected['reason'][0]})"
