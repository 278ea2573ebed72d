"""Published checkpoints, recognised by their keys: names and layouts turned into those of timm's models.

- Cell Painting CNN (Moshkov et al. 2024; DeepProfiler): Keras, EfficientNet-B0 of qubvel's `efficientnet`, five
  channels in the order DNA, RNA, ER, AGP, Mito; onto `tf_efficientnet_b0`, whose batch normalisation (ε 1e-3) and
  padding are TensorFlow's. Embedding: layer `blocks.5.0.bn2`, block6a's activation.
- CellPaintSSL (Kim et al. 2025): vision transformers of five channels, ViT-S/16 and ViT-B/16, onto
  `vit_small_patch16_224` and `vit_base_patch16_224`. DINO's teacher (`backbone.…`, with `module.` before it in the
  student) and SimCLR (Lightning): layer `pooled`, the class token. MAE, whose decoder is left out: layer
  `blocks.11:mean`, the mean of the patch tokens.

- A model trained here (`network.backbone.…`, `head.…` in its `model.safetensors`), to go on from.

A checkpoint that is none of these keeps its names.
"""

import re

import torch

from extractors.weights import WeightsError

#: Layers of a Keras EfficientNet outside of its blocks, and what timm calls them.
_OUTER = {
    "stem_conv": "conv_stem",
    "stem_bn": "bn1",
    "top_conv": "conv_head",
    "top_bn": "bn2",
    "ClassProb": "classifier",
    "probs": "classifier",
    "predictions": "classifier",
}
#: Layers of a block; the first stage has no expansion, so what follows has other names there.
_EXPANDED = {
    "expand_conv": "conv_pw",
    "expand_bn": "bn1",
    "dwconv": "conv_dw",
    "bn": "bn2",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "project_conv": "conv_pwl",
    "project_bn": "bn3",
}
_PLAIN = _EXPANDED | {"bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}
_BLOCK = re.compile(r"block(\d+)([a-z])_(\w+)")
_VARIABLES = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
#: Where a backbone lies in a checkpoint, and what stands beside it there: heads, ours and those of DINO and SimCLR.
_BACKBONES = {"network.backbone.": ("head.",), "backbone.": ("head.", "mlp.")}
_DECODER = ("decoder_", "mask_token")


def translated(state: dict[str, torch.Tensor], model: str, where: str) -> dict[str, torch.Tensor]:
    """Give a published checkpoint timm's names and layouts.

    Args:
        state: name to tensor, as `extractors.weights.read` gives it.
        model: timm's name of the model that it is for.
        where: the file, for messages.

    Returns:
        Name to tensor. What only training needs (decoder, projection heads) is left out; anything else that the
        model does not have stays, and `extractors.weights.fit` refuses it by name.

    Raises:
        WeightsError: a Keras checkpoint of another network, or for a model that computes otherwise.
    """
    if any(_keras_layer(name) == "stem_conv" for name in state):
        return _from_keras(state, model, where)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for prefix, heads in _BACKBONES.items():
        if any(name.startswith(prefix) for name in state):
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in state.items()
                if not name.startswith(heads)
            }
    if "cls_token" in state and "mask_token" in state and "decoder_pos_embed" in state:
        return {name: tensor for name, tensor in state.items() if not name.startswith(_DECODER)}
    return state


def _keras_layer(path: str) -> str | None:
    """Find the layer in `stem_conv/stem_conv/kernel:0`, or in a model within a model: None where there is none."""
    for part in path.split("/")[:-1][::-1]:
        if part in _OUTER or _BLOCK.fullmatch(part):
            return part
    return None


def _from_keras(state: dict[str, torch.Tensor], model: str, where: str) -> dict[str, torch.Tensor]:
    if not re.fullmatch(r"tf_efficientnet_b\d(\..*)?", model):
        message = (
            f"weights {where}: a Keras EfficientNet, asked for as {model!r}: name the model that pads and "
            "normalises as Keras does, such as 'tf_efficientnet_b0'"
        )
        raise WeightsError(message)
    expanded = {
        block.group(1, 2)
        for layer in map(_keras_layer, state)
        if layer and (block := _BLOCK.fullmatch(layer)) and block.group(3) == "expand_conv"
    }
    found = {}
    for path, tensor in state.items():
        layer, variable = _keras_layer(path), path.rsplit("/", 1)[-1].partition(":")[0]
        name = _timm_name(layer, expanded) if layer else None
        if name is None or variable not in _VARIABLES:
            message = (
                f"weights {where}: {path!r} is no part of an EfficientNet: give one saved by DeepProfiler"
            )
            raise WeightsError(message)
        found[f"{name}.{_VARIABLES[variable]}"] = _timm_layout(variable, tensor)
        if variable == "moving_mean":
            # Counted by torch alone, and read by nothing in evaluation.
            found[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    return found


def _timm_name(layer: str, expanded: set[tuple[str, ...]]) -> str | None:
    if layer in _OUTER:
        return _OUTER[layer]
    stage, letter, part = _BLOCK.fullmatch(layer).groups()
    names = _EXPANDED if (stage, letter) in expanded else _PLAIN
    return f"blocks.{int(stage) - 1}.{ord(letter) - ord('a')}.{names[part]}" if part in names else None


def _timm_layout(variable: str, tensor: torch.Tensor) -> torch.Tensor:
    """Turn (h, w, in, out) into (out, in, h, w), a depthwise (h, w, c, 1) into (c, 1, h, w), dense (in, out)."""
    if variable == "depthwise_kernel":
        return tensor.permute(2, 3, 0, 1).contiguous()
    if variable == "kernel":
        return (tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.T).contiguous()
    return tensor
