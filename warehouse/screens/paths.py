"""Finding image files: below which root, in which folder, and never outside.

A root is a folder of this machine (a `Path`) or a prefix on S3 (text, `s3://bucket/prefix`).
"""

import os
import posixpath
from pathlib import Path

import polars as pl

from warehouse import places
from warehouse.errors import ScreenError
from warehouse.screens.table import literal, refuse

_URL = r"^[A-Za-z][A-Za-z0-9+.\-]+://"
_ABSOLUTE = r"^(/|[A-Za-z]:|s3://)"
_ON_S3 = r"^s3://[A-Za-z0-9][A-Za-z0-9._-]+(/[^/]+)*/?$"


def absolute(folder: Path) -> Path:
    """Make a path absolute without following links: what counts is the tree as the user names it."""
    return Path(os.path.abspath(folder))  # noqa: PTH100  (Path.absolute keeps "..")


def check_images(images: Path | str | None) -> None:
    """Refuse an images folder that is not there.

    Raises:
        ScreenError: naming the folder.
    """
    if images is not None and not places.is_folder(images):
        message = f"images folder {images}: there is no such folder. Correct the path."
        raise ScreenError(message)


def slashed(column: str) -> pl.Expr:
    """Write a column of paths with forward slashes (Windows manifests) and without ``file://``."""
    return pl.col(column).str.replace_all("\\", "/", literal=True).str.replace(r"^file://", "")


def refuse_urls(table: pl.DataFrame, column: str, origin: str) -> None:
    """Refuse addresses such as ``https://…``, and those on S3 that no folder could hold.

    Raises:
        ScreenError: naming the row and the address.
    """
    is_s3 = pl.col(column).str.starts_with(places.SCHEME)
    bad = table.filter(pl.col(column).str.contains(_URL) & ~is_s3)
    says = f"{{{column}!r}} is an address, and only files are read, on disk or on s3://"
    refuse(bad, origin, says, "Copy the images to a folder and give that folder as images.")
    tidy = pl.col(column).str.contains(_ON_S3) & ~pl.col(column).str.contains(r"/\.{1,2}(/|$)")
    says = f"{{{column}!r}} is no address s3://bucket/key without empty names, '.' and '..' in the key"
    refuse(table.filter(is_s3 & ~tidy), origin, says, "Correct it.")


def resolve(
    table: pl.DataFrame, column: str, root: Path | str, images: Path | str | None, origin: str
) -> pl.DataFrame:
    """Make a column of paths absolute.

    A relative path is taken from `root` and must stay below it. An absolute path must lie below `images`
    where that is given. The text is compared, links are not followed, and no file is touched.

    Args:
        table: the rows, with a String column `column`.
        column: the column of paths.
        root: folder that relative paths start from.
        images: the images folder that the user named, if any.
        origin: what the table is, for messages.

    Raises:
        ScreenError: a path is an address or leaves its root.
    """
    table = table.with_columns(slashed(column))
    refuse_urls(table, column, origin)
    is_local = ~pl.col(column).str.starts_with(places.SCHEME)
    untidy = table.filter(is_local & pl.col(column).str.contains(r"//|(^|/)\.{1,2}(/|$)"))[column].unique()
    tidy = pl.Series([posixpath.normpath(path) for path in untidy], dtype=pl.String)
    path = pl.col(column).replace(untidy, tidy) if untidy.len() else pl.col(column)
    home = _home(root)
    out = table.with_columns(path.alias("__path"), pl.col(column).str.contains(_ABSOLUTE).alias("__absolute"))
    outside = out.filter(~pl.col("__absolute") & pl.col("__path").str.contains(r"^\.\.?(/|$)"))
    refuse(
        outside,
        origin,
        f"path {{{column}!r}} leads out of {literal(home)}",
        "Give a path to a file below that folder.",
    )
    if images is not None:
        bounds = {_home(images)}
        if isinstance(images, Path):
            bounds.add(images.resolve().as_posix().rstrip("/"))
        below = pl.any_horizontal(pl.col("__path").str.starts_with(f"{bound}/") for bound in sorted(bounds))
        stray = out.filter(pl.col("__absolute") & ~below)
        remedy = "Give a path below it, or another images folder."
        refuse(stray, origin, f"path {{{column}!r}} is not below the images folder {literal(images)}", remedy)
    full = pl.when("__absolute").then("__path").otherwise(pl.concat_str(pl.lit(f"{home}/"), "__path"))
    return out.with_columns(full.alias(column)).drop("__path", "__absolute")


