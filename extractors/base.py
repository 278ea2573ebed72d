"""What an extractor is given and what it gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from warehouse.errors import WellhouseError

#: Columns of a sample's table of cells. Pixels count from the image's upper left corner; boxes are half-open.
CELL_GEOMETRY: Mapping[str, type[pl.DataType]] = {
    "cell": pl.String,
    "x_px": pl.Float64,
    "y_px": pl.Float64,
    "box_left_px": pl.Int32,
    "box_top_px": pl.Int32,
    "box_right_px": pl.Int32,
    "box_bottom_px": pl.Int32,
    "nucleus_area_px": pl.Int32,
    "cell_area_px": pl.Int32,
    "is_border": pl.Boolean,
}


class SettingError(WellhouseError):
    """A setting of an extractor has a value that it cannot have."""


@dataclass(frozen=True)
class Masks:
    """Label images of one field: int32 (H, W), 0 = background, label i + 1 = row i of the table of cells."""

    nuclei: np.ndarray
    cells: np.ndarray


@dataclass(frozen=True)
class FieldQuality:
    """What `extractors.quality` measures on one field; tuples run over the channels.

    Args:
        focus: slope of the power spectrum; None where it is not defined.
        saturation: share of saturated pixels, 0 to 1; None where it is not defined.
        foreground: share of the field's pixels inside the cells that were kept, 0 to 1.
        cell_count: cells that were kept.
    """

    focus: tuple[float | None, ...]
    saturation: tuple[float | None, ...]
    foreground: float
    cell_count: int


@dataclass(frozen=True)
class FieldSample:
    """One field of view, or one single-cell crop, ready for an extractor.

    Args:
        pixels: (C, H, W) in the image's own dtype, channels in the order of `channels`.
        channels: names of the channels.
        cells: one row a cell, columns as in `CELL_GEOMETRY`.
        masks: nuclei and cells, or None where nothing was segmented (single-cell crops).
        is_crop: True where the image is one cell already cut out.
        quality: what was measured on a whole field; extractors make no use of it.
        crops: what `prepared` made of it, for an extractor that has this method.
    """

    pixels: np.ndarray
    channels: tuple[str, ...]
    cells: pl.DataFrame
    masks: Masks | None
    is_crop: bool
    quality: FieldQuality | None = None
    crops: np.ndarray | None = None


class Extractor(Protocol):
    """A method that turns images into embeddings, one row a cell.

    More may be there. `needs_masks`, False: of whole fields only the places of cells are looked at, and
    fields come without masks where a lake knows their cells. `needs_plate`, True: of whole fields no cell can be
    embedded before `for_plate(fields)` was given some of the plate's, (C, H, W) each; it gives back the extractor for
    that plate. `prepared(sample)` is called by the threads that read ahead, for work that needs no GPU.
    """

    name: str
    version: str
    channels: tuple[str, ...]
    dim: int
    feature_names: tuple[str, ...]
    parameters: dict[str, object]
    weights: str | None

    def extract(self, samples: Sequence[FieldSample]) -> list[np.ndarray]:
        """Embed the cells of each sample.

        Args:
            samples: fields or crops, all with this extractor's channels.

        Returns:
            One float32 array (n_cells, dim) a sample, rows in the order of `sample.cells`; (0, dim) without
            cells. A row may hold a non-finite value where a feature is undefined for that cell: the caller
            rejects that row, counts it and names the feature.
        """
        ...
