"""Which pixels are of a cell: of the one in a single-cell picture, and of those that the lake knows in a field."""

import numpy as np
import polars as pl

from extractors.base import Masks
from extractors.segment import CELL_NAMES, DNA_NAMES, channel_of, segment, segment_central
from warehouse.errors import ImageError, TrainingError
from warehouse.known_cells import KnownCells


def central_cell(pixels: np.ndarray, channels: tuple[str, ...]) -> np.ndarray:
    """Find the cell whose nucleus is nearest the centre of a single-cell picture: (H, W) bool.

    Args:
        pixels: (C, H, W).
        channels: their names; nuclei and cells are found where the pipeline finds them in whole fields.

    Raises:
        ImageError: no channel for nuclei, or no nucleus in it.
    """
    dna, body = channel_of(DNA_NAMES, channels), channel_of(CELL_NAMES, channels)
    if dna is None:
        message = (
            f"no channel named {', '.join(DNA_NAMES)} among {', '.join(channels)}: cells cannot be masked"
        )
        raise ImageError(message)
    around = None if body is None else pixels[channels.index(body)]
    masks = segment_central(pixels[channels.index(dna)], around)
    if not masks.nuclei.any():
        message = f"no nucleus is found in channel {dna!r} of a single-cell picture: it cannot be masked"
        raise ImageError(message)
    return masks.cells > 0


def as_known(pixels: np.ndarray, cells: pl.DataFrame, known: KnownCells) -> Masks:
    """Find the cells of a field again, as they were found when their feature set was made.

    Args:
        pixels: (C, H, W) of `known.channels`.
        cells: of the field, rows of `KnownCells.rows`; may be some of those that are in it.
        known: what the cells are of.

    Returns:
        Label images in which label i + 1 is row i of `cells`.

    Raises:
        TrainingError: a channel that cells are found by is not among the channels; or a cell of the lake is not found
            where the lake says that it is.
    """
    from extractors.remake import extraction_of

    where = " ".join(cells.select("plate", "well", "field").row(0))
    extraction = extraction_of(known.feature_set, 1)
    for channel in (extraction.dna_channel, extraction.cell_channel):
        if channel is not None and channel not in known.channels:
            message = (
                f"cells of {known.feature_set.name!r} were found by channel {channel!r}, which is not among "
                f"{', '.join(known.channels)}: add it, or give masked=false"
            )
            raise TrainingError(message)
    dna, body = (
        None if channel is None else pixels[known.channels.index(channel)]
        for channel in (extraction.dna_channel, extraction.cell_channel)
    )
    found, masks = segment(dna, body, extraction.segmentation)
    there = {
        cell: (row, x, y) for row, (cell, x, y) in enumerate(found.select("cell", "x_px", "y_px").iter_rows())
    }
    labels = np.zeros(len(found) + 1, np.int32)
    for row, (cell, x, y) in enumerate(cells.select("cell", "x_px", "y_px").iter_rows()):
        place = there.get(cell)
        if place is None or not np.allclose(place[1:], (x, y), rtol=0, atol=1e-6):
            message = (
                f"field {where}: the lake has cell {cell} at x {x:.1f}, y {y:.1f}, and of the {len(found)} cells found "
                f"now {'none has that name' if place is None else f'it is at x {place[1]:.1f}, y {place[2]:.1f}'}: "
                "another version of scikit-image? Ingest the plate again, or give masked=false"
            )
            raise TrainingError(message)
        labels[place[0] + 1] = row + 1
    return Masks(labels[masks.nuclei], labels[masks.cells])
