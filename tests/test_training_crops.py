"""What a network is given: percentiles, light, masks and sizes, against loops written from the definitions."""

import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.base import CELL_GEOMETRY, FieldSample, Masks, SettingError
from extractors.cellprofiler import CellProfiler
from extractors.plate_images import PlateImage
from extractors.simulator.optics import illumination
from extractors.training import crops
from extractors.training import illumination as lights
from extractors.training.crops import CropSettings, prepare, stretched
from extractors.training.illumination import evenly, fields_for_illumination, illumination_of
from extractors.training.masks import central_cell
from warehouse.errors import ImageError, UnknownNameError

CHANNELS = ("DNA", "RNA", "AGP")


def field_of(
    seed: int = 0, shape: tuple[int, ...] = (3, 61, 47), dtype: str = "uint16", n: int = 4
) -> FieldSample:
    """A field of noise with cells anywhere in it, some at its edges."""
    rng = np.random.default_rng(seed)
    pixels = rng.gamma(2.0, 30.0 if dtype == "uint8" else 3000.0, shape)
    pixels = pixels.clip(0, 255).astype(dtype) if dtype == "uint8" else pixels.astype(dtype)
    rows = {"cell": [str(i) for i in range(n)]}
    rows["x_px"], rows["y_px"] = (list(rng.uniform(0, side - 1, n)) for side in shape[:0:-1])
    return FieldSample(pixels, CHANNELS[: shape[0]], pl.DataFrame(rows), None, is_crop=False)


def picture(pixels: np.ndarray, n: int = 1) -> FieldSample:
    cells = pl.DataFrame({"cell": [str(i) for i in range(n)]}, schema_overrides=dict(CELL_GEOMETRY))
    return FieldSample(pixels, CHANNELS[: len(pixels)], cells, None, is_crop=True)


