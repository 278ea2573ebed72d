"""Which FAISS is installed: its CPU build, its GPU build, none, or (which must not be) both."""

from functools import cache
from importlib import metadata
from types import ModuleType

from warehouse.errors import SearchError

DEVICES = ("cpu", "gpu")
_INSTALL = "pip install 'wellhouse[cpu]', or 'wellhouse[gpu]', not both"


@cache
def load() -> ModuleType:
    """Import FAISS on first use.

    Raises:
        SearchError: it is not installed, or both of its builds are: they share one module, and the second that was
            installed has overwritten the first.
    """
    found = installed()
    if len(found) > 1:
        message = (
            f"{' and '.join(found)} are both installed and overwrite each other: pip uninstall {' '.join(found)}, "
            f"then {_INSTALL}"
        )
        raise SearchError(message)
    try:
        import faiss
    except ImportError as error:
        message = f"FAISS is not installed: {_INSTALL}"
        raise SearchError(message) from error
    module: ModuleType = faiss
    return module


def installed() -> list[str]:
    """Name the distributions of FAISS that are installed, `faiss-cpu` or `faiss-gpu-cu12` say."""
    names = {str(one.metadata["Name"]).lower().replace("_", "-") for one in metadata.distributions()}
    return sorted(name for name in names if name == "faiss-cpu" or name.startswith("faiss-gpu"))


def gpus() -> int:
    """Count the GPUs that FAISS can use; 0 with its CPU build."""
    faiss = load()
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def check(device: str) -> None:
    """Refuse a device that is not there: a search asked of a GPU is never done on the CPU without a word.

    Raises:
        SearchError: what to install, or that no GPU is seen.
        UnknownNameError: no such device.
    """
    from warehouse.names import unknown

    if device not in DEVICES:
        raise unknown(device, "device", DEVICES)
    if device == "cpu":
        return
    if not hasattr(load(), "StandardGpuResources"):
        found = " and ".join(installed()) or "a FAISS without GPU"
        message = (
            f"device 'gpu': {found} is installed, which has no GPU code: pip uninstall faiss-cpu, then "
            "pip install 'wellhouse[gpu]' on a machine with an NVIDIA GPU, or search with device 'cpu'"
        )
        raise SearchError(message)
    if gpus() == 0:
        message = "device 'gpu': FAISS sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES, or search on the cpu"
        raise SearchError(message)
