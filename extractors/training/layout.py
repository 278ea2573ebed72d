"""What a layer gives, maps or tokens: averaged to features, and laid out as the image."""

from typing import NamedTuple

import torch
from torch import nn

from extractors.base import SettingError

#: After a layer's name: the mean of its patch tokens instead of the class token.
MEAN_OF_PATCHES = ":mean"


class Layout(NamedTuple):
    """How one backbone lays out what its layers give.

    Attributes:
        is_channels_last: maps are (n, h, w, features) instead of (n, features, h, w).
        has_class_token: the first token is the class token.
        prefix: tokens before those of the patches.
    """

    is_channels_last: bool
    has_class_token: bool
    prefix: int

    @classmethod
    def of(cls, backbone: nn.Module) -> "Layout":
        """Ask a timm model."""
        has_class_token = getattr(backbone, "cls_token", None) is not None
        prefix = int(getattr(backbone, "num_prefix_tokens", int(has_class_token)))
        return cls(getattr(backbone, "output_fmt", "NCHW") == "NHWC", has_class_token, prefix)

    def average(self, layer: str, output: object) -> torch.Tensor:
        """Average what a layer gave to (n, features) float32, summed in that whatever precision the pass runs in.

        Raises:
            SettingError: neither maps, tokens nor features, or patches are wanted where there are none.
        """
        of_patches = layer.endswith(MEAN_OF_PATCHES)
        if not isinstance(output, torch.Tensor) or output.ndim not in (2, 3, 4):
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            message = f"layer {layer!r} gives {shape}, expected maps, tokens or features: name another"
            raise SettingError(message)
        if of_patches and output.ndim != 3:
            message = (
                f"layer {layer!r} gives {tuple(output.shape)}, no tokens: leave {MEAN_OF_PATCHES!r} away"
            )
            raise SettingError(message)
        if output.ndim == 4:
            return output.mean(dim=(1, 2) if self.is_channels_last else (2, 3), dtype=torch.float32)
        if output.ndim == 2:
            # A copy: what follows may work in place.
            return output.to(torch.float32, copy=True)
        if self.has_class_token and not of_patches:
            return output[:, 0].to(torch.float32, copy=True)
        return output[:, self.prefix :].mean(dim=1, dtype=torch.float32)

    def maps(self, output: object) -> torch.Tensor | None:
        """Lay maps or patch tokens out as (n, features, h, w); None for what has no place in the image."""
        if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
            return None
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if self.is_channels_last else output
        patches = output[:, self.prefix :].transpose(1, 2)
        side = round(patches.shape[2] ** 0.5)
        return patches.unflatten(2, (side, side)) if side > 0 and side**2 == patches.shape[2] else None

    def as_it_was(self, maps: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Turn maps back into the layer's own layout, as a new tensor that depends on them."""
        if output.ndim == 4:
            return (maps.permute(0, 2, 3, 1) if self.is_channels_last else maps).clone()
        return torch.cat([output[:, : self.prefix], maps.flatten(2).transpose(1, 2)], dim=1)
