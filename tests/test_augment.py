"""Augmentations against a loop over images with the same draws, through torchvision and NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from extractors.training import augment

OFF = {
    "flips": False,
    "turns": False,
    "resize_share": 0.0,
    "resize_least": 0.8,
    "brightness": 0.0,
    "contrast": 0.0,
    "shift": 0.0,
    "gamma": 0.0,
}
ON = OFF | {
    "flips": True,
    "turns": True,
    "resize_share": 0.5,
    "brightness": 0.2,
    "contrast": 0.3,
    "shift": 0.3,
    "gamma": 0.5,
}
PLACE = {
    "flip": augment.flip,
    "turn": augment.quarter_turn,
    "resize": augment.crop_and_resize,
}
INTENSITY = {
    "brightness": augment.brightness,
    "contrast": augment.contrast,
    "shift": augment.shift,
    "gamma": augment.gamma,
}


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(seed=1, images=24, channels=3, size=16):
    return torch.rand(images, channels, size, size, generator=chance(seed))


def factors(seed, most, images, channels):
    """The draws of a change of intensity, read anew: (images, channels) from 1 − most to 1 + most."""
    return 1 - most + 2 * most * torch.rand(images, channels, 1, 1, generator=chance(seed))[..., 0, 0].numpy()


def test_flip_equals_torchvision_image_by_image():
    x = batch()
    across, down = torch.rand(2, len(x), generator=chance(7)) < 0.5
    expected = []
    for image, is_across, is_down in zip(x, across, down, strict=True):
        image = functional.horizontal_flip(image) if is_across else image
        expected.append(functional.vertical_flip(image) if is_down else image)
    assert {(bool(a), bool(b)) for a, b in zip(across, down, strict=True)} == {
        (a, b) for a in (0, 1) for b in (0, 1)
    }
    assert torch.equal(augment.flip(x, chance(7)), torch.stack(expected))


def test_quarter_turns_equal_numpy_image_by_image():
    x = batch()
    turns = torch.randint(4, (len(x),), generator=chance(7)).tolist()
    assert set(turns) == {0, 1, 2, 3}
    expected = [np.rot90(image, k, axes=(1, 2)) for image, k in zip(x.numpy(), turns, strict=True)]
    np.testing.assert_array_equal(augment.quarter_turn(x, chance(7)), np.stack(expected))


@pytest.mark.parametrize(("height", "width", "least"), [(16, 16, 0.5), (20, 13, 0.8), (16, 16, 0.01)])
def test_crop_and_resize_equals_torchvision_image_by_image(height, width, least):
    x = torch.rand(40, 2, height, width, generator=chance(3))
    made = augment.crop_and_resize(x, chance(5), 0.5, least)
    draws = torch.rand(4, len(x), generator=chance(5)).tolist()
    cut = 0
    for image, result, is_cut, side, top, left in zip(x, made, *draws, strict=True):
        if is_cut >= 0.5:
            assert torch.equal(image, result)
            continue
        cut += 1
        side = least + (1 - least) * side
        rows, columns = max(1, round(side * height)), max(1, round(side * width))
        assert least * height - 1 <= rows <= height
        top, left = int(top * (height - rows + 1)), int(left * (width - columns + 1))
        expected = functional.resized_crop(image, top, left, rows, columns, [height, width], antialias=False)
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)
    assert 10 <= cut <= 30


def test_a_crop_of_the_whole_image_is_the_image():
    x = batch()
    made = augment.crop_and_resize(x, chance(), share=1.0, least=1.0)
    torch.testing.assert_close(made, x, atol=2e-5, rtol=0)
    constant = torch.ones(4, 1, 9, 9)
    assert augment.crop_and_resize(constant, chance(), share=1.0).max() <= 1


def test_every_part_of_the_image_is_reached_and_no_part_favoured():
    # A corner is in the part only where the part begins there: cut to 9 of 10 pixels, in one of two places an axis.
    x = torch.zeros(2000, 1, 10, 10)
    x[..., 0, 0] = 1
    made = augment.crop_and_resize(x, chance(), share=1.0, least=0.9)
    draws = torch.rand(4, len(x), generator=chance())
    is_whole = (0.9 + 0.1 * draws[1]) * 10 > 9.5
    at_corner = (made[:, 0, 0, 0] > 0.5)[~is_whole].float().mean()
    assert is_whole.float().mean() == pytest.approx(0.5, abs=0.05)
    assert at_corner == pytest.approx(0.25, abs=0.05)


NAIVE = {
    "brightness": lambda channel, f: channel * f,
    "contrast": lambda channel, f: channel.mean() + f * (channel - channel.mean()),
    "shift": lambda channel, f: channel + (f - 1),
    "gamma": lambda channel, f: channel**f,
}


@pytest.mark.parametrize("name", INTENSITY)
def test_intensity_equals_the_loop_over_images_and_channels(name):
    x = batch()
    drawn = factors(7, 0.4, *x.shape[:2])
    expected = np.empty(x.shape, dtype=np.float32)
    for i, image in enumerate(x.numpy()):
        for c, channel in enumerate(image):
            expected[i, c] = np.clip(NAIVE[name](channel.astype(np.float64), drawn[i, c]), 0, 1)
    made = INTENSITY[name](x, chance(7), 0.4)
    np.testing.assert_allclose(made, expected, atol=2e-6)
    assert len(np.unique(drawn)) == drawn.size  # each image and channel its own
    assert drawn.min() < 0.7
    assert drawn.max() > 1.3
    assert not torch.equal(made, x)


def test_brightness_contrast_and_gamma_are_torchvisions():
    x = batch(images=1, channels=1)
    factor = float(factors(3, 0.4, 1, 1)[0, 0])
    torch.testing.assert_close(
        augment.brightness(x, chance(3), 0.4)[0],
        functional.adjust_brightness(x[0], factor),
        atol=1e-6,
        rtol=0,
    )
    torch.testing.assert_close(
        augment.contrast(x, chance(3), 0.4)[0], functional.adjust_contrast(x[0], factor), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        augment.gamma(x, chance(3), 0.4)[0], functional.adjust_gamma(x[0], factor), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("name", INTENSITY)
def test_a_channel_changes_by_itself_alone(name):
    x = batch()
    other = x.clone()
    other[:, 1] = 0.3
    first, second = (INTENSITY[name](each, chance(7)) for each in (x, other))
    assert torch.equal(first[:, [0, 2]], second[:, [0, 2]])
    assert not torch.equal(first[:, 1], second[:, 1])


@pytest.mark.parametrize("name", [*PLACE, *INTENSITY, "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_and_range_stay_and_the_input_is_not_touched(name, dtype):
    change = ({**PLACE, **INTENSITY} | {"all": augment.Augmentation(SimpleNamespace(**ON))})[name]
    x = batch().to(dtype)
    x[0], x[1] = 0, 1
    before = x.clone()
    made = change(x, chance(7))
    assert (made.shape, made.dtype) == (x.shape, dtype)
    assert made.min() >= 0
    assert made.max() <= 1
    assert torch.equal(x, before)
    assert not torch.equal(made, x)
    assert torch.equal(made, change(x, chance(7)))
    assert not torch.equal(made, change(x, chance(8)))


@pytest.mark.parametrize("name", PLACE)
def test_channels_move_together(name):
    x = batch(channels=1).expand(-1, 3, -1, -1)
    made = PLACE[name](x, chance(7))
    assert torch.equal(made[:, 0], made[:, 1])
    assert torch.equal(made[:, 0], made[:, 2])


def test_off_draws_nothing_and_changes_nothing():
    generator, x = chance(), batch()
    state = generator.get_state()
    assert augment.Augmentation(SimpleNamespace(**OFF))(x, generator) is x
    assert torch.equal(generator.get_state(), state)


def test_each_setting_switches_its_own_change_on():
    x = batch()
    wanted = {
        "flips": augment.flip(x, chance()),
        "turns": augment.quarter_turn(x, chance()),
        "resize_share": augment.crop_and_resize(x, chance(), 0.5, 0.8),
        **{name: change(x, chance(), ON[name]) for name, change in INTENSITY.items()},
    }
    for name, expected in wanted.items():
        made = augment.Augmentation(SimpleNamespace(**OFF | {name: ON[name]}))(x, chance())
        assert torch.equal(made, expected), name


def test_all_together_are_one_after_another():
    x, generator = batch(), chance(4)
    expected = augment.crop_and_resize(x, generator, 0.5, 0.8)
    expected = augment.quarter_turn(augment.flip(expected, generator), generator)
    expected = augment.brightness(augment.gamma(expected, generator, 0.5), generator, 0.2)
    expected = augment.shift(augment.contrast(expected, generator, 0.3), generator, 0.3)
    assert torch.equal(augment.Augmentation(SimpleNamespace(**ON))(x, chance(4)), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_as_the_cpu_does():
    x = batch()
    change = augment.Augmentation(SimpleNamespace(**ON))
    torch.testing.assert_close(change(x.cuda(), chance()).cpu(), change(x, chance()), atol=1e-4, rtol=0)
