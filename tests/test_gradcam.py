"""Grad-CAM against networks whose map is known by hand, and its picture read back."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import interpolate

from extractors.base import SettingError
from extractors.training.gradcam import GAP, LINE, grad_cam, overlay, save_picture
from extractors.training.networks import Network, create
from warehouse.errors import ImageError, UnknownNameError


class Two(nn.Module):
    """Two maps, A and B, are the two channels of the image; features are their means."""

    def __init__(self, pool: int = 1) -> None:
        super().__init__()
        self.maps = nn.Conv2d(2, 2, pool, stride=pool, bias=False)
        with torch.no_grad():
            self.maps.weight.copy_(torch.eye(2)[:, :, None, None] / pool**2)
        self.after = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.maps(x)).mean(dim=(2, 3))


def two(size: int, pool: int = 1) -> Network:
    return Network("two", Two(pool), 2, ("pooled",), size)


def head(*rows: tuple[float, float]) -> nn.Linear:
    """Scores w · (mean A, mean B), one row a class."""
    linear = nn.Linear(2, len(rows), bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(rows))
    return linear


A = [[1.0, 2.0], [3.0, 0.0]]
B = [[0.5, 0.5], [0.0, 1.0]]


def test_map_worked_out_by_hand():
    """∂y/∂A = w/4 everywhere: L = ReLU(w_A A + w_B B)/4, and its largest value becomes 1."""
    x = torch.tensor([[A, B]])
    classes = head((1.0, -2.0), (0.0, 4.0), (-1.0, -1.0))
    # A − 2B = [[0, 1], [3, −2]]; 4B = [[2, 2], [0, 4]]; −A − B is negative throughout.
    for target, expected in enumerate([[[0, 1 / 3], [1, 0]], [[0.5, 0.5], [0, 1]], [[0, 0], [0, 0]]]):
        found = grad_cam(two(2), classes, x, target, "maps")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_comes_after_in_place_does_not_change_the_maps():
    """B holds negative values, which the ReLU after the layer takes away from the features alone."""
    x = torch.tensor([[A, [[-1.0, 1.0], [1.0, 1.0]]]])
    # ∂y/∂B is (0, 1/4, 1/4, 1/4): α_B = 3/16 of w_B. With w = (0, 16): L = ReLU(3 B).
    found = grad_cam(two(2), head((0.0, 16.0)), x, 0, "maps")
    np.testing.assert_allclose(found, [[0, 1], [1, 1]], atol=1e-6)
    after = grad_cam(two(2), head((0.0, 16.0)), x, 0, "after")
    np.testing.assert_allclose(after, [[0, 1], [1, 1]], atol=1e-6)


def test_a_coarse_map_is_enlarged_bilinearly():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.uniform(0.1, 1, (1, 2, 12, 12)).astype(np.float32))
    coarse = x[:, :1].reshape(1, 1, 3, 4, 3, 4).mean(dim=(3, 5))
    expected = interpolate(coarse, size=(12, 12), mode="bilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_allclose(
        grad_cam(two(12, 4), head((1.0, 0.0)), x, 0), expected / expected.max(), atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", None),
        ("resnet18", "bn1"),  # what follows works in place
        ("vit_tiny_patch16_224", None),
        ("swin_tiny_patch4_window7_224", None),
    ],
)
def test_map_of_a_real_network_is_the_definition_and_leaves_it_as_it_was(name, layer):
    """The oracle keeps the layer's output by a hook of its own and follows the equations."""
    torch.manual_seed(0)
    network = create(name, 3, size=64)
    classes = nn.Linear(network.final_dim, 4)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    x = torch.rand(1, 3, 64, 64)
    found = grad_cam(network, classes, x, 2, layer)
    assert network.training
    assert classes.training
    assert all(parameter.grad is None for parameter in [*network.parameters(), *classes.parameters()])
    kept = []

    def keep(_module, _inputs, output):
        leaf = output.detach().clone().requires_grad_()
        kept.append(leaf)
        return leaf.clone()

    module = network.backbone.get_submodule(layer or network.map_layer)
    handle = module.register_forward_hook(keep)
    network.eval()
    classes(network(x).final)[0, 2].backward()
    handle.remove()
    (leaf,) = kept
    maps, slopes = leaf.detach()[0], leaf.grad[0]
    if name.startswith("vit"):
        maps, slopes = (each[1:].T.reshape(-1, 4, 4) for each in (maps, slopes))
    elif name.startswith("swin"):
        maps, slopes = (each.permute(2, 0, 1) for each in (maps, slopes))
    expected = sum(slope.mean() * plane for slope, plane in zip(slopes, maps, strict=True)).clamp(min=0)
    expected = interpolate(expected[None, None], size=(64, 64), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(found, (expected / expected.max()).numpy(), atol=1e-4)
    assert found.max() == 1
    assert found.min() >= 0


# ------------------------------------------------------------------------------------------ bad input


def test_class_that_is_not_there():
    with pytest.raises(SettingError, match=r"class 3 is none of the 1 of this model \(from 0\)"):
        grad_cam(two(2), head((1.0, 0.0)), torch.zeros(1, 2, 2, 2), 3)


def test_more_than_one_image():
    with pytest.raises(SettingError, match=r"looks at one image \(1, C, S, S\): got \(2, 2, 2, 2\)"):
        grad_cam(two(2), head((1.0, 0.0)), torch.zeros(2, 2, 2, 2), 0)


def test_layer_that_is_not_there_and_layer_without_maps():
    network = create("resnet18", 2, size=32)
    classes, x = nn.Linear(512, 2), torch.rand(1, 2, 32, 32)
    with pytest.raises(UnknownNameError, match=r"unknown layer of resnet18 'layer5'\. Did you mean 'layer"):
        grad_cam(network, classes, x, 0, "layer5")
    with pytest.raises(UnknownNameError, match="unknown layer of resnet18 'pooled'"):
        grad_cam(network, classes, x, 0, "pooled")
    with pytest.raises(SettingError, match=r"layer 'global_pool' of 'resnet18' gives \(1, 512\), no maps"):
        grad_cam(network, classes, x, 0, "global_pool")
    assert network.training


def test_layer_that_the_score_does_not_depend_on():
    constant = nn.Parameter(torch.ones(1, 2))
    with pytest.raises(SettingError, match="the score does not depend on layer 'maps': name another"):
        grad_cam(two(2), lambda final: constant + 1, torch.rand(1, 2, 2, 2), 0, "maps")


# ------------------------------------------------------------------------------------------ the picture


def test_where_the_map_is_zero_the_grey_shines_through():
    pixels = np.array([[[0.2, 0.6]], [[0.4, 1.0]]])
    found = overlay(pixels, np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(found[0, 0], [0.3, 0.3, 0.3])
    np.testing.assert_allclose(found[0, 1], 0.4 * 0.8 + 0.6)  # white over light grey


def test_picture_holds_each_channel_and_the_overlay(tmp_path):
    rng = np.random.default_rng(0)
    pixels, heat = rng.uniform(0, 1, (3, 100, 100)), rng.uniform(0, 1, (100, 100))
    path = tmp_path / "map.png"
    save_picture(path, pixels, ("DNA", "ER", "Mito"), heat, title="a cell", crop_px=128)
    sheet = np.asarray(Image.open(path))
    side = 200  # the least whole multiple of 100 that is 192 or more
    for i, panel in enumerate([*(np.stack([plane] * 3, axis=2) for plane in pixels), overlay(pixels, heat)]):
        left = GAP + i * (side + GAP)
        shown = sheet[2 * LINE : 2 * LINE + side : 2, left : left + side : 2]
        np.testing.assert_allclose(shown / 255, panel, atol=0.5 / 255 + 1e-9)
        assert (sheet[LINE : 2 * LINE, left : left + 30] > 128).any(), "no name above the panel"
    # The bar is a quarter of the crop: 32 of 128 pixels, so 50 of 200.
    bar = sheet[2 * LINE + side + 5, :, 0] > 128
    assert bar[GAP : GAP + 50].all()
    assert not bar[GAP + 50 : GAP + 54].any()


def test_picture_of_things_that_do_not_belong_together(tmp_path):
    with pytest.raises(ImageError, match=r"pixels of shape \(2, 8, 8\), a map of \(8, 8\) and 1 names"):
        save_picture(tmp_path / "m.png", np.zeros((2, 8, 8)), ("DNA",), np.zeros((8, 8)), title="", crop_px=8)
    assert not (tmp_path / "m.png").exists()
