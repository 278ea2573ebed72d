"""The light of a plate: one smooth function a channel, by which its fields are divided.

Source: Singh et al. 2014, doi:10.1111/jmi.12178 (mean over the fields of a plate, smoothed, divided by its robust
minimum); Moshkov et al. 2024, doi:10.1038/s41467-024-45999-1 (a channel and plate, at 25 % of the width and height).
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from extractors.images import read_field
from extractors.plate_images import PlateImage, ahead
from warehouse.errors import ImageError

T = TypeVar("T")

#: The most fields that a plate's function is made of: the mean of more is no smoother to the eye.
MOST_FIELDS = 96
#: Fewer fields tell cells, not light: on one real field the function would follow its cells, up to 7 times.
LEAST_FIELDS = 10
#: Width and height at which it is computed, share of the field's.
SCALE = 0.25
#: sd of the Gaussian that smooths the mean, share of the field's side: much wider than a cell.
_SMOOTHING = 1 / 8
#: Share of the smoothed pixels that are left below 1, as dust and corners are.
_ROBUST_MINIMUM = 0.02


def evenly(items: Sequence[T], most: int = MOST_FIELDS) -> list[T]:
    """Choose at most so many of a sequence, evenly spread over it, its first and last included."""
    if len(items) <= most:
        return list(items)
    return [items[round(at)] for at in np.linspace(0, len(items) - 1, most)]


def fields_for_illumination(
    images: Sequence[PlateImage], channels: tuple[str, ...], workers: int = 2
) -> Iterator[np.ndarray]:
    """Read the fields that a plate's function is made of, (C, H, W) each; those that cannot be read are passed over.

    Args:
        images: all fields of the plate, in their order.
        channels: in the order wanted.
        workers: threads that read ahead.
    """

    def pixels(image: PlateImage) -> np.ndarray | None:
        try:
            return read_field(image.files, channels)
        except ImageError:
            return None  # whoever takes the plate's cells tells of it

    chosen = evenly([image for image in images if image.files.keys() >= set(channels)])
    with ThreadPoolExecutor(workers) as executor:
        for found in ahead(executor, pixels, chosen, workers + 1):
            if found is not None:
                yield found


def illumination_of(images: Iterable[np.ndarray]) -> np.ndarray:
    """Find how unevenly a plate is lit.

    Args:
        images: fields of one plate, (C, H, W) each, any dtype; read one after the other, never held together.

    Returns:
        (C, H, W) float32, 1 where there is least light and more elsewhere; 1 throughout in a channel without light,
        and of fewer than 10 fields, whose mean is of cells and not of light.

    Raises:
        ImageError: there is no field, or two differ in shape.
    """
    total, shape, count = np.zeros(0), (0, 0, 0), 0
    for image in images:
        if count and image.shape != shape:
            message = (
                f"fields of one plate have shapes {shape} and {image.shape}: they have no illumination function "
                "in common; give illumination=false"
            )
            raise ImageError(message)
        small = _reduced(image)
        total, shape, count = (total + small if count else small), image.shape, count + 1
    if not count:
        message = "no field can be read to find the plate's illumination function from"
        raise ImageError(message)
    if count < LEAST_FIELDS:
        return np.ones(shape, np.float32)
    return np.stack([_function(mean, shape[1:]) for mean in total / count])


def _reduced(image: np.ndarray) -> np.ndarray:
    """Average over blocks of about four by four pixels: (C, h, w) float64."""
    reduced = image
    for axis in (1, 2):  # rows first: they lie together
        length = image.shape[axis]
        count = max(1, round(length * SCALE))
        edges = np.arange(count) * length // count
        sizes = np.diff(np.append(edges, length)).reshape(-1, *[1] * (2 - axis))
        reduced = np.add.reduceat(reduced, edges, axis=axis, dtype=np.float64) / sizes
    return reduced


def _function(mean: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    # A mirror at the edges flattens the corners a little; going on as the mean rises there would, on a plate of few
    # fields, take the cells at an edge for light.
    smooth = ndimage.gaussian_filter(mean, [side * _SMOOTHING for side in mean.shape], mode="mirror")
    least = np.sort(smooth, axis=None)[int(smooth.size * _ROBUST_MINIMUM)]
    if least <= 0:
        return np.ones(shape, np.float32)
    return resize(np.maximum(smooth / least, 1), shape, order=1, mode="edge").astype(np.float32)
