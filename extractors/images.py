"""Reading the pixels of one field, whatever files they lie in."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from warehouse.errors import ImageError

#: The most pixels a file may announce, all its planes together: no camera's field comes near it, and a few
#: kilobytes of compressed zeros can claim far more.
MAX_PIXELS = 2**28
DTYPES = ("uint8", "uint16", "float32")


def read_field(channels: Mapping[str, tuple[Path, int | None]], order: Sequence[str]) -> np.ndarray:
    """Read the channels of one field; each file is read once, however many channels lie in it.

    Args:
        channels: file and plane by channel; plane None where the file holds this one channel, else its
            0-based place among the file's channels. TIFF and OME-TIFF (.tif, .tiff), PNG (.png), NumPy
            (.npy).
        order: the channels wanted, in the order wanted.

    Returns:
        (C, H, W) in the files' own dtype: uint8, uint16 or float32.

    Raises:
        ImageError: a channel or file is missing, a file cannot be decoded or is not what the manifest says,
            or the channels differ in shape or dtype.
    """
    if not order:
        message = "no channel asked for: name at least one"
        raise ImageError(message)
    files: dict[Path, np.ndarray] = {}
    planes: list[np.ndarray] = []
    for channel in order:
        if channel not in channels:
            message = (
                f"channel {channel!r} is missing: the field has {', '.join(sorted(channels)) or 'no channel'}"
            )
            raise ImageError(message)
        path, plane = Path(channels[channel][0]), channels[channel][1]
        if path not in files:
            files[path] = _read(path)
        planes.append(_plane(path, files[path], plane))
        first = planes[0]
        if planes[-1].shape != first.shape or planes[-1].dtype != first.dtype:
            message = (
                f"{path}: channel {channel!r} is {_describe(planes[-1])}, channel {order[0]!r} of the same "
                f"field is {_describe(first)}: all channels of a field must agree"
            )
            raise ImageError(message)
    return np.stack(planes)


def digest(path: Path) -> str:
    """Give the BLAKE2b-128 digest of a file's bytes, 32 hexadecimal digits; reads in pieces.

    Raises:
        ImageError: the file is missing or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error}): expected a file"
        raise ImageError(message) from error


def _describe(image: np.ndarray) -> str:
    return f"{' × '.join(map(str, image.shape))} {image.dtype}"


def _read(path: Path) -> np.ndarray:
    """Read a whole file as (planes, H, W)."""
    readers = {".tif": _read_tiff, ".tiff": _read_tiff, ".png": _read_png, ".npy": _read_npy}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        message = f"{path}: unknown image type {path.suffix!r}: expected one of {', '.join(readers)}"
        raise ImageError(message)
    if not path.is_file():
        message = f"{path}: no such file: correct the manifest's path or fetch the image"
        raise ImageError(message)
    try:
        return reader(path)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # A disk or a machine in trouble is no fault of the image: rejected for it, the image would stay out.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Decoders raise whatever they meet in damaged bytes, struct.error or IndexError; all mean the same.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"{path}: cannot be decoded ({reason}): expected a whole {path.suffix.lower()} image"
        raise ImageError(message) from error


def _check_header(path: Path, shape: Sequence[int], dtype: np.dtype) -> None:
    """Refuse what must not or cannot be decoded, before a pixel is."""
    if dtype.newbyteorder("=").name not in DTYPES:
        message = f"{path}: pixels are {dtype}: expected {', '.join(DTYPES)}"
        raise ImageError(message)
    pixels = int(np.prod([int(side) for side in shape], dtype=object))
    if pixels == 0:
        message = f"{path}: is empty, shape {tuple(shape)}: expected at least one pixel"
        raise ImageError(message)
    if pixels > MAX_PIXELS:
        message = f"{path}: announces {pixels} pixels, shape {tuple(shape)}: expected at most {MAX_PIXELS}"
        raise ImageError(message)


