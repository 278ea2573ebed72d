"""Square crops of fixed size around nuclei, cut with their surroundings."""

import numpy as np

from warehouse.errors import ImageError


def cut_crops(pixels: np.ndarray, x_px: np.ndarray, y_px: np.ndarray, size_px: int) -> np.ndarray:
    """Cut one square crop around each centre; beyond the image's edge it continues as its mirror image.

    Args:
        pixels: (C, H, W), any dtype.
        x_px: (n,) columns of the centres, pixels; the nearest pixel lands at index `size_px // 2`.
        y_px: (n,) rows of the centres, pixels.
        size_px: side of a crop, pixels; may exceed the image.

    Returns:
        (n, C, size_px, size_px) in the dtype of `pixels`; (0, C, size_px, size_px) without centres.

    Raises:
        ImageError: `pixels` is not (C, H, W) or is empty, `size_px` is below 1, the centres differ in
            number, or one lies outside the image.

    Source:
        Single-cell crops in context: Moshkov et al. 2024, doi:10.1038/s41467-024-45999-1.
    """
    x, y = np.asarray(x_px, dtype=float), np.asarray(y_px, dtype=float)
    if pixels.ndim != 3 or 0 in pixels.shape:
        message = f"cannot cut crops from pixels of shape {pixels.shape}: expected (C, H, W), none of them 0"
        raise ImageError(message)
    if size_px < 1:
        message = f"cannot cut crops of {size_px} pixels: size_px must be 1 or more"
        raise ImageError(message)
    if x.ndim != 1 or x.shape != y.shape:
        message = f"centres must be two lists of one length: x_px has shape {x.shape}, y_px {y.shape}"
        raise ImageError(message)
    _, height, width = pixels.shape
    # The outermost pixels reach half a pixel beyond their centres; a NaN fails every comparison.
    inside = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    if not inside.all():
        k = int(np.flatnonzero(~inside)[0])
        message = f"centre {k} at x {x[k]}, y {y[k]} lies outside an image of {width} × {height} pixels"
        raise ImageError(message)
    rows, columns = _indices(y, height, size_px), _indices(x, width, size_px)
    crops = pixels[:, rows[:, :, None], columns[:, None, :]]
    return np.ascontiguousarray(np.moveaxis(crops, 1, 0))


def _indices(centre: np.ndarray, length: int, size_px: int) -> np.ndarray:
    """Give (n, size_px) indices along one axis, mirrored at both ends without repeating the edge pixel.

    Mirrored rather than padded with zeros: zero is an intensity, and a black band would be read as a real
    edge. The mirror repeats as often as needed where the image is smaller than the crop.
    """
    start = np.floor(centre + 0.5).astype(np.int64) - size_px // 2
    index = start[:, None] + np.arange(size_px)
    period = max(2 * (length - 1), 1)
    index = np.mod(index, period)
    return np.where(index < length, index, period - index)