def naive(sample: FieldSample, crop: int, clip, largest: int, light=None) -> np.ndarray:
    """Divide, take NumPy's percentiles of the field, stretch, pad by mirroring, cut: in float64, cell by cell."""
    found = []
    corrected = sample.pixels.astype(np.float64)
    if light is not None:
        corrected = corrected / light.astype(np.float64)
    for plane in corrected:
        low, high = np.percentile(plane, clip)
        plane[...] = np.rint(np.clip((plane - low) / (high - low), 0, 1) * largest)
    padded = np.pad(corrected, ((0, 0), (crop, crop), (crop, crop)), mode="reflect")
    for x, y in sample.cells.select("x_px", "y_px").iter_rows():
        left, top = (int(np.floor(v + 0.5)) - crop // 2 + crop for v in (x, y))
        found.append(padded[:, top : top + crop, left : left + crop])
    return np.array(found)


# -------------------------------------------------------------------------------------- whole fields


@pytest.mark.parametrize("pixels", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("kept", ["uint8", "uint16"])
@pytest.mark.parametrize("is_lit", [True, False])
def test_crops_of_a_field_are_those_of_the_naive_loop(pixels, kept, is_lit):
    sample = field_of(1, dtype=pixels)
    light = np.random.default_rng(2).uniform(1, 2, sample.pixels.shape).astype(np.float32)
    made = prepare(sample, CropSettings(crop=24, dtype=kept, illumination=is_lit), light)
    wanted = naive(sample, 24, (0.05, 99.95), crops.LARGEST[kept], light if is_lit else None)
    assert made.shape == (4, 3, 24, 24)
    assert made.dtype == kept
    # float32 against float64: another last digit where a value lies in the middle of two.
    off = np.abs(made.astype(int) - wanted)
    assert off.max() <= 1
    assert (off > 0).mean() < (0.001 if kept == "uint8" else 0.05)


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 2, 3, 7, 1000, 40_000]),
    share=st.one_of(st.floats(0, 100), st.sampled_from([0.0, 0.05, 50.0, 99.95, 100.0])),
    kind=st.sampled_from(["noise", "few values", "rising", "falling", "one value", "rare"]),
    seed=st.integers(0, 99),
)
def test_percentiles_are_those_of_numpy(size, share, kind, seed):
    rng = np.random.default_rng(seed)
    values = {
        "noise": lambda: rng.normal(0, 1e4, size).astype(np.float32),
        "few values": lambda: rng.integers(0, 3, size).astype(np.uint16),
        "rising": lambda: np.arange(size, dtype=np.float32),
        "falling": lambda: np.arange(size, dtype=np.uint16)[::-1],
        "one value": lambda: np.full(size, 7, np.uint8),
        # What the guess is made from says nothing of the rest.
        "rare": lambda: np.where(
            np.arange(size) % max(1, size // 16384) == 0, 0, rng.integers(1, 9, size)
        ).astype("u2"),
    }[kind]()
    assert crops._percentile(values, share) == pytest.approx(
        np.percentile(values.astype(np.float64), share), rel=1e-12, abs=1e-9
    )


def test_the_histogram_is_that_of_the_whole_field_by_hand():
    # 0..100 in a field of 101 pixels: the 10th percentile is 10, the 90th 90.
    sample = FieldSample(
        np.arange(101, dtype=np.uint16).reshape(1, 1, 101),
        ("DNA",),
        pl.DataFrame({"x_px": [50.0], "y_px": [0.0]}),
        None,
        is_crop=False,
    )
    made = prepare(sample, CropSettings(crop=101, clip=(10, 90), illumination=False))[0, 0]
    assert made.shape == (101, 101)  # one row, mirrored
    assert made[0, :11].tolist() == [0] * 11
    assert made[0, 90:].tolist() == [255] * 11
    assert made[0, [18, 50, 74]].tolist() == [26, 128, 204]  # 8, 40 and 64 of 80, times 255, rounded


def test_light_is_taken_out_before_percentiles():
    even = np.random.default_rng(3).uniform(100, 200, (2, 40, 40)).astype(np.float32)
    light = np.stack([np.linspace(1, 3, 40)[None].repeat(40, 0)] * 2).astype(np.float32)
    cells = pl.DataFrame({"x_px": [20.0], "y_px": [20.0]})
    lit = FieldSample(even * light, CHANNELS[:2], cells, None, is_crop=False)
    plain = FieldSample(even, CHANNELS[:2], cells, None, is_crop=False)
    off = CropSettings(crop=32, illumination=False)
    wanted = prepare(plain, off)
    made = prepare(lit, CropSettings(crop=32), light)
    assert np.abs(made.astype(int) - wanted).max() <= 1
    assert np.abs(prepare(lit, off).astype(int) - wanted).max() > 50


def test_a_cell_is_the_same_whichever_others_are_wanted():
    sample = field_of(4, n=9)
    options = CropSettings(crop=20, size=14, illumination=False)
    whole = prepare(sample, options)
    some = FieldSample(sample.pixels, sample.channels, sample.cells[[6, 1]], None, is_crop=False)
    np.testing.assert_array_equal(prepare(some, options), whole[[6, 1]])


def test_a_channel_without_contrast_is_nothing():
    sample = field_of(5)
    sample.pixels[1] = 700
    made = prepare(sample, CropSettings(crop=16, illumination=False))
    assert not made[:, 1].any()
    assert made[:, 0].any(axis=(1, 2)).all()


def test_a_field_without_cells_has_no_crops():
    sample = field_of(6, n=0)
    made = prepare(sample, CropSettings(crop=16, size=8, illumination=False, dtype="uint16"))
    assert made.shape == (0, 3, 8, 8)
    assert made.dtype == np.uint16


# ---------------------------------------------------------------------------------------------- sizes


def weights(length: int, size: int) -> np.ndarray:
    """Bilinear with smoothing: a triangle as wide as an output pixel, or an input pixel where that is wider."""
    scale = length / size
    reach = max(scale, 1.0)
    found = np.zeros((size, length))
    for out in range(size):
        centre = (out + 0.5) * scale
        for at in range(length):
            found[out, at] = max(0.0, 1 - abs(at + 0.5 - centre) / reach)
        found[out] /= found[out].sum()
    return found


@pytest.mark.parametrize("size", [10, 24, 33, 70])
def test_resized_crops_are_those_of_weights_written_out(size):
    sample = field_of(7, shape=(2, 50, 50))
    made = prepare(sample, CropSettings(crop=24, size=size, illumination=False))
    planes = stretched(sample.pixels, (0.05, 99.95)).astype(np.float64)
    cut = crops.cut_crops(planes, sample.cells["x_px"].to_numpy(), sample.cells["y_px"].to_numpy(), 24)
    by_hand = np.einsum("ih,nchw,jw->ncij", weights(24, size), cut, weights(24, size)) * 255
    assert made.shape == (4, 2, size, size)
    assert np.abs(made - by_hand).max() < 0.5 + 1e-2


def test_a_single_cell_picture_is_used_whole_and_is_its_own_image():
    pixels = np.random.default_rng(8).gamma(2, 300, (2, 30, 40)).astype(np.uint16)
    made = prepare(picture(pixels), CropSettings(crop=16, size=20))  # no light for pictures
    planes = stretched(pixels, (0.05, 99.95)).astype(np.float64)
    by_hand = np.einsum("ih,chw,jw->cij", weights(30, 20), planes, weights(40, 20)) * 255
    assert made.shape == (1, 2, 20, 20)
    assert np.abs(made[0] - by_hand).max() < 0.5 + 1e-2
    low, high = np.percentile(pixels[0], (0.05, 99.95))
    np.testing.assert_allclose(planes[0], np.clip((pixels[0] - low) / (high - low), 0, 1), atol=1e-6)


def test_a_picture_of_the_right_size_is_not_resized():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    made = prepare(picture(pixels, n=2), CropSettings(crop=16, clip=(0, 100)))
    np.testing.assert_array_equal(made, np.stack([pixels, pixels]))


# ---------------------------------------------------------------------------------------------- masks


def test_masked_crops_keep_their_own_cell_alone():
    sample = field_of(9, shape=(2, 40, 40), n=2)
    labels = np.zeros((40, 40), np.int32)
    labels[5:15, 5:15], labels[5:15, 15:22] = 1, 2  # side by side
    cells = pl.DataFrame({"x_px": [10.0, 18.0], "y_px": [10.0, 10.0]})
    masked = FieldSample(sample.pixels, sample.channels, cells, Masks(labels, labels), is_crop=False)
    options = {"crop": 20, "illumination": False}
    plain = prepare(masked, CropSettings(**options))
    made = prepare(masked, CropSettings(**options, masked=True))
    inside = np.zeros((2, 20, 20), bool)
    inside[0, 5:15, 5:15] = True  # the centre (10, 10) lands at (10, 10)
    inside[1, 5:15, 7:14] = True  # columns 15 to 22, of a crop that begins at column 8
    for cell in range(2):
        np.testing.assert_array_equal(made[cell], np.where(inside[cell], plain[cell], 0))
    assert made[0].any()


def two_blobs() -> np.ndarray:
    """A picture of two cells, the smaller one in the middle: (3, 80, 80)."""
    rng = np.random.default_rng(10)
    y, x = np.indices((80, 80))
    middle, aside = ((y - a) ** 2 + (x - b) ** 2 for a, b in ((40, 42), (12, 12)))
    nuclei = np.exp(-middle / 60) + np.exp(-aside / 90)
    bodies = np.exp(-middle / 250) + np.exp(-aside / 250)
    return (rng.normal(200, 3, (3, 80, 80)) + 4000 * np.stack([nuclei, bodies, bodies])).astype(np.uint16)


def test_a_masked_picture_keeps_the_cell_that_cellprofiler_measures():
    pixels = two_blobs()
    inside = central_cell(pixels, CHANNELS)
    _, theirs = CellProfiler(CHANNELS, cell_channel="RNA")._central(pixels)
    np.testing.assert_array_equal(inside, theirs > 0)
    assert inside[40, 42]
    assert not inside[12, 12]
    plain, made = (prepare(picture(pixels), CropSettings(crop=80, masked=on)) for on in (False, True))
    np.testing.assert_array_equal(made[0], np.where(inside, plain[0], 0))


def test_a_picture_without_a_nucleus_cannot_be_masked():
    flat = np.random.default_rng(11).normal(500, 3, (3, 64, 64)).astype(np.uint16)
    with pytest.raises(ImageError, match="no nucleus is found in channel 'DNA'"):
        prepare(picture(flat), CropSettings(masked=True))
    with pytest.raises(ImageError, match=r"no channel named DNA, DAPI, Hoechst among a, b: cells cannot"):
        central_cell(flat[:2], ("a", "b"))


def test_a_field_to_be_masked_needs_masks_that_fit():
    sample = field_of(12)
    options = CropSettings(crop=16, illumination=False, masked=True)
    with pytest.raises(SettingError, match="masked is on, and the field comes without masks"):
        prepare(sample, options)
    labels = np.full(sample.pixels.shape[1:], 5, np.int32)
    wrong = FieldSample(sample.pixels, sample.channels, sample.cells, Masks(labels, labels), is_crop=False)
    with pytest.raises(ImageError, match=r"with labels to 5 do not fit .* and 4 cells"):
        prepare(wrong, options)


# ---------------------------------------------------------------------------------------------- light


def test_light_without_or_of_another_shape_is_refused():
    sample = field_of(13)
    with pytest.raises(SettingError, match="comes without the illumination function of its plate"):
        prepare(sample, CropSettings(crop=16))
    message = "the illumination function has shape (3, 8, 8), the field (3, 61, 47)"
    with pytest.raises(ImageError, match=re.escape(message)):
        prepare(sample, CropSettings(crop=16), np.ones((3, 8, 8), np.float32))


@pytest.mark.parametrize(("height", "width"), [(40, 24), (41, 27), (3, 6)])
def test_fields_are_averaged_in_blocks(height, width):
    image = np.random.default_rng(14).integers(0, 60000, (2, height, width)).astype(np.uint16)
    made = lights._reduced(image)
    rows, columns = made.shape[1:]
    assert (rows, columns) == (max(1, round(height / 4)), round(width / 4))
    for i in range(rows):
        for j in range(columns):
            block = image[
                :,
                i * height // rows : (i + 1) * height // rows,
                j * width // columns : (j + 1) * width // columns,
            ]
            np.testing.assert_allclose(made[:, i, j], block.mean(axis=(1, 2)), rtol=1e-12)


def test_the_light_of_a_plate_is_found_again():
    true = illumination(np.random.default_rng(15), 128, 0.5)
    rng = np.random.default_rng(16)
    # Cells anywhere on a plate even out over its fields.
    fields = [(true * rng.gamma(4.0, 250.0, true.shape)).astype(np.uint16) for _ in range(30)]
    found = illumination_of(iter(fields))
    assert found.shape == true.shape
    assert found.dtype == np.float32
    assert found.min() == 1
    ratio = found / true
    ratio /= ratio.mean(axis=(1, 2), keepdims=True)
    # What is left of the unevenness: 3 % in the mean, of 8 %; corners are flattened, and the darkest 2 % of a field
    # count as light as the rest of it, as dust would else become the brightest place.
    before = true / true.mean(axis=(1, 2), keepdims=True)
    assert np.abs(before - 1).mean() > 0.075
    assert np.abs(ratio - 1).mean() < 0.035
    assert np.abs(ratio[:, 16:-16, 16:-16] - 1).max() < 0.1
    assert (found == 1).mean() < 0.03
    assert true.max() / true.min() > 1.5


def test_even_and_dark_fields_have_an_even_light():
    fields = [np.stack([np.full((20, 30), 900), np.zeros((20, 30))]).astype(np.uint16)] * 10
    np.testing.assert_allclose(illumination_of(fields), np.ones((2, 20, 30)), rtol=1e-6)


def test_few_fields_have_no_light_of_their_own():
    fields = [np.random.default_rng(seed).gamma(1, 900, (2, 40, 40)).astype(np.uint16) for seed in range(10)]
    assert illumination_of(fields).max() > 1
    np.testing.assert_array_equal(illumination_of(fields[:9]), np.ones((2, 40, 40)))


def test_fields_without_a_light_in_common_are_refused():
    message = "fields of one plate have shapes (1, 8, 8) and (1, 8, 9)"
    with pytest.raises(ImageError, match=re.escape(message)):
        illumination_of([np.ones((1, 8, 8), np.uint8), np.ones((1, 8, 9), np.uint8)])
    with pytest.raises(ImageError, match="no field can be read"):
        illumination_of([])


def test_fields_are_chosen_evenly():
    assert evenly(range(5), 7) == [0, 1, 2, 3, 4]
    assert evenly(range(9), 3) == [0, 4, 8]
    chosen = evenly(range(1000))
    assert (len(chosen), len(set(chosen)), chosen[0], chosen[-1]) == (96, 96, 0, 999)


def test_fields_that_cannot_be_read_are_passed_over(tmp_path):
    images = []
    for number in range(4):
        path = tmp_path / f"{number}.npy"
        np.save(path, np.full((4, 4), number, np.uint16))
        images.append(PlateImage("A01", str(number), None, {"DNA": (path, None)}))
    images[1].files["DNA"][0].unlink()
    images[2].files.clear()  # the channel is missing
    found = list(fields_for_illumination(images, ("DNA",)))
    assert [int(image[0, 0, 0]) for image in found] == [0, 3]


# ------------------------------------------------------------------------------------------- settings


def test_settings_are_checked():
    assert CropSettings(crop=64).size == 64
    assert CropSettings(crop=64, size=32, clip=[1, 99]).clip == (1.0, 99.0)
    with pytest.raises(SettingError, match="crops: crop is 0: give a whole number"):
        CropSettings(crop=0)
    with pytest.raises(SettingError, match="crops: size is '9': give a whole number"):
        CropSettings(size="9")
    with pytest.raises(SettingError, match=r"crops: clip is \(99, 1\): give two percentiles"):
        CropSettings(clip=(99, 1))
    with pytest.raises(UnknownNameError, match=r"unknown dtype of crops 'uint32'\..* Known: uint16, uint8"):
        CropSettings(dtype="uint32")


def test_a_picture_of_constants_is_no_cell():
    flat = np.stack([np.full((24, 24), value, np.uint16) for value in (0, 700)])
    with pytest.raises(
        ImageError, match="no channel of DNA, RNA has two different values: there is nothing to see"
    ):
        prepare(picture(flat), CropSettings(crop=16))
    flat[1, 3, 4] += 1
    made = prepare(picture(flat), CropSettings(crop=16, clip=(0, 100)))
    assert made[0, 0].max() == 0
    assert made[0, 1].max() > 0
