"""Reading a table of well profiles: which columns are keys, which are features, and whether the rest is sound."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from warehouse.errors import ProfileError, WellhouseError
from warehouse.names import suggestion, unknown
from warehouse.wells import normalise

#: Names under which the field's files keep each key, the preferred one first (see docs/screen_format.md).
KEY_COLUMNS = {
    "source": ("Metadata_Source", "source"),
    "batch": ("Metadata_Batch", "Metadata_batch", "batch"),
    "plate": ("Metadata_Plate", "Image_Metadata_Plate", "plate"),
    "well": ("Metadata_Well", "Image_Metadata_Well", "Metadata_well_position", "well"),
    "cell_count": ("Metadata_Object_Count", "Metadata_Count_Cells", "cell_count"),
    "field_count": ("Metadata_Site_Count", "field_count"),
}
#: Columns that are measurements where no list of features is given: CellProfiler's compartments, and numbered
#: embeddings. Every other column must be metadata by name, or the list must be given.
_FEATURE = re.compile(
    r"(?:(?:Cells|Nuclei|Cytoplasm|Image)_(?!Metadata_|FileName_|PathName_|URL_).+|(?:emb|efficientnet_|X_)\d+)"
)
_METADATA = re.compile(r"(?:Image_)?(?:Metadata|FileName|PathName|URL)_.+")
_MISSING = ["", "nan", "NaN", "NA", "null"]


@dataclass(frozen=True)
class ImportSettings:
    """What a file's columns mean, where their names do not say it.

    Args:
        columns: key (`plate`, `well`, `batch`, `source`, `cell_count`, `field_count`) to column name.
        features: names of the columns that are features, in order; None to go by their names.
        source: for files and layouts that name none.
        batch: for files and layouts that name none.
    """

    columns: dict[str, str] = field(default_factory=dict)
    features: tuple[str, ...] | None = None
    source: str | None = None
    batch: str | None = None


@dataclass(frozen=True)
class ProfileTable:
    """One file: `keys` has plate, well and what else the file says; `matrix` (n, d) float32, NaN = missing."""

    path: Path
    keys: pl.DataFrame
    matrix: np.ndarray
    features: tuple[str, ...]


def read_profile_table(path: Path, settings: ImportSettings) -> ProfileTable:
    """Read one file of well profiles.

    Raises:
        ProfileError: it cannot be read, lacks a key, repeats a well or a column, or holds what is no number.
    """
    table = _open(path)
    if table.is_empty():
        message = f"{path}: the file has no rows: nothing to import"
        raise ProfileError(message)
    keys = {}
    for key, candidates in KEY_COLUMNS.items():
        wanted = settings.columns.get(key)
        if wanted is not None and wanted not in table.columns:
            message = f"{path}: no column {wanted!r} for {key}.{suggestion(wanted, table.columns)}"
            raise ProfileError(message)
        found = wanted or next((name for name in candidates if name in table.columns), None)
        if found is not None:
            keys[key] = found
        elif key in ("plate", "well"):
            message = (
                f"{path}: no column for {key} ({' or '.join(candidates)}); it has {', '.join(table.columns[:6])}, "
                f"…: name it with --column {key}=NAME"
            )
            raise ProfileError(message)
    features = _features(path, table, settings, set(keys.values()))
    return ProfileTable(path, _keys(path, table, keys), _matrix(path, table, features), features)


def _open(path: Path) -> pl.DataFrame:
    name = path.name.lower()
    if not path.is_file():
        message = f"{path}: " + (
            "is a folder: name the files in it" if path.is_dir() else "there is no such file"
        )
        raise ProfileError(message)
    try:
        if name.endswith(".parquet"):
            return pl.read_parquet(path)
        if name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
            separator = "\t" if ".tsv" in name else ","
            _refuse_repeated_columns(path, separator)
            return pl.read_csv(path, separator=separator, infer_schema=False, null_values=_MISSING)
    except (pl.exceptions.PolarsError, OSError) as error:
        message = f"{path}: cannot be read as a table: {str(error).splitlines()[0]}"
        raise ProfileError(message) from error
    message = f"{path}: unknown kind of file {path.suffix!r}: give .csv, .csv.gz, .tsv or .parquet"
    raise ProfileError(message)


def _refuse_repeated_columns(path: Path, separator: str) -> None:
    """Look at the header before a reader renames the second of two columns of one name."""
    header = pl.read_csv(path, separator=separator, has_header=False, n_rows=1, infer_schema=False).row(0)
    for name in header:
        if name is not None and header.count(name) > 1:
            message = f"{path}: column {name!r} stands {header.count(name)} times: keep one"
            raise ProfileError(message)


def _features(path: Path, table: pl.DataFrame, settings: ImportSettings, keys: set[str]) -> tuple[str, ...]:
    if settings.features is not None:
        for name in settings.features:
            if name not in table.columns:
                raise unknown(name, f"feature in {path}", table.columns)
        return settings.features
    features = []
    for name in table.columns:
        if name in keys or _METADATA.fullmatch(name):
            continue
        if not _FEATURE.fullmatch(name):
            message = (
                f"{path}: column {name!r} is neither metadata (Metadata_…) nor a known kind of feature "
                "(Cells_, Nuclei_, Cytoplasm_, Image_, emb0, X_1): list the features with --features FILE"
            )
            raise ProfileError(message)
        features.append(name)
    if not features:
        message = f"{path}: no column is a feature (Cells_, Nuclei_, …): list them with --features FILE"
        raise ProfileError(message)
    return tuple(features)


def _keys(path: Path, table: pl.DataFrame, keys: dict[str, str]) -> pl.DataFrame:
    counts = {"cell_count", "field_count"}
    frame = table.select(
        pl.col(column).cast(pl.Float64, strict=False).round().cast(pl.Int32).alias(key)
        if key in counts
        else _text(table, column).alias(key)
        for key, column in keys.items()
    )
    for key in counts & keys.keys():
        lost = (frame[key].is_null() & table[keys[key]].is_not_null()).arg_true()
        if len(lost):
            row = int(lost[0])
            message = f"{path}: row {row + 2}, column {keys[key]!r}: {table[keys[key]][row]!r} is not a count"
            raise ProfileError(message)
    for key in ("plate", "well"):
        empty = frame[key].is_null().arg_true()
        if len(empty):
            message = f"{path}: row {int(empty[0]) + 2} has no {key}: every profile needs one"
            raise ProfileError(message)
    try:
        wells = [normalise(well) for well in frame["well"]]
    except WellhouseError as error:
        message = f"{path}: {error}"
        raise ProfileError(message) from error
    frame = frame.with_columns(pl.Series("well", wells, dtype=pl.String))
    by = [key for key in ("source", "plate", "well") if key in frame.columns]
    twice = frame.filter(frame.select(by).is_duplicated())
    if len(twice):
        plate, well = twice.select("plate", "well").row(0)
        message = f"{path}: well {well!r} of plate {plate!r} has more than one profile: keep one row a well"
        raise ProfileError(message)
    return frame


def _text(table: pl.DataFrame, column: str) -> pl.Expr:
    """Write a key as text; a whole number that a Parquet file keeps as a float is written without its `.0`."""
    key = pl.col(column)
    if table.schema[column].is_float():
        whole = key.cast(pl.Int64, strict=False)
        key = pl.when(whole == key).then(whole.cast(pl.String)).otherwise(key.cast(pl.String))
    return key.cast(pl.String).str.strip_chars()


def _matrix(path: Path, table: pl.DataFrame, features: tuple[str, ...]) -> np.ndarray:
    numbers = table.select(pl.col(name).cast(pl.Float64, strict=False) for name in features)
    for name in features:
        lost = (numbers[name].is_null() & table[name].is_not_null()).arg_true()
        if len(lost):
            row = int(lost[0])
            message = (
                f"{path}: row {row + 2}, column {name!r}: {table[name][row]!r} is not a number: mend it, or list "
                "the features with --features FILE"
            )
            raise ProfileError(message)
    with np.errstate(over="ignore"):  # beyond float32 is infinite: that row is rejected by name
        return numbers.fill_null(np.nan).to_numpy().astype(np.float32)


def read_feature_list(path: Path) -> tuple[str, ...]:
    """Read names of features, one a line, in order.

    Raises:
        ProfileError: no file, no name, or a name twice.
    """
    if not path.is_file():
        message = f"{path}: there is no such file of feature names"
        raise ProfileError(message)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        message = f"{path}: not a text file of feature names ({error}): write one name a line, in UTF-8"
        raise ProfileError(message) from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if not names or twice:
        message = f"{path}: " + (f"feature {sorted(twice)[0]!r} stands twice" if twice else "holds no name")
        raise ProfileError(message)
    return tuple(names)
