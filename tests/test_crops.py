import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractors.crops import cut_crops
from warehouse.errors import ImageError


def naive(pixels, x_px, y_px, size_px):
    """Pad by mirroring, one crop at a time."""
    crops = []
    for x, y in zip(x_px, y_px, strict=True):
        column, row = (int(np.floor(v + 0.5)) for v in (x, y))
        padded = np.pad(pixels, ((0, 0), (size_px, size_px), (size_px, size_px)), mode="reflect")
        top, left = row - size_px // 2 + size_px, column - size_px // 2 + size_px
        crops.append(padded[:, top : top + size_px, left : left + size_px])
    return np.array(crops, dtype=pixels.dtype).reshape(-1, len(pixels), size_px, size_px)


@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    size=st.integers(1, 25),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), max_size=4),
)
def test_crops_equal_the_naive_loop(height, width, size, places):
    pixels = np.arange(2 * height * width, dtype=np.uint16).reshape(2, height, width)
    x = np.array([a * width - 0.5 for a, _ in places])
    y = np.array([b * height - 0.5 for _, b in places])
    crops = cut_crops(pixels, x, y, size)
    assert crops.shape == (len(places), 2, size, size)
    np.testing.assert_array_equal(crops, naive(pixels, x, y, size))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_centre_lands_in_the_middle_and_the_dtype_stays(dtype):
    pixels = np.zeros((1, 20, 30), dtype)
    pixels[0, 8, 21] = 7
    crop = cut_crops(pixels, np.array([21.4]), np.array([7.6]), 6)
    assert crop.dtype == dtype
    assert crop[0, 0, 3, 3] == 7
    assert crop.sum() == 7
    assert crop.flags.c_contiguous


def test_an_edge_is_mirrored_and_never_filled_with_zeros():
    pixels = np.array([[[1, 2, 3, 4]]], dtype=np.uint8)
    crop = cut_crops(pixels, np.array([0.0]), np.array([0.0]), 5)
    np.testing.assert_array_equal(crop[0, 0], [[3, 2, 1, 2, 3]] * 5)


def test_no_centre_gives_no_crop():
    assert cut_crops(np.ones((3, 8, 8), np.uint8), np.array([]), np.array([]), 4).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("shape", "x", "y", "size", "text"),
    [
        ((8, 8), [1.0], [1.0], 4, "pixels of shape (8, 8): expected (C, H, W)"),
        ((1, 0, 8), [1.0], [1.0], 4, "pixels of shape (1, 0, 8)"),
        ((1, 8, 8), [1.0], [1.0], 0, "crops of 0 pixels"),
        ((1, 8, 8), [1.0], [1.0, 2.0], 4, "x_px has shape (1,), y_px (2,)"),
        (
            (1, 8, 9),
            [1.0, 8.6],
            [1.0, 1.0],
            4,
            "centre 1 at x 8.6, y 1.0 lies outside an image of 9 × 8 pixels",
        ),
        ((1, 8, 8), [np.nan], [1.0], 4, "centre 0 at x nan, y 1.0 lies outside"),
    ],
)
def test_what_cannot_be_cut_is_refused(shape, x, y, size, text):
    with pytest.raises(ImageError, match=re.escape(text)):
        cut_crops(np.ones(shape, np.uint8), np.array(x), np.array(y), size)
