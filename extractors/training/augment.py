"""Random changes of a batch of crops, made on the batch's device; no loop over images.

Every function takes `(x, generator)`, x being (B, C, H, W) floats in 0..1, and returns the same shape, dtype and range.
The generator lives on the CPU and its draws are moved: a CPU and a GPU draw alike, and so does a resumed training.
Changes of place are drawn per image, changes of intensity per image and channel.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


class AugmentationSettings(Protocol):
    """The fields of a method's settings that `Augmentation` reads; 0 or False is off."""

    flips: bool
    turns: bool
    resize_share: float
    resize_least: float
    brightness: float
    contrast: float
    shift: float
    gamma: float


class Augmentation:
    """All changes, in the order place, then intensity; what is off draws nothing and changes nothing.

    Args:
        settings: flips; turns; resize_share, the share of crops that are cropped and resized, and resize_least, the
            least side of the crop relative to the image's; brightness, contrast, shift, gamma: the most that each
            changes, see the functions.

    Source:
        Moshkov et al. 2024, "Training cell painting models": crop and resize .5, from .8; flips and turns;
        brightness and contrast. Kim et al. 2025, DINO and SimCLR: flips, shift .3, gamma .5.
    """

    def __init__(self, settings: AugmentationSettings) -> None:
        self.settings = settings

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Change a batch.

        Args:
            x: (B, C, H, W) floats in 0..1; square where turns are on. Never written to.
            generator: on the CPU.

        Returns:
            (B, C, H, W), the same dtype, device and range.
        """
        chosen = self.settings
        if chosen.resize_share > 0 and chosen.resize_least < 1:
            x = crop_and_resize(x, generator, chosen.resize_share, chosen.resize_least)
        if chosen.flips:
            x = flip(x, generator)
        if chosen.turns:
            x = quarter_turn(x, generator)
        for change, most in (
            (gamma, chosen.gamma),
            (brightness, chosen.brightness),
            (contrast, chosen.contrast),
            (shift, chosen.shift),
        ):
            if most > 0:
                x = change(x, generator, most)
        return x


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right and, drawn apart, top to bottom, each with probability ½."""
    across, down = torch.rand(2, len(x), generator=generator) < 0.5
    x = _changed(x, across, lambda images: images.flip(-1))
    return _changed(x, down, lambda images: images.flip(-2))


def quarter_turn(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each image, which is square, by 0, 90, 180 or 270° counterclockwise, each with probability ¼."""
    turns = torch.randint(4, (len(x),), generator=generator)
    x = _changed(x, turns % 2 == 1, lambda images: images.rot90(1, (-2, -1)))
    return _changed(x, turns >= 2, lambda images: images.flip((-2, -1)))


def crop_and_resize(x: Tensor, generator: torch.Generator, share: float = 0.5, least: float = 0.8) -> Tensor:
    """Cut a part out of each image with probability `share`, and bring it back to the image's size (bilinear).

    Args:
        x: (B, C, H, W).
        generator: on the CPU.
        share: of images that are cut, 0 to 1.
        least: the part's least side relative to the image's, above 0; sides are whole pixels drawn evenly up to the
            image's, the same share of height and width, anywhere in the image.

    Returns:
        (B, C, H, W); an image that is not cut is unchanged to the bit.

    Source:
        Moshkov et al. 2024, "Training cell painting models", step 1 ("80% to 100% of the size": of the side).
    """
    # All draws are made for all images: what one image gets does not hang on what another one got.
    chance, side, top, left = torch.rand(4, len(x), generator=generator)
    is_chosen = chance < share
    side = least + (1 - least) * side[is_chosen]
    rows = _places(x.shape[-2], side, top[is_chosen])[:, :, None]
    columns = _places(x.shape[-1], side, left[is_chosen])[:, None, :]
    grid = _on(x, torch.stack(torch.broadcast_tensors(columns, rows), dim=-1)).to(x.dtype)
    # A weighted mean of values up to 1 can come out above 1 by rounding.
    return _changed(
        x,
        is_chosen,
        lambda images: grid_sample(images, grid, padding_mode="border", align_corners=True).clamp_(0, 1),
    )


def _places(length: int, share: Tensor, offset: Tensor) -> Tensor:
    """Where the pixels of the resized part are read along one axis: (n, length), −1 first pixel, 1 last."""
    size = (share * length).round().clamp(1, length)
    first = (offset * (length - size + 1)).floor()
    step = (size / length)[:, None]
    # Within the part: what lies beyond its edge is not read.
    within = ((torch.arange(length) + 0.5) * step - 0.5).clamp(min=0)
    within = torch.minimum(within, (size - 1)[:, None])
    return (first[:, None] + within) * (2 / max(length - 1, 1)) - 1


def brightness(x: Tensor, generator: torch.Generator, most: float = 0.2) -> Tensor:
    """Multiply each channel of each image by a factor of 1 − most to 1 + most, and cut to 0..1."""
    return (x * _factor(x, generator, most)).clamp_(0, 1)


def contrast(x: Tensor, generator: torch.Generator, most: float = 0.2) -> Tensor:
    """Stretch each channel of each image about its own mean by a factor of 1 − most to 1 + most, and cut to 0..1.

    "Renormalised" (Moshkov et al. 2024, step 3) is read as cut to 0..1: stretching each channel to its least and
    greatest value again would take back a factor and an offset altogether.
    """
    mean = x.mean(dim=(-2, -1), keepdim=True)
    return torch.lerp(mean, x, _factor(x, generator, most)).clamp_(0, 1)


def shift(x: Tensor, generator: torch.Generator, most: float = 0.3) -> Tensor:
    """Add to each channel of each image a number of −most to most, and cut to 0..1."""
    return (x + (_factor(x, generator, most) - 1)).clamp_(0, 1)


def gamma(x: Tensor, generator: torch.Generator, most: float = 0.5) -> Tensor:
    """Raise each channel of each image to a power of 1 − most to 1 + most; most is below 1."""
    return x.pow(_factor(x, generator, most)).clamp_(0, 1)


def _factor(x: Tensor, generator: torch.Generator, most: float) -> Tensor:
    """1 − most to 1 + most, drawn evenly per image and channel: (B, C, 1, 1)."""
    drawn = torch.rand(*x.shape[:2], 1, 1, generator=generator)
    return _on(x, 1 + most * (2 * drawn - 1)).to(x.dtype)


def _changed(x: Tensor, is_chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change the images that are chosen, (B,) bool on the CPU: which they are is known without asking the device."""
    if not is_chosen.any():
        return x
    chosen = _on(x, torch.nonzero(is_chosen)[:, 0])
    return x.index_copy(0, chosen, change(x[chosen]))


def _on(x: Tensor, drawn: Tensor) -> Tensor:
    return drawn.to(x.device, non_blocking=True)
