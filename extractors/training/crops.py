"""From pixels to what a network is given: illumination, percentiles of the image, the crop around each cell, its size.

Training and extraction both come here, so that a network sees at extraction, byte for byte, what it was trained on.

Source: Moshkov et al. 2024, doi:10.1038/s41467-024-45999-1, Methods, image preprocessing: an illumination function a
channel and plate, the histogram of each image stretched between its 0.05th and 99.95th percentile, 16 to 8 bits,
128 × 128 pixels around each nucleus.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from extractors.base import FieldSample, SettingError
from extractors.crops import cut_crops
from extractors.training.masks import central_cell
from warehouse.errors import ImageError
from warehouse.names import unknown

#: What a crop's pixels may be kept as, and the largest value of each.
LARGEST = {"uint8": 255, "uint16": 65535}
#: About how many pixels a percentile is guessed from, before it is found.
_GUESSED_FROM = 16384


@dataclass(frozen=True)
class CropSettings:
    """How an image becomes crops; all of it changes the numbers.

    Args:
        crop: side of the square cut around a nucleus in a whole field, pixels of the image; a single-cell picture
            is used whole.
        size: side to which crops are resized; None leaves them as they are cut.
        clip: percentiles of the image's own pixels in a channel that become 0 and the largest value.
        dtype: `uint8` or `uint16`.
        illumination: divide whole fields by the illumination function of their plate.
        masked: set what is not of the cell to 0; else a cell is seen with its surroundings.

    Raises:
        SettingError: a number that cannot be; the message names it.
        UnknownNameError: no such dtype.
    """

    crop: int = 128
    size: int | None = None
    clip: tuple[float, float] = (0.05, 99.95)
    dtype: str = "uint8"
    illumination: bool = True
    masked: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.crop if self.size is None else self.size)
        for name in ("crop", "size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                message = f"crops: {name} is {value!r}: give a whole number of pixels, 1 or more"
                raise SettingError(message)
        ends = tuple(float(end) for end in self.clip)
        if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 100:
            message = (
                f"crops: clip is {self.clip!r}: give two percentiles, the lower first, such as 0.05 and 99.95"
            )
            raise SettingError(message)
        object.__setattr__(self, "clip", ends)
        if self.dtype not in LARGEST:
            raise unknown(str(self.dtype), "dtype of crops", LARGEST)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Take the part of a method's settings, by name, that decides a crop's pixels."""
        return cls(
            crop=settings["crop"], size=settings["size"] or None, clip=(settings["clip_low"], settings["clip_high"]),
            dtype=settings["pixels"], illumination=settings["illumination"], masked=settings["masked"],
        )  # fmt: skip

    @property
    def side(self) -> int:
        """Side of what comes out, pixels."""
        return self.crop if self.size is None else self.size


def prepare(
    sample: FieldSample, settings: CropSettings, illumination: np.ndarray | None = None
) -> np.ndarray:
    """Make the crops of a field's cells, or of a single-cell picture.

    Args:
        sample: a field, of whose cells only `x_px` and `y_px` are read; with `settings.masked` it needs its masks. Or
            a single-cell picture, which is used whole, whatever its sides, and is masked by segmenting it here.
        settings: see `CropSettings`.
        illumination: (C, H, W) float32 of the field's plate, of `illumination_of`; single-cell pictures take none.

    Returns:
        (n, C, size, size) in `settings.dtype`, rows as `sample.cells`. A channel without contrast, whose two
        percentiles are one value, is 0 throughout.

    Raises:
        ImageError: no channel has contrast, the illumination function or the masks do not fit the pixels, or no cell
            is found in a single-cell picture that is to be masked.
        SettingError: a field without illumination function, or without masks, where settings ask for them.
    """
    n, channels = len(sample.cells), len(sample.pixels)
    light = illumination if settings.illumination and not sample.is_crop else None
    if settings.illumination and not sample.is_crop and light is None:
        message = (
            "crops: illumination is on, and the field comes without the illumination function of its plate"
        )
        raise SettingError(message)
    if light is not None and light.shape != sample.pixels.shape:
        message = f"the illumination function has shape {light.shape}, the field {sample.pixels.shape}: expected one"
        raise ImageError(message)
    if n == 0:
        return np.empty((0, channels, settings.side, settings.side), settings.dtype)
    planes = stretched(sample.pixels, settings.clip, light)
    if not planes.any():
        message = (
            f"no channel of {', '.join(sample.channels)} has two different values: there is nothing to see"
        )
        raise ImageError(message)
    largest = LARGEST[settings.dtype]
    if sample.is_crop:
        if settings.masked:
            planes *= central_cell(sample.pixels, sample.channels)
        return np.repeat(_quantised(_resized(planes[None], settings.side), largest), n, axis=0)
    x, y = (sample.cells[name].to_numpy() for name in ("x_px", "y_px"))
    # Where crops keep their size, the whole field is brought to few bytes first: cells overlap.
    is_early = settings.side == settings.crop
    crops = cut_crops(_quantised(planes, largest) if is_early else planes, x, y, settings.crop)
    if settings.masked:
        crops *= _inside(sample, x, y, settings.crop)
    return crops if is_early else _quantised(_resized(crops, settings.side), largest)


