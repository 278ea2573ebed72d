"""DeepProfiler: one `.npz` a site, features/<plate>/<well>/<site>.npz, with the cells of its image.

`metadata` in these files is a pickled dictionary, and a pickle can run code when it is read: it is never read. Plate,
well and site come from the path; `features` and `locations` are plain arrays.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from warehouse.errors import ProfileError, ScreenError
from warehouse.formats.model import REJECTIONS, ImportSettings, Part, Plate
from warehouse.wells import normalise

_WELL_AND_SITE = re.compile(r"([A-Za-z]{1,2}\d{1,3})[_-](.+)")
#: Claimed bytes for each byte stored, at most; deflate reaches about a thousand.
_LARGEST_RATIO = 2000


@dataclass(frozen=True)
class _Site:
    path: Path
    plate: str
    well: str
    field: str


def recognises(path: Path) -> bool:
    """Whether a path is an `.npz` file, or a folder with one in it or below."""
    if path.is_dir():
        return next(path.rglob("*.npz"), None) is not None
    return path.name.lower().endswith(".npz") and path.is_file()


def read(paths: Sequence[Path], settings: ImportSettings) -> list[Plate]:
    """Find the sites of DeepProfiler's folders; all paths of one call are one input.

    Raises:
        ProfileError: no file was found, a path does not say plate, well and site, two say the same, or no file of a
            plate can be read.
    """
    files = []
    for path in paths:
        found = sorted(path.rglob("*.npz")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            message = f"{path}: no .npz file: give features/<plate>/<well>/<site>.npz, or a folder above"
            raise ProfileError(message)
        files += found
    plates: dict[str, dict[tuple[str, str], _Site]] = {}
    for file in dict.fromkeys(files):
        site = _site(file, settings)
        sites = plates.setdefault(site.plate, {})
        other = sites.setdefault((site.well, site.field), site)
        if other is not site:
            message = (
                f"{file}: site {site.field!r} of well {site.well!r} is {other.path} too: keep one file a site"
            )
            raise ProfileError(message)
    return [_plate(name, [sites[key] for key in sorted(sites)], settings) for name, sites in plates.items()]


def _site(path: Path, settings: ImportSettings) -> _Site:
    """Read plate, well and site off a path: <plate>/<well>/<site>.npz, or <plate>/<well>_<site>.npz."""
    ways = [(path.parent.parent.name, path.parent.name, path.stem)]
    if match := _WELL_AND_SITE.fullmatch(path.stem):  # first: a plate named P1 looks like a well, too
        ways.insert(0, (path.parent.name, match[1], match[2]))
    for plate, well, field in ways:
        try:
            named = normalise(well)
        except ScreenError:
            continue
        if settings.plate or plate:
            return _Site(path, settings.plate or plate, named, field)
    message = (
        f"{path}: the path does not say plate, well and site: name it <plate>/<well>/<site>.npz or "
        "<plate>/<well>_<site>.npz, such as BR00116991/A01/3.npz"
    )
    raise ProfileError(message)


def _plate(name: str, sites: list[_Site], settings: ImportSettings) -> Plate:
    dim, first_fault = 0, None
    for site in sites:
        try:
            shape = _shape(site.path)
        except ProfileError as error:
            first_fault = first_fault or error
            continue
        if shape[0]:
            dim = shape[1]
            break
    if not dim:
        raise first_fault or ProfileError(f"{sites[0].path.parent}: no site of plate {name!r} has a cell")
    features = settings.features or tuple(f"feature_{index}" for index in range(dim))
    if len(features) != dim:
        message = f"{sites[0].path}: has {dim} features, and {len(features)} are named: name as many, or none"
        raise ProfileError(message)
    return Plate(sites[0].path.parent, {"plate": name}, "cell", features, _parts(sites, dim))


def _parts(sites: Sequence[_Site], dim: int) -> Callable[[], Iterator[Part]]:
    def parts() -> Iterator[Part]:
        for site in sites:
            try:
                keys, matrix = _cells(site, dim)
                rejected = []
            except ProfileError as error:
                keys, matrix = _keys(site, 0), np.empty((0, dim), np.float32)
                rejected = [(site.well, site.field, None, str(error))]
            yield Part(keys, matrix, pl.DataFrame(rejected, schema=REJECTIONS, orient="row"))

    return parts


def _cells(site: _Site, dim: int) -> tuple[pl.DataFrame, np.ndarray]:
    shape = _shape(site.path)
    if not shape[0]:
        return _keys(site, 0), np.empty((0, dim), np.float32)
    if shape[1] != dim:
        message = f"{site.path}: has {shape[1]} features, the first site of its plate has {dim}"
        raise ProfileError(message)
    with _opened(site.path) as file, np.errstate(over="ignore"):
        matrix = file["features"].astype(np.float32)
        places = file["locations"] if "locations" in _plain(site.path) else None
    keys = _keys(site, len(matrix))
    if places is not None and places.shape == (len(matrix), 2):
        places = np.where(np.isfinite(places.astype(np.float64)), places, np.nan)
        keys = keys.with_columns(
            pl.Series(name, np.ascontiguousarray(places[:, axis], np.float64), nan_to_null=True)
            for axis, name in enumerate(("x_px", "y_px"))
        )
    return keys, matrix


def _keys(site: _Site, count: int) -> pl.DataFrame:
    """Number the cells of a site by their rows, from 1: the files do not name them."""
    rows = pl.DataFrame({"cell": [str(row + 1) for row in range(count)]}, schema={"cell": pl.String})
    return rows.select(pl.lit(site.well).alias("well"), pl.lit(site.field).alias("field"), "cell")


def _shape(path: Path) -> tuple[int, int]:
    """Read the shape of a site's features: (cells, dim); (0, 0) without cells."""
    arrays = _plain(path)
    if "features" not in arrays:
        message = f"{path}: no array 'features' of numbers: is this of DeepProfiler?"
        raise ProfileError(message)
    shape = arrays["features"]
    if 0 in shape:
        return 0, 0
    if len(shape) != 2:
        message = f"{path}: features have the shape {shape}: one row a cell is needed"
        raise ProfileError(message)
    return shape[0], shape[1]


class _opened:  # used as a context manager only
    """Opens an archive of arrays; whatever is wrong with it is a ProfileError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        try:
            self.file = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._fault(error) from error
        return self.file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)):
            raise self._fault(error) from error

    def _fault(self, error: BaseException) -> ProfileError:
        return ProfileError(f"{self.path}: cannot be read as .npz: {' '.join(str(error).split())}")


def _plain(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the headers of a file's arrays of numbers: name to shape; pickled objects are passed over.

    Raises:
        ProfileError: the file is no archive, or claims more than it can hold.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name not in ("features", "locations"):
                    continue
                if info.file_size > _LARGEST_RATIO * max(info.compress_size, 1024):
                    message = f"{path}: {name} claims {info.file_size} bytes of {info.compress_size} stored: refused"
                    raise ProfileError(message)
                with archive.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    header = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = header(member)
                if dtype.kind not in "fiu":
                    continue
                if int(np.prod(shape, dtype=object)) * dtype.itemsize > info.file_size:
                    message = (
                        f"{path}: {name} claims the shape {shape}, and holds {info.file_size} bytes: refused"
                    )
                    raise ProfileError(message)
                found[name] = shape
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        message = f"{path}: cannot be read as .npz: {' '.join(str(error).split())}"
        raise ProfileError(message) from error
    return found
