"""The device that a network runs on."""

import torch

from extractors.base import SettingError
from warehouse.names import unknown

DEVICES = ("auto", "cpu", "cuda")


def device_of(name: str, what: str) -> torch.device:
    """Choose the device; a GPU that was asked for and is not there is an error, never the CPU instead.

    Args:
        name: of `DEVICES`.
        what: asks, for messages.

    Raises:
        UnknownNameError: no such device.
        SettingError: a GPU was asked for, and torch sees none.
    """
    if name not in DEVICES:
        raise unknown(str(name), "device", DEVICES)
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        message = (
            f"{what}: device 'cuda' was asked for and torch sees no GPU: give device=cpu, or device=auto"
        )
        raise SettingError(message)
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