def stretched(
    pixels: np.ndarray, clip: tuple[float, float], illumination: np.ndarray | None = None
) -> np.ndarray:
    """Bring each channel of an image to 0..1 between two percentiles of its own, as corrected by the illumination.

    Args:
        pixels: (C, H, W) in any dtype.
        clip: percentiles, 0 to 100; linear between two pixels, as `numpy.percentile`.
        illumination: (C, H, W) float32 by which pixels are divided first, or None.

    Returns:
        (C, H, W) float32; 0 throughout where both percentiles of a channel are one value.
    """
    out = np.empty(pixels.shape, np.float32)
    for channel, plane in enumerate(out):
        if illumination is None:
            plane[...] = pixels[channel]
        else:
            np.divide(pixels[channel], illumination[channel], out=plane, dtype=np.float32)
        values = (pixels[channel] if illumination is None else plane).ravel()
        low, high = (_percentile(values, share) for share in clip)
        if high <= low:
            plane[...] = 0
            continue
        plane -= np.float32(low)
        plane *= np.float32(1 / (high - low))
        np.clip(plane, 0, 1, out=plane)
    return out


def _percentile(values: np.ndarray, share: float) -> float:
    """Give a percentile, as `numpy.percentile`; of many pixels only the tail that it lies in is put in order."""
    last = values.size - 1
    place = share / 100 * last
    first = int(place)
    second = min(first + 1, last)
    tail, below = _tail(values, share, first, second)
    ordered = np.partition(tail, sorted({first - below, second - below}))
    low, high = float(ordered[first - below]), float(ordered[second - below])
    return low + (high - low) * (place - first)


def _tail(values: np.ndarray, share: float, first: int, second: int) -> tuple[np.ndarray, int]:
    """Give the values on one side of a guess, those of rank `first` and `second` among them, and how many are below."""
    some = values[:: max(1, values.size // _GUESSED_FROM)]
    # Twice the tail, and a little: the guess is made from few values.
    if share <= 50:
        rank = min(int(2 * share / 100 * some.size) + 8, some.size - 1)
        tail = values[values <= np.partition(some, rank)[rank]]
        return (tail, 0) if tail.size > second else (values, 0)
    rank = max(some.size - 9 - int(2 * (1 - share / 100) * some.size), 0)
    tail = values[values >= np.partition(some, rank)[rank]]
    below = values.size - tail.size
    return (tail, below) if below <= first else (values, 0)


def _quantised(planes: np.ndarray, largest: int) -> np.ndarray:
    """Bring 0..1 to whole numbers, to the nearest."""
    scaled = planes * np.float32(largest)
    scaled += np.float32(0.5)
    return scaled.astype(np.uint8 if largest == 255 else np.uint16)


def _resized(crops: np.ndarray, side: int) -> np.ndarray:
    """Resize (n, C, H, W) float32 to squares: bilinear, and smoothed first where it becomes smaller."""
    if crops.shape[2:] == (side, side):
        return crops
    # Imported here: torch takes seconds, and crops that keep their size do without.
    import torch
    from torch.nn.functional import interpolate

    resized = interpolate(
        torch.from_numpy(crops), size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.clamp_(0, 1).numpy()


def _inside(sample: FieldSample, x: np.ndarray, y: np.ndarray, crop: int) -> np.ndarray:
    """Tell for each crop which pixels are of its own cell: (n, 1, crop, crop) bool."""
    if sample.masks is None:
        message = "crops: masked is on, and the field comes without masks: segment it"
        raise SettingError(message)
    labels = sample.masks.cells
    if labels.shape != sample.pixels.shape[1:] or labels.max(initial=0) > len(x):
        message = (
            f"masks of shape {labels.shape} with labels to {labels.max(initial=0)} do not fit pixels of shape "
            f"{sample.pixels.shape} and {len(x)} cells"
        )
        raise ImageError(message)
    return cut_crops(labels[None], x, y, crop) == np.arange(1, len(x) + 1)[:, None, None, None]
