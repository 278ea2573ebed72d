"""CellProfiler's tables of images and objects, however they are stored: their columns, and the keys of their rows."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from warehouse.errors import ProfileError
from warehouse.formats.cellprofiler_joins import Objects
from warehouse.formats.keys import find_keys, normal_wells, text
from warehouse.formats.model import ImportSettings

#: Compartments that make up a cell where no others are named; the first that is there is the cell.
COMPARTMENTS = ("Cells", "Cytoplasm", "Nuclei")
#: Name of the column of positions, which no table has.
ROW = "row of the table"
_NO_FEATURE = re.compile(r"(?:Metadata|FileName|PathName|URL)_.+")


@dataclass(frozen=True)
class Table:
    """One table of an export.

    Attributes:
        name: of the compartment, or `Image`.
        origin: where it is, for messages.
        columns: in order.
        select: reads some columns of all rows, and `ROW`, the position of each.
        fetch: reads some columns of the rows at ascending positions: (n, d) float64, NaN = missing.
    """

    name: str
    origin: str
    columns: tuple[str, ...]
    select: Callable[[Sequence[str]], pl.DataFrame]
    fetch: Callable[[np.ndarray, Sequence[str]], np.ndarray]

    def find(self, *candidates: str) -> str | None:
        """Return the first of these names that is a column, with or without the table's name before it."""
        both = [name for one in candidates for name in (one, f"{self.name}_{one}")]
        return next((name for name in both if name in self.columns), None)

    def is_of_objects(self) -> bool:
        """Whether rows are objects of an image."""
        return self.find("ImageNumber") is not None and self.number() is not None

    def number(self) -> str | None:
        """Return the column of object numbers."""
        return self.find("ObjectNumber", "Number_Object_Number")

    def keys(self) -> dict[str, str]:
        """Return the columns that tell rows and images apart and point to other tables: what is no measurement."""
        number = re.compile(
            rf"(?:{re.escape(self.name)}_)?(?:TableNumber|ImageNumber|ObjectNumber|Number_Object_Number)"
        )
        parent = re.compile(rf"(?:{re.escape(self.name)}_)?Parent_(.+)")
        found = {}
        for column in self.columns:
            if number.fullmatch(column):
                found[column] = ""
            elif match := parent.fullmatch(column):
                found[column] = match[1]
        return found

    def features(self) -> dict[str, str]:
        """Return the measurements: name with the compartment before it, to column."""
        keys, prefix = self.keys(), f"{self.name}_"
        plain = [column for column in self.columns if column not in keys]
        return {
            column if column.startswith(prefix) else prefix + column: column
            for column in plain
            if not _NO_FEATURE.fullmatch(column.removeprefix(prefix))
        }


@dataclass(frozen=True)
class Export:
    """One SQLite file or one folder of CSV files."""

    path: Path
    images: Table
    objects: dict[str, Table]


def count_column(export: Export, name: str) -> str | None:
    """Return the column in which the images count objects of a kind."""
    return export.images.find(f"Count_{name}")


def count_of(export: Export, name: str) -> int | None:
    """Return how many objects of a kind the images of an export count; None where they do not say."""
    column = count_column(export, name)
    if column is None:
        return None
    total = export.images.select([column])[column].cast(pl.Float64, strict=False).sum()
    return int(total)


def image_keys(export: Export, settings: ImportSettings) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the keys of images, and the table that gives each its code."""
    table = export.images
    image = table.find("ImageNumber")
    if image is None:
        message = f"{table.origin}: no column ImageNumber; it has {', '.join(table.columns[:6])}, …"
        raise ProfileError(message)
    number = table.find("TableNumber")
    found = find_keys(Path(table.origin), list(table.columns), settings)
    wanted = {key: found[key] for key in ("source", "batch", "plate", "well", "field") if key in found}
    frame = table.select(
        list({image: 0, **({number: 0} if number else {}), **dict.fromkeys(wanted.values(), 0)})
    )
    numbers = _numbers(frame, number, image)
    twice = numbers.is_duplicated()
    if twice.any():
        first = frame[image][int(twice.arg_true()[0])]
        message = f"{table.origin}: image {first} stands more than once: keep one row an image"
        raise ProfileError(message)
    columns = {**wanted, "field": wanted.get("field", image)}  # without a site, the image is the field
    told = {key: getattr(settings, key) for key in ("plate", "well") if key not in wanted}
    keys = frame.select(
        *(text(frame, column).alias(key) for key, column in columns.items()),
        *(pl.lit(value, dtype=pl.String).alias(key) for key, value in told.items()),
    )
    empty = keys["plate"].is_null().arg_true()
    if len(empty):
        message = f"{table.origin}: row {int(empty[0]) + 2} has no plate: every image needs one"
        raise ProfileError(message)
    keys = keys.with_columns(
        normal_wells(Path(table.origin), keys["well"]), pl.int_range(len(keys)).alias("code")
    )
    return keys, numbers.with_columns(pl.int_range(len(keys)).alias("image"))


def _numbers(frame: pl.DataFrame, table: str | None, image: str) -> pl.DataFrame:
    """Return table (text, "" where there is none) and image number of each row."""
    first = text(frame, table).fill_null("") if table else pl.lit("")
    return frame.select(first.alias("table"), pl.col(image).cast(pl.Int64, strict=False).alias("number"))


def object_keys(table: Table, names: Sequence[str], codes: pl.DataFrame) -> tuple[Objects, pl.DataFrame]:
    """Read the keys of one object table; rows of images that are in no list come back as rejections."""
    number, image, tables = table.number(), table.find("ImageNumber"), table.find("TableNumber")
    parents = {
        target: column for column, target in table.keys().items() if target in names and target != table.name
    }
    wanted = [column for column in (number, image, tables, *parents.values()) if column is not None]
    frame = table.select(list(dict.fromkeys(wanted)))
    if tables is None or (codes["table"].n_unique() == 1 and codes["table"][0] == ""):
        tables = None
        codes = codes.with_columns(pl.lit("").alias("table"))
    of_image = _numbers(frame, tables, str(image)).join(
        codes, on=["table", "number"], how="left", maintain_order="left"
    )
    keys = pl.DataFrame(
        [
            frame[ROW].cast(pl.Int64).alias("row"),
            of_image["image"].cast(pl.Int64),
            frame[str(number)].cast(pl.Int64, strict=False).alias("object"),
            *(
                frame[column].cast(pl.Int64, strict=False).alias(f"parent {name}")
                for name, column in parents.items()
            ),
        ]
    )
    stray = keys["image"].is_null()
    labels = pl.DataFrame([of_image["number"], keys["object"]]).filter(stray)
    reason = f"its image is not in {table.origin.rsplit(' ', 1)[0]}"
    strays = labels.select(
        pl.lit(None, dtype=pl.Int64).alias("image"),
        pl.format("{} {} of image {}", pl.lit(table.name), "object", "number").alias("cell"),
        pl.lit(reason).alias("reason"),
    )
    return Objects(table.name, keys.filter(~stray), parents), strays
