"""What a format of existing profiles gives: plates, and the rows of each in parts that fit in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

Level = Literal["cell", "field", "well"]
LEVELS: tuple[Level, ...] = ("cell", "field", "well")
#: Rows of `main.rejections` less the feature set and the plate.
REJECTIONS = {"well": pl.String, "field": pl.String, "cell": pl.String, "reason": pl.String}
#: Columns of `<feature set>.cells` between the cell and its embedding; a format gives those that it knows.
GEOMETRY = {
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
#: Columns that tell one row of a plate from another, at each level.
IDS: dict[str, list[str]] = {"cell": ["well", "field", "cell"], "field": ["well", "field"], "well": ["well"]}


@dataclass(frozen=True)
class ImportSettings:
    """What files mean, where they do not say it themselves.

    Args:
        columns: key (`plate`, `well`, `field`, `cell`, `batch`, `source`, `cell_count`, `field_count`) to column.
        features: names of the columns that are features, in order; None to go by their names.
        source: for files and layouts that name none.
        batch: for files and layouts that name none.
        plate: for files that name none.
        well: for files that name none.
        level: what one row is, `cell`, `field` or `well`; None to go by the key columns.
        metadata: table of the rows of a plain matrix.
        compartments: object tables of CellProfiler that make up a cell, the first one being the cell; empty for
            those of Cells, Cytoplasm and Nuclei that are there.
        field_operator: cells to field.
        well_operator: fields to well.
        align: what to do where the features of the files differ: `refuse`, `reject`, `intersect`, `split`.
        part_rows: rows read at once, at most, where one field has no more; 0 for as many as fill 16 MiB.
    """

    columns: dict[str, str] = field(default_factory=dict)
    features: tuple[str, ...] | None = None
    source: str | None = None
    batch: str | None = None
    plate: str | None = None
    well: str | None = None
    level: Level | None = None
    metadata: Path | None = None
    compartments: tuple[str, ...] = ()
    field_operator: str = "median"
    well_operator: str = "mean"
    align: str = "refuse"
    part_rows: int = 0

    def rows_at_once(self, dim: int) -> int:
        """Return how many rows of `dim` features one part holds."""
        return self.part_rows or max(64, 2**24 // (4 * max(dim, 1)))


@dataclass(frozen=True)
class Part:
    """Some rows of a plate; all cells of one field are in one part.

    Attributes:
        keys: one row a profile, text columns as in `IDS` of the level, no NULL, wells in their normal form; at
            `cell` also any of `GEOMETRY`, at `field` also `cell_count`, at `well` also `cell_count`, `field_count`.
        matrix: (n, d) float32; NaN is a missing element, an infinite one is left for the builder to reject.
        rejections: rows of `REJECTIONS`: what the input has and `keys` lacks, one row a cell (field, well); at `cell`
            a row without a cell is an image that was left out whole.
    """

    keys: pl.DataFrame
    matrix: np.ndarray
    rejections: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTIONS))


@dataclass(frozen=True)
class Plate:
    """One plate of an input; opening it has read its keys and names, not its numbers.

    Attributes:
        path: file or folder, for messages.
        said: what the input says of itself: `plate`, and `source` and `batch` where it names them.
        level: of its rows.
        features: in the input's order.
        parts: gives the rows; may be called again.
        notes: sentences on what the input has and the plate lacks.
    """

    path: Path
    said: dict[str, str]
    level: Level
    features: tuple[str, ...]
    parts: Callable[[], Iterator[Part]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """One kind of input.

    Attributes:
        name: for `--format`.
        description: one line: what it is, and what it is read as.
        recognises: whether a path is of this kind, by its name and its first bytes; must not raise.
        read: opens paths and returns their plates; raises ProfileError for what cannot be read.
        together: whether all paths of one call are one input (a folder whose files were named one by one).
    """

    name: str
    description: str
    recognises: Callable[[Path], bool]
    read: Callable[[Sequence[Path], ImportSettings], list[Plate]]
    together: bool = False