def _home(root: Path | str) -> str:
    return (absolute(root).as_posix() if isinstance(root, Path) else places.located(root)).rstrip("/")


def locate(folder: str, root: Path | str, probe: str | None) -> str:
    """Find a folder that was named on another machine, below a root on this one or on S3.

    The rule: the longest ending of `folder` that is a folder below `root`; failing that `root` itself, if
    the file `probe` lies directly in it; failing that the whole of `folder` below `root`, so that its
    files are reported as absent, and those of two absent folders are kept apart.

    Args:
        folder: the folder as recorded, with forward slashes.
        root: the images folder.
        probe: the name of one file of that folder.

    Returns:
        An absolute path with forward slashes, or an address on S3.
    """
    home = _home(root) or "/"
    if isinstance(root, str) and f"{folder.rstrip('/')}/".startswith(f"{home}/"):
        return folder.rstrip("/")
    parts = [part for part in folder.split("/") if part not in ("", ".") and not part.endswith(":")]
    for start in range(len(parts)):
        candidate = places.join(home, "/".join(parts[start:]))
        if places.is_folder(candidate):
            return candidate
    if probe is not None and places.entry(places.join(home, probe)) is not None:
        return home
    return places.join(home, "/".join(parts)) if parts else home


def join_folders(
    table: pl.DataFrame, folder: str, file: str, path: str, root: Path, images: Path | str | None, origin: str
) -> pl.DataFrame:
    """Put folder and file columns together into a column of absolute paths, by `locate`.

    Args:
        table: rows with String columns `folder` and `file`.
        folder: name of the column of folders.
        file: name of the column of file names.
        path: name of the column to make; null where the file name is null.
        root: where relative folders start.
        images: the images folder; None takes absolute folders as they are.
        origin: what the table is, for messages.

    Raises:
        ScreenError: a folder climbs with ``..``, or a file name holds a folder.
    """
    table = table.with_columns(slashed(folder), slashed(file))
    refuse_urls(table, folder, origin)
    climbs = table.filter(pl.col(folder).str.contains(r"(^|/)\.\.(/|$)"))
    refuse(climbs, origin, f"folder {{{folder}!r}} climbs with '..'", "Give the folder without '..'.")
    nested = table.filter(pl.col(file).str.contains(r"/|^\.{1,2}$"))
    refuse(
        nested, origin, f"{file} {{{file}!r}} is not a bare file name", "Put the folder into its own column."
    )
    probes = table.group_by(folder, maintain_order=True).agg(pl.col(file).drop_nulls().first())
    places = [_place(name or "", root, images, probe) for name, probe in probes.iter_rows()]
    probes = probes.select(folder, pl.Series("__folder", places, dtype=pl.String))
    joined = table.join(probes, on=folder, how="left", nulls_equal=True, maintain_order="left")
    return joined.with_columns(pl.concat_str("__folder", pl.lit("/"), file).alias(path)).drop("__folder")


def _place(folder: str, root: Path, images: Path | str | None, probe: str | None) -> str:
    if images is None and (folder.startswith(("/", places.SCHEME)) or folder[1:2] == ":"):
        return folder.rstrip("/")
    return locate(folder, images or root, probe)


def check_some_exist(manifest: pl.DataFrame, root: Path | str, origin: str) -> None:
    """Refuse a manifest of which not one file is there: then the folder is wrong, not the files.

    Single missing files are no error here; they are recorded field by field when images are read.

    Raises:
        ScreenError: naming the root and the first path.
    """
    paths = manifest["path"].unique(maintain_order=True)
    # Folder by folder: where none is there, a wrong root is told without asking for every file.
    by_folder = pl.DataFrame({"path": paths, "folder": paths.str.extract("^(.*/)")}).partition_by("folder")
    if not any(_holds_one(part["folder"][0].rstrip("/"), part["path"]) for part in by_folder):
        message = (
            f"{origin}: none of the {paths.len()} image files is there; looked below {root}, "
            f"first for {paths[0]}. Is the images folder right?"
        )
        raise ScreenError(message)


def _holds_one(folder: str, paths: pl.Series) -> bool:
    if places.is_remote(folder):  # one listing, for a question a file is slow there
        there = {entry.location for entry in places.listing(folder, recursive=False, missing_ok=True)}
        return any(path in there for path in paths)
    return Path(folder or "/").is_dir() and any(Path(path).is_file() for path in paths)
