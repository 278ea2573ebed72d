"""The list of extractors. A new one is one module, one entry here; the contract test then runs over it for free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

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
        trains: `module:Class` of what trains it; None where nothing is trained. A trained method extracts with
            the model in a folder, `--set model=FOLDER`.
        small: settings for two cores and no network, `--set preset=small`; those of a trained method's training
            stand in `extractors.training.settings`.
    """

    name: str
    target: str
    level: str
    paper: str
    trains: str | None = None
    small: Mapping[str, object] = field(default_factory=dict)


_LEARNED = "extractors.learned:Learned"
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
    Entry(
        "imagenet_efficientnet",
        "extractors.transfer:ImageNetEfficientNet",
        "cell",
        "Moshkov et al. 2024, the ImageNet baseline: EfficientNet-B0's block6a activation of each channel",
        small={"model": "tf_efficientnet_lite0", "weights": "package", "size": 96},
    ),
    Entry(
        "cell_painting_cnn",
        _LEARNED,
        "cell",
        "Moshkov et al. 2024, the Cell Painting CNN: EfficientNet-B0 that tells treatments apart",
        "extractors.training.modules:Learner",
    ),
    Entry(
        "online_label_smoothing",
        _LEARNED,
        "cell",
        "Moshkov et al. 2024, variant; Zhang et al. 2021",
        "extractors.training.modules:OnlineSmoothing",
    ),
    Entry(
        "attention_mil",
        _LEARNED,
        "cell",
        "Moshkov et al. 2024, variant; Ilse et al. 2018",
        "extractors.training.modules:AttentionBags",
    ),
    Entry(
        "gradient_reversal",
        _LEARNED,
        "cell",
        "Moshkov et al. 2024, variant; Ganin & Lempitsky 2015",
        "extractors.training.modules:PlateReversal",
    ),
    Entry(
        "pseudo_classification",
        _LEARNED,
        "cell",
        "Godinez et al. 2017 and 2018; Bray et al. 2022 (PC)",
        "extractors.training.modules:Learner",
    ),
    Entry(
        "metadata_guided",
        _LEARNED,
        "cell",
        "Spiegel et al. 2019; Bray et al. 2022 (MGL)",
        "extractors.training.modules:MetadataGuided",
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


def loaded(target: str) -> Any:
    """Import what an entry's `target` or `trains` names, `module:Class`."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def create(name: str, channels: tuple[str, ...], settings: dict[str, object] | None = None) -> Extractor:
    """Make an extractor for the given channels.

    Args:
        name: in `ALL`.
        channels: names in the order in which images will be stacked.
        settings: keyword arguments of the class; an unknown one raises with the nearest known. `preset` changes the
            defaults: `paper`, or, where there is one, `small`.

    Raises:
        UnknownNameError: the name or a setting is not known.
        SettingError: a setting has a value that it cannot have.
    """
    found = entry(name)
    if "channels" in (settings or {}):
        message = f"{name}: channels are no setting: name them with --channels, in order"
        raise SettingError(message)
    changes = dict(settings or {})
    preset = changes.pop("preset", "paper")
    if preset not in (("paper", "small") if found.small else ("paper",)):
        raise unknown(str(preset), f"preset of {name}", ("paper", "small") if found.small else ("paper",))
    if preset == "small":
        changes = {**found.small, **changes}
    # One class extracts with every trained model, and is told which method's it must be.
    of_method = {"method": name} if found.trains else {}
    extractor: Extractor = loaded(found.target)(channels, **changes | of_method)
    return extractor
