"""The image manifests (load_data.csv) of JUMP and the Cell Painting Gallery."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from warehouse.errors import ScreenError
from warehouse.screens.identity import HINTS
from warehouse.screens.paths import absolute, join_folders, refuse_urls, slashed
from warehouse.screens.table import check_columns, columns_of
from warehouse.screens.wide import chosen, left_out, to_long

_FILE, _FOLDER, _URL = "FileName_Orig", "PathName_Orig", "URL_Orig"
_IDS = {"Metadata_Plate": "plate", "Metadata_Well": "well", "Metadata_Site": "field"}
_OPTIONAL = {"Metadata_Source": "source", "Metadata_Batch": "batch"}


def is_manifest(columns: Sequence[str]) -> bool:
    """Tell whether these are columns of a load_data.csv."""
    return any(name.startswith((_FILE, _URL)) for name in columns)


def manifest(
    table: pl.DataFrame, path: Path, images: Path | str | None, channels: Sequence[str] | None
) -> tuple[pl.DataFrame, list[str]]:
    """Read a load_data.csv: one row a site, one pair of columns a channel.

    Folders that were recorded on another machine are found below `images` by `paths.locate`; without
    `images` they are taken as they are. Source and batch come from Metadata_Source and Metadata_Batch, else
    from the gallery's folders ``<source>/workspace/load_data_csv/<batch>/<plate>/load_data.csv``.

    Args:
        table: the file as text, from `read_table`.
        path: the file.
        images: folder of the images, here or on S3; None takes the recorded folders as they are.
        channels: channels to read, in this order; None for all but brightfield ones.

    Returns:
        The rows with trace, and notes.

    Raises:
        ScreenError: naming the file, the row and the value.
    """
    origin = str(path)
    available = _channels(table, path)
    check_columns(table, path, list(_IDS))
    default = [name for name in available if not name.casefold().startswith("brightfield")]
    if channels is None and not default:
        message = (
            f"{path}: there are only brightfield channels ({', '.join(available)}). Ask for them by name."
        )
        raise ScreenError(message)
    read = chosen(available, channels, default)
    table = table.rename({**_IDS, **{old: new for old, new in _OPTIONAL.items() if old in table.columns}})
    table = _with_hints(table, path).with_columns(pl.lit(None, dtype=pl.String).alias("cell"))
    for name in read:
        folder, file = f"{_FOLDER}{name}", f"{_FILE}{name}"
        if folder not in table.columns:
            table = _split_url(table, f"{_URL}{name}", folder, file, origin)
        table = join_folders(table, folder, file, f"path_{name}", path.parent, images, origin)
    rows, notes = to_long(table, {name: f"path_{name}" for name in read}, {}, origin)
    return rows, [*left_out(available, read), *notes]


def files_below(folder: Path) -> list[Path]:
    """Return the load_data.csv files below a folder, in order of their paths; empty where there are none."""
    return sorted(path for name in ("load_data.csv", "load_data.csv.gz") for path in folder.rglob(name))


def gallery_names(folder: Path, kind: str) -> tuple[str | None, str | None]:
    """Return the (source, batch) that the gallery's folders say, each None where they do not.

    Args:
        folder: the folder of the batch, ``…/<source>/workspace/…/<kind>/<batch>``.
        kind: the folder above the batches, such as ``"load_data_csv"`` or ``"platemaps"``.
    """
    folder = absolute(folder)
    batch = folder.name if folder.parent.name == kind else None
    parts = folder.parts
    # The last one: the tree may lie in a folder of that name.
    at = len(parts) - 1 - parts[::-1].index("workspace") if "workspace" in parts else 0
    return (parts[at - 1] if at > 1 else None), batch


def _channels(table: pl.DataFrame, path: Path) -> list[str]:
    names = columns_of(table)
    found = [
        name.removeprefix(prefix) for name in names for prefix in (_FILE, _URL) if name.startswith(prefix)
    ]
    found = list(dict.fromkeys(found))
    for name in found:
        has_file = f"{_FILE}{name}" in names and f"{_FOLDER}{name}" in names
        if not name or not (has_file or f"{_URL}{name}" in names):
            message = f"{path}: column {_FILE + name!r} has no {_FOLDER + name!r} beside it. Add it."
            raise ScreenError(message)
    return found


def _with_hints(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    source, batch = gallery_names(path.parent.parent, "load_data_csv")
    hints = {HINTS["source"]: source, HINTS["batch"]: batch}
    return table.with_columns(pl.lit(value, dtype=pl.String).alias(name) for name, value in hints.items())


def _split_url(table: pl.DataFrame, url: str, folder: str, file: str, origin: str) -> pl.DataFrame:
    """Part ``s3://bucket/folder/name``, ``file:///folder/name`` or a bare path into folder and file."""
    table = table.with_columns(slashed(url))
    refuse_urls(table, url, origin)
    return table.with_columns(
        pl.col(url).str.extract(r"^(.*)/[^/]*$").alias(folder),
        pl.col(url).str.extract(r"([^/]+)$").alias(file),
    )