def _read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.series) != 1:
            message = f"{path}: holds {len(tiff.series)} image series: expected one"
            raise ImageError(message)
        series = tiff.series[0]
        _check_header(path, series.shape, series.dtype)
        _check_segments(path, series)
        # Q and I are pages whose meaning the file does not state; S are the samples of an RGB image.
        axes = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if a in "YX" or n > 1]
        names = "".join(a for a, _ in axes)
        if names not in ("YX", "CYX", "QYX", "IYX", "SYX", "YXS", "YXC"):
            sides = ", ".join(f"{a} {n}" for a, n in axes)
            message = (
                f"{path}: has axes {sides}: expected Y and X, and at most one axis of channels (one Z, one T)"
            )
            raise ImageError(message)
        image = series.asarray().reshape([n for _, n in axes])
    image = np.moveaxis(image, 2, 0) if names in ("YXS", "YXC") else image
    return image.reshape((-1, *image.shape[-2:]))


def _check_segments(path: Path, series: tifffile.TiffPageSeries) -> None:
    """Refuse a TIFF whose strips are absent or reach past its end: the decoder would fill them with zeros."""
    size = path.stat().st_size
    for number, page in enumerate(series.pages):
        if page is None:
            message = f"{path}: plane {number} lies in a missing file: expected all planes in this one"
            raise ImageError(message)
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            if not (offset and count) or offset + count > size:
                message = (
                    f"{path}: is cut short: plane {number} has {count} bytes at {offset}, the file {size}; "
                    "copy it again"
                )
                raise ImageError(message)


def _read_png(path: Path) -> np.ndarray:
    data = path.read_bytes()
    signature, name, width, height, depth, colour = struct.unpack(">8s4x4sIIBB", data[:26])
    if signature != b"\x89PNG\r\n\x1a\n" or name != b"IHDR":
        message = f"{path}: starts with {data[:8]!r}: expected a PNG file"
        raise ImageError(message)
    samples = {0: 1, 2: 3}.get(colour)
    if samples is None or depth not in (8, 16):
        message = (
            f"{path}: is a PNG of colour type {colour} and {depth} bits: expected grey or RGB of 8 or 16 bits"
        )
        raise ImageError(message)
    _check_header(path, (samples, height, width), np.dtype(f"uint{depth}"))
    image = imagecodecs.png_decode(data)
    return np.moveaxis(image.reshape(height, width, samples), 2, 0)


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(file)
        _check_header(path, shape, dtype)
    if len(shape) not in (2, 3):
        message = f"{path}: has shape {shape}: expected (H, W), (channels, H, W) or (H, W, channels)"
        raise ImageError(message)
    image = np.load(path, allow_pickle=False)
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.ndim == 2:
        return image[None]
    smallest = [axis for axis in range(3) if shape[axis] == min(shape)]
    if smallest not in ([0], [2]):
        message = f"{path}: has shape {shape}: expected channels first or last, fewer than rows and columns"
        raise ImageError(message)
    return np.moveaxis(image, smallest[0], 0)


def _plane(path: Path, planes: np.ndarray, plane: int | None) -> np.ndarray:
    """Pick one plane and check its pixels."""
    if plane is None and len(planes) != 1:
        message = (
            f"{path}: holds {len(planes)} planes (RGB or several channels): expected one, or a plane to take"
        )
        raise ImageError(message)
    if plane is not None and not 0 <= plane < len(planes):
        message = f"{path}: plane {plane} is out of range: expected 0 to {len(planes) - 1}"
        raise ImageError(message)
    image = planes[plane or 0]
    if image.dtype.kind == "f" and not (finite := np.isfinite(image)).all():
        row, column = np.argwhere(~finite)[0].tolist()
        message = (
            f"{path}: {np.sum(~finite)} pixels are not finite, the first {image[row, column]} at row {row}, "
            f"column {column}: expected finite intensities"
        )
        raise ImageError(message)
    return image
