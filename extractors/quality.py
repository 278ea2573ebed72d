"""How good a field's images are: focus and saturation of each channel, the share that cells cover, their number.

Source: Bray et al. 2012, J Biomol Screen 17:266, doi:10.1177/1087057111420292, who find the slope of the power
spectrum the best of their measures of blur; CellProfiler's MeasureImageQuality, whose numbers `focus` gives.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import fft

from extractors.base import FieldQuality, FieldSample

#: Columns of `main.field_quality`, less the plate's key.
QUALITY_SCHEMA = {
    "well": pl.String,
    "field": pl.String,
    "channels": pl.List(pl.String),
    "focus": pl.List(pl.Float64),
    "saturation": pl.List(pl.Float64),
    "foreground": pl.Float64,
    "cell_count": pl.Int32,
}

#: What a saturated pixel reads, by the image's dtype: cameras of 8, 10, 12, 14 and 16 bits write into the low bits
#: of 16, or into the high ones.
FULL_SCALES = {
    "uint8": (255,),
    "uint16": (255, 1023, 4095, 16383, 65280, 65472, 65520, 65532, 65535),
}


def measured(sample: FieldSample) -> FieldSample:
    """Add its quality to a segmented field; a single-cell crop, which is no field, is given back as it is."""
    if sample.is_crop or sample.masks is None:
        return sample
    quality = FieldQuality(
        tuple(focus(image) for image in sample.pixels),
        tuple(saturation(image) for image in sample.pixels),
        float(np.count_nonzero(sample.masks.cells) / sample.masks.cells.size),
        len(sample.cells),
    )
    return replace(sample, quality=quality)


def quality_rows(
    fields: Sequence[tuple[str, str, FieldQuality | None]], channels: Sequence[str]
) -> pl.DataFrame | None:
    """Put what was measured into rows of `main.field_quality`, less the plate's key.

    Args:
        fields: well, field, quality; no quality for a crop.
        channels: that the measures run over.

    Returns:
        One row a field; None where there are crops only.
    """
    rows = [
        (well, name, list(channels), [*found.focus], [*found.saturation], found.foreground, found.cell_count)
        for well, name, found in fields
        if found is not None
    ]
    return None if fields and not rows else pl.DataFrame(rows, schema=QUALITY_SCHEMA, orient="row")


def focus(image: NDArray[np.generic]) -> float | None:
    """Give the slope of the power spectrum on logarithmic axes: the lower, the more blurred.

    The power |F|² of the image less its mean is summed over rings of frequencies: ring k holds those whose
    radius r, in periods a field, has ⌊r⌋ + 1 = k; k runs from 2 to ⌊min(H, W) / 8⌋ - 1, so that neither the mean
    light nor the noise of single pixels counts. The slope is that of the least-squares line of ln(power) over
    ln(k). It depends neither on gain nor on offset. A negative frequency -m is counted at m - 1, as CellProfiler
    does: the numbers are those of its `ImageQuality_PowerLogLogSlope` (float32 here, 64 bits there).

    Args:
        image: (H, W) finite pixels, any dtype.

    Returns:
        The slope, from about -0.5 (noise) by -2 (cells in focus) to -4 (blurred); None for a constant image, and
        below 32 pixels, where there are not two rings.
    """
    last = min(image.shape) // 8 - 1
    if last < 3 or image.min() == image.max():
        return None
    pixels = image.astype(np.float32)
    pixels -= pixels.mean(dtype=np.float64)
    height = image.shape[0]
    rows = np.r_[0:last, height - last : height]
    # Of a real image's spectrum one half tells the other: F[i, W - m] is the conjugate of F[-i, m].
    half = fft.fft(fft.rfft(pixels, axis=1)[:, : last + 1], axis=0)
    right, left = half[rows, :-1], half[-rows % height, 1:]
    power = (np.abs(right) ** 2 + np.abs(left) ** 2).astype(np.float64)
    rings = np.bincount(_rings(last).ravel(), weights=power.ravel())[2 : last + 1]
    found = rings > 0
    if np.count_nonzero(found) < 2:
        return None
    x, y = np.log(np.arange(2, last + 1)[found]), np.log(rings[found])
    x -= x.mean()
    return float(x @ y / (x @ x))


def saturation(image: NDArray[np.generic]) -> float | None:
    """Give the share of pixels that the camera could not tell from brighter ones, 0 to 1.

    These are the pixels at the image's maximum, where it is a value that a camera of 8, 10, 12, 14 or 16 bits
    cannot exceed (`FULL_SCALES`); otherwise no pixel is saturated. A dim image whose maximum is such a value by
    chance gets the share of that one pixel, far below any limit.

    Args:
        image: (H, W) uint8 or uint16.

    Returns:
        The share; None for other dtypes, which have no brightest value.
    """
    scales = FULL_SCALES.get(image.dtype.name)
    if scales is None:
        return None
    brightest = image.max()
    return float(np.mean(image == brightest)) if int(brightest) in scales else 0.0


@lru_cache(maxsize=16)
def _rings(last: int) -> NDArray[np.intp]:
    """Ring of each row and column of frequencies, (2 last, last): rows count up from 0, then down to it."""
    up = np.arange(last)
    rows = np.concatenate([up, up[::-1]])
    return (np.floor(np.hypot(rows[:, None], up[None, :])) + 1).astype(np.intp)
