"""Grad-CAM: which parts of a cell's image spoke for a class, and a picture of it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import interpolate

from extractors.base import SettingError
from extractors.training.networks import Network
from warehouse.errors import ImageError

#: Least side of a panel, pixels of the picture; room above it for its name, and between panels.
PANEL, LINE, GAP = 192, 18, 8


def grad_cam(
    network: Network,
    head: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    target: int,
    layer: str | None = None,
) -> np.ndarray:
    """Map what in an image raises the score of a class.

    L = ReLU(Σ_k α_k A^k), α_k the mean over space of ∂y/∂A^k (equations 1 and 2), enlarged bilinearly to the
    image and divided by its largest value.

    Args:
        network: its mode and gradients are left as they were.
        head: (1, final_dim) → (1, classes) scores before the softmax.
        x: (1, C, S, S), as the network takes it, on its device.
        target: the class, from 0.
        layer: whose maps A are looked at; by default the network's last, see `Network.map_layer`.

    Returns:
        (S, S) float32 in 0..1: all 0 where nothing in the maps speaks for the class.

    Raises:
        SettingError: no such class, more than one image, or a layer that the score does not depend on.
        UnknownNameError: no such layer.

    Source:
        Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74.
    """
    if x.ndim != 4 or len(x) != 1:
        message = f"Grad-CAM looks at one image (1, C, S, S): got {tuple(x.shape)}"
        raise SettingError(message)
    modules = [each for each in (network, head) if isinstance(each, torch.nn.Module)]
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            # The image asks for a gradient, so that a frozen network has one too.
            maps, final = network.feature_maps(x.detach().float().requires_grad_(), layer)
            scores = head(final)
            if not 0 <= target < scores.shape[1]:
                message = f"Grad-CAM: class {target} is none of the {scores.shape[1]} of this model (from 0)"
                raise SettingError(message)
            (gradient,) = torch.autograd.grad(scores[0, target], maps, allow_unused=True)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
    if gradient is None:
        message = f"Grad-CAM: the score does not depend on layer {layer or network.map_layer!r}: name another"
        raise SettingError(message)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    heat = (weights * maps.detach()).sum(dim=1, keepdim=True).relu()
    heat = interpolate(heat, size=tuple(x.shape[2:]), mode="bilinear", align_corners=False)[0, 0]
    most = heat.max()
    return (heat / most if most > 0 else heat).cpu().numpy().astype(np.float32)


def save_picture(
    path: Path,
    pixels: np.ndarray,
    channels: Sequence[str],
    heat: np.ndarray,
    *,
    title: str,
    crop_px: int,
) -> None:
    """Save a PNG: each channel in grey by its name, then their mean with the map over it, and its scale.

    Args:
        path: of the file; one that is there is replaced.
        pixels: (C, S, S) in 0..1.
        channels: C names.
        heat: (S, S) in 0..1, as `grad_cam` gives it.
        title: a line above the panels: the cell, the class, how sure.
        crop_px: pixels of the original image that a side shows, for the bar of the scale.

    Raises:
        ImageError: arrays whose shapes do not belong together.
    """
    if pixels.ndim != 3 or pixels.shape[1:] != heat.shape or len(channels) != len(pixels):
        message = (
            f"picture {path}: pixels of shape {pixels.shape}, a map of {heat.shape} and {len(channels)} names "
            "of channels do not belong together"
        )
        raise ImageError(message)
    grey = [np.repeat(np.clip(plane, 0, 1)[..., None], 3, axis=2) for plane in pixels]
    panels = [*grey, overlay(pixels, heat)]
    side = heat.shape[0] * math.ceil(PANEL / heat.shape[0])
    # The bar of colours beside the last panel, with its ends named.
    width = GAP + len(panels) * (side + GAP) + 3 * GAP + 2 * LINE
    sheet = Image.new("RGB", (width, 3 * LINE + side + GAP), "black")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 3), title, fill="white")
    for i, (panel, name) in enumerate(zip(panels, [*channels, "Grad-CAM"], strict=True)):
        left = GAP + i * (side + GAP)
        draw.text((left, LINE + 3), name, fill="white")
        image = Image.fromarray((panel * 255).round().astype(np.uint8))
        sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, 2 * LINE))
    left, top = GAP + len(panels) * (side + GAP), 2 * LINE
    ramp = _colours(np.linspace(1, 0, side)[:, None].repeat(2 * GAP, axis=1))
    sheet.paste(Image.fromarray((ramp * 255).round().astype(np.uint8)), (left, top))
    draw.text((left + 2 * GAP + 3, top - 2), "1", fill="white")
    draw.text((left + 2 * GAP + 3, top + side - 11), "0", fill="white")
    bar_px = max(crop_px // 4, 1)
    bar = round(side * bar_px / crop_px)
    draw.line((GAP, top + side + 5, GAP + bar - 1, top + side + 5), fill="white", width=3)
    draw.text((GAP + bar + 5, top + side), f"{bar_px} px", fill="white")
    sheet.save(path, format="PNG")


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map over the mean of the channels: (S, S, 3) in 0..1; where the map is 0, the grey shines through."""
    grey = np.clip(pixels, 0, 1).mean(axis=0)[..., None]
    share = 0.6 * np.clip(heat, 0, 1)[..., None]
    return (1 - share) * grey + share * _colours(heat)


def _colours(heat: np.ndarray) -> np.ndarray:
    """Black, red, yellow, white: each third of the way lights one more colour."""
    return np.clip(np.clip(heat, 0, 1)[..., None] * 3 - np.array([0.0, 1.0, 2.0]), 0, 1)
