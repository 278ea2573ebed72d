"""The list of extractors. A new one is one module, one entry here; the contract test then runs over it for free."""

from dataclasses import dataclass
from importlib import import_module

from extractors.base import Extractor, SettingError
from warehouse.names import unknown


@dataclass(frozen=True)
class Entry:
    """One extractor.

    Attributes:
        name: what is typed after `--extractor`.
        target: `module:Class`, imported when it is asked for, so that listing them needs no torch.
        level: the finest level it writes, `cell` or `field`.
        paper: where the method is described.
    """

    name: str
    target: str
    level: str
    paper: str


ALL = (
    Entry(
        "cellprofiler",
        "extractors.cellprofiler:CellProfiler",
        "cell",
        "Stirling et al. 2021, CellProfiler 4; measured with cp_measure (Muñoz et al. 2025)",
    ),
    Entry(
        "transfer",
        "extractors.transfer:Transfer",
        "cell",
        "Pawlowski et al. 2016; Bray et al. 2022 (TL); Moshkov et al. 2024 (ImageNet baseline)",
    ),
)


def _by_name() -> dict[str, Entry]:
    entries = {entry.name: entry for entry in ALL}
    if len(entries) != len(ALL):
        message = f"two extractors share a name: {sorted(entry.name for entry in ALL)}"
        raise ValueError(message)
    return entries


def entry(name: str) -> Entry:
    """Look an extractor up.

    Raises:
        UnknownNameError: no extractor has this name.
    """
    entries = _by_name()
    if name not in entries:
        raise unknown(name, "extractor", entries)
    return entries[name]


def create(name: str, channels: tuple[str, ...], settings: dict[str, object] | None = None) -> Extractor:
    """Make an extractor for the given channels.

    Args:
        name: in `ALL`.
        channels: names in the order in which images will be stacked.
        settings: keyword arguments of the class; an unknown one raises with the nearest known.

    Raises:
        UnknownNameError: the name or a setting is not known.
        SettingError: a setting has a value that it cannot have.
    """
    module, _, class_name = entry(name).target.partition(":")
    if "channels" in (settings or {}):
        message = f"{name}: channels are no setting: name them with --channels, in order"
        raise SettingError(message)
    extractor: Extractor = getattr(import_module(module), class_name)(channels, **(settings or {}))
    return extractor
