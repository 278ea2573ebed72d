"""The multi-scale convolutional network: the image at several scales side by side, joined, then one dense layer."""

import torch
from torch import nn
from torch.nn.functional import adaptive_max_pool2d, avg_pool2d

from extractors.base import SettingError

#: Filters of each scale, finest first: the image as it is, at half its size, at a quarter, …
WIDTHS = (16, 16, 16, 32, 32, 32, 64)
#: Filters that join the scales, and the length of the embedding.
JOINED, DENSE = 1024, 512
#: A smaller image leaves too few scales to speak of; the coarsest scale keeps this many pixels a side.
LEAST_SIZE, COARSEST = 32, 2
#: Most cells a side of the grid on which the scales are joined.
MOST_GRID = 8


class MultiScaleCNN(nn.Module):
    """M-CNN for images of any number of channels.

    From the paper: scales 1, 1/2, … 1/64 of the image, at each three convolutions of 5 × 5 (16, 16, 16, 32, 32,
    32, 64 filters), brought to one grid by maxima, joined by a convolution of 1 × 1 to 1,024, maxima of 2 × 2,
    a dense layer of 512. Ours: the image is made smaller by means; scales of fewer than 2 pixels a side are left
    out, so 128 pixels keep all seven and 32 the first five; the grid is the coarsest scale's, 8 × 8 at most, so
    the network's size does not grow with the image's; batch normalisation follows each convolution and the
    dense layer, since it trains in a tenth of the steps.

    Args:
        channels: of the images.
        size: side of the images, pixels; 32 or more.

    Raises:
        SettingError: the size is below 32.

    Source:
        Godinez et al. 2017, doi:10.1093/bioinformatics/btx069; Hofmarcher et al. 2019,
        doi:10.1021/acs.jcim.8b00670, for the numbers of filters.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        if size < LEAST_SIZE:
            message = f"model 'multi_scale_cnn' does not take size {size}: give {LEAST_SIZE} pixels or more"
            raise SettingError(message)
        scales = sum(size // 2**k >= COARSEST for k in range(len(WIDTHS)))
        self.grid = min(size // 2 ** (scales - 1), MOST_GRID)
        self.scales = nn.ModuleList(
            nn.Sequential(*_block(channels, width), *_block(width, width), *_block(width, width))
            for width in WIDTHS[:scales]
        )
        self.join = nn.Sequential(*_block(sum(WIDTHS[:scales]), JOINED, 1), nn.MaxPool2d(2))
        self.dense = nn.Sequential(
            nn.Linear(JOINED * (self.grid // 2) ** 2, DENSE, bias=False), nn.BatchNorm1d(DENSE), nn.ReLU()
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look at images: (n, C, size, size) → (n, 512)."""
        maps = [
            adaptive_max_pool2d(scale(avg_pool2d(x, 2**k) if k else x), self.grid)
            for k, scale in enumerate(self.scales)
        ]
        return self.dense(self.join(torch.cat(maps, dim=1)).flatten(1))


def _block(taken: int, given: int, kernel: int = 5) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(taken, given, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(given),
        nn.ReLU(),
    )
