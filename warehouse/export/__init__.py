"""Giving profiles out: Parquet, CSV, AnnData and NumPy, with the field's names, their features and their lineage.

Rows come in the order of their ids, all of one snapshot, in batches, so that memory does not grow with the level;
levels above wells are computed by their views in one piece. Files are written whole or not at all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warehouse import __version__, feature_sets, profiles
from warehouse.errors import ExportError
from warehouse.export import stream, whole
from warehouse.export.columns import NAMES
from warehouse.export.h5ad import H5adWriter
from warehouse.export.writers import CsvWriter, GzippedCsvWriter, Head, NumpyWriter, ParquetWriter, Writer
from warehouse.lake import Lake
from warehouse.names import unknown

__all__ = ["FORMATS", "ExportReport", "export", "write"]

#: Ending of the file's name → what writes it; the first one of each format is its `--format`.
_WRITERS: dict[str, type[Writer]] = {
    ".parquet": ParquetWriter,
    ".csv": CsvWriter,
    ".csv.gz": GzippedCsvWriter,
    ".h5ad": H5adWriter,
    ".npy": NumpyWriter,
}
FORMATS = ("parquet", "csv", "h5ad", "npy")


@dataclass(frozen=True)
class ExportReport:
    """What was written: number of rows and of features, and the files, the one that was named first."""

    rows: int
    features: int
    files: tuple[Path, ...]


def export(
    lake: Lake,
    feature_set: str,
    out: str | Path,
    *,
    level: str = "well",
    recipe: str = "none",
    where: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write profiles to a file.

    Args:
        lake: an open lake; its newest snapshot is read, or the one that it was opened at.
        feature_set: its name.
        out: the file; its ending says what it is.
        level: of `warehouse.profiles.LEVELS`.
        recipe: its steps or its name in the lake; `none` for the profiles as they came in.
        where: an SQL predicate over the level's columns, for rows after aggregation (`warehouse.slices` chooses wells
            before it); for cells and fields also over what was done to their well (treatment, compound,
            concentration, unit, control_type).
        format: of `FORMATS`, for a file whose name does not end in it.
        overwrite: replace files that are there.

    Returns:
        What was written.

    Raises:
        ExportError: no such format or place, a file is there already, there is no row, or the disk is full; no file
            is left.
        UnknownNameError: no such feature set, level or step.
        RecipeError: the recipe was never fitted, or plates wait for it.
        ProfileError: the predicate is not one, or names a column that the level lacks.
    """
    with lake.reading():
        selection = stream.select(lake, feature_set, level, recipe, where)
        return write(lake, selection, out, format=format, overwrite=overwrite)


def write(
    lake: Lake,
    selection: stream.Selection,
    out: str | Path,
    *,
    format: str | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write the rows of a selection to a file.

    Args:
        lake: inside `Lake.reading`, in which the selection was made.
        selection: of `warehouse.export.stream.select` or `warehouse.slices.select`.
        out: as in `export`.
        format: as in `export`.
        overwrite: as in `export`.

    Raises:
        ExportError: as in `export`.
        ProfileError: the predicate names a column that the level lacks, or fails on a value.
    """
    path = Path(out).expanduser()
    ending, writer = _writer(path, format)
    stem = path.name[: len(path.name) - len(ending)]
    files = (path, *(path.with_name(stem + companion) for companion in writer.companions))
    ids = tuple(NAMES[name] for name in profiles.IDS[selection.level])
    head = Head(selection.recipe.feature_names, ids, _lineage(lake, selection))
    rows = 0
    try:
        with whole.written(files, overwrite=overwrite) as paths, writer(paths, head) as made:
            for metadata, matrix in stream.batches(lake, selection):
                made.write(metadata, matrix)
                rows += len(metadata)
            made.finish()
    except OSError as error:
        message = (
            f"{path}: cannot be written: {error.strerror or error}; nothing is left of it: name another place"
        )
        raise ExportError(message) from error
    return ExportReport(rows, len(head.features), files)


def _writer(path: Path, format: str | None) -> tuple[str, type[Writer]]:
    """Find what writes a file: by its ending, else by the format that was named."""
    if "://" in str(path) or str(path).startswith(("s3:/", "postgres:")):
        message = f"{path}: export writes to a folder of this machine; name a path"
        raise ExportError(message)
    if format is not None and format not in FORMATS:
        raise unknown(format, "format", FORMATS)
    name = path.name.lower()
    ending = next((known for known in sorted(_WRITERS, key=len, reverse=True) if name.endswith(known)), None)
    if ending is None and format is not None:
        # What follows the last dot may be a part of the name: companions are named after all of it.
        return "", _WRITERS[f".{format}"]
    if ending is None:
        message = (
            f"{path}: unknown kind of file {path.suffix!r}: end its name in {', '.join(_WRITERS)}, or give --format "
            f"({', '.join(FORMATS)})"
        )
        raise ExportError(message)
    if format is not None and ending.split(".")[1] != format:
        message = f"{path}: the name says {ending}, --format says {format}: make them agree"
        raise ExportError(message)
    return ending, _WRITERS[ending]


def _lineage(lake: Lake, selection: stream.Selection) -> dict[str, Any]:
    """Tell where rows come from: enough to make the same file again from the same lake."""
    target = selection.feature_set
    return {
        "wellhouse": __version__,
        "lake": lake.address,
        "snapshot": lake.snapshot(),
        "feature_set": target.name,
        "identity": target.identity(),
        "content": profiles.fingerprint(lake, target.name, selection.recipe.name),
        "extractor": target.extractor,
        "extractor_version": target.version,
        "weights": target.weights,
        "parameters": target.parameters,
        "channels": list(target.channels),
        "entry_level": target.entry_level,
        "field_operator": target.field_operator,
        "well_operator": target.well_operator,
        **feature_sets.operators(lake.connection, target.name),
        "recipe": selection.recipe.steps,
        "level": selection.level,
        "where": selection.where,
        **({} if selection.wells is None else {"wells": dict(selection.wells)}),
    }
