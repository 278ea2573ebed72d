"""Settings of the methods that are trained: each paper's defaults, and a small preset for two cores.

Nothing heavy is imported here: the command line lists settings without torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from extractors.base import SettingError
from warehouse.names import unknown


def _of(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Make a field of a default, a sentence of help, and the values that it can have."""
    return field(default=default, metadata={"help": text, "least": least, "most": most, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What all trained methods can be told; the defaults are those of the Cell Painting CNN.

    Source:
        Moshkov et al. 2024, Methods; the momentum, and a step by Nesterov's rule, are those of DeepProfiler.
    """

    # What a network sees.
    crop: int = _of(128, "Side of the square around a nucleus, pixels of the field.", least=8)
    size: int = _of(0, "Side to which a crop is resized, pixels; 0: as it was cut.", least=0)
    clip_low: float = _of(0.05, "Percentile of an image's channel that becomes black.", least=0, most=49)
    clip_high: float = _of(99.95, "Percentile of an image's channel that becomes white.", least=51, most=100)
    pixels: str = _of("uint8", "How crops are kept.", choices=("uint8", "uint16"))
    illumination: bool = _of(
        True, "Correct the illumination of each channel and plate (of 10 whole fields or more)."
    )
    masked: bool = _of(False, "Make everything outside of the cell black.")
    # The network.
    network: str = _of("tf_efficientnet_b0", "A timm model, or multi_scale_cnn.")
    layer: str = _of("blocks.5.0.bn2", "Layer whose mean over space is the embedding; pooled: the last.")
    weights: str = _of("hub", "Where training starts: none, hub, package, or a file.")
    # Which cells, and which of them are held out.
    label: str = _of(
        "treatment", "What a class is: a compound at one concentration, or a compound.",
        choices=("treatment", "compound"),
    )  # fmt: skip
    least_cells: int = _of(
        0, "Classes with fewer cells are left out; 0: none is, and a class of one cell is refused.", least=0
    )
    cells_per_class: int = _of(0, "Cells of each class in an epoch; 0: the median over classes.", least=0)
    holdout: str = _of(
        "none", "What is held out to validate on: a share of each well's cells, or whole plates.",
        choices=("none", "cells", "plates"),
    )  # fmt: skip
    holdout_share: float = _of(0.4, "Share of cells, or of plates, that is held out.", least=0.01, most=0.9)
    strong_by: str = _of("", "Feature set (or set:recipe) by whose wells treatments are ranked by strength.")
    strongest: int = _of(500, "Treatments of each source that are strong enough to train on.", least=1)
    shared_first: bool = _of(
        True, "Take the strong that are in several sources from all of them, then others."
    )
    control_wells: int = _of(0, "Most negative control wells of a plate; 0: all.", least=0)
    # How it is trained.
    epochs: int = _of(30, "Passes over the cells of an epoch.", least=1)
    batch_size: int = _of(32, "Cells (or bags) of a step.", least=2)
    optimizer: str = _of("sgd", "sgd, with Nesterov's momentum, or adamw.", choices=("sgd", "adamw"))
    learning_rate: float = _of(0.005, "Of the optimizer.", least=1e-9)
    momentum: float = _of(0.9, "Of sgd.", least=0, most=0.999)
    weight_decay: float = _of(1e-5, "Of the optimizer.", least=0)
    schedule: str = _of("constant", "Of the learning rate.", choices=("constant", "cosine"))
    warmup: int = _of(0, "Epochs in which the learning rate rises to its value.", least=0)
    clip_gradient: float = _of(0.0, "Largest norm of a gradient; 0: any.", least=0)
    label_smoothing: float = _of(0.0, "Share of a label that is spread over all classes.", least=0, most=0.9)
    stop_on: str = _of(
        "effective_rank", "What must get better, where patience is given; no annotation enters any of them.",
        choices=("effective_rank", "validation_loss", "training_loss"),
    )  # fmt: skip
    patience: int = _of(0, "Epochs without a better value before training stops; 0: all epochs.", least=0)
    shuffle_labels: bool = _of(False, "Deal the labels of all cells anew: a control that can learn nothing.")
    seed: int = _of(0, "Of every random choice.", least=0, most=2**32 - 1)
    # What changes a crop at random while training; 0 switches a change off.
    flips: bool = _of(True, "Mirror crops.")
    turns: bool = _of(True, "Turn crops by multiples of 90 degrees.")
    resize_share: float = _of(0.5, "Share of crops that are cropped and resized.", least=0, most=1)
    resize_least: float = _of(0.8, "Least share of a crop's side that is kept then.", least=0.05, most=1)
    brightness: float = _of(
        0.2, "Most by which a channel's brightness is multiplied: 1 - this to 1 + this.", least=0, most=1
    )
    contrast: float = _of(0.2, "Most by which a channel's contrast is changed.", least=0, most=0.9)
    shift: float = _of(0.0, "Most that is added to a channel, on a scale of 0 to 1.", least=0, most=1)
    gamma: float = _of(0.0, "Most by which a channel's gamma differs from 1.", least=0, most=0.9)

    def __post_init__(self) -> None:
        """Refuse a value of another type or outside of its bounds, naming it."""
        for each in fields(self):
            value, limits = getattr(self, each.name), each.metadata
            wanted = type(each.default)
            if wanted is float and type(value) is int:
                object.__setattr__(self, each.name, float(value))
            elif type(value) is not wanted:
                message = f"setting {each.name} is {value!r}: give {_NAMED[wanted]}"
                raise SettingError(message)
            if limits["choices"] and value not in limits["choices"]:
                message = f"setting {each.name} is {value!r}: give one of {', '.join(limits['choices'])}"
                raise SettingError(message)
            for bound, is_out in (("least", lambda v, b: not v >= b), ("most", lambda v, b: not v <= b)):
                if limits[bound] is not None and is_out(value, limits[bound]):
                    word = "or more" if bound == "least" else "or less"
                    message = f"setting {each.name} is {value!r}: give {limits[bound]} {word}"
                    raise SettingError(message)

    def as_dict(self) -> dict[str, object]:
        """Give the settings by name, as they stand in a model's card."""
        return asdict(self)


_NAMED = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@dataclass(frozen=True)
class OnlineLabelSmoothingSettings(Settings):
    """Of online label smoothing (Moshkov et al. 2024, equation 1)."""

    label_smoothing: float = _of(0.1, "Share of a label that is spread over all classes.", least=0, most=0.9)
    alpha: float = _of(0.03, "Weight of the new prediction when labels are renewed.", least=0, most=1)


@dataclass(frozen=True)
class AttentionSettings(Settings):
    """Of multiple instance learning with attention (Moshkov et al. 2024, Methods; Ilse et al. 2018)."""

    epochs: int = _of(50, "Passes over the bags of an epoch.", least=1)
    bag_size: int = _of(16, "Cells of a bag.", least=2)
    least_treated: int = _of(4, "Least treated cells of a treatment's bag; the others are controls.", least=1)
    most_treated: int = _of(12, "Most treated cells of a treatment's bag.", least=1)
    bags_per_class: int = _of(0, "Bags of each class in an epoch; 0: as many as its cells fill.", least=0)
    attention: int = _of(128, "Units of the attention.", least=1)


@dataclass(frozen=True)
class ReversalSettings(Settings):
    """Of gradient reversal against plates (Moshkov et al. 2024, Methods; Ganin & Lempitsky 2015)."""

    reversal: float = _of(
        1.0, "Strength of the reversed gradient, reached in the course of training.", least=0
    )
    domain_layers: str = _of("1024,512,128", "Widths of the dense layers that tell plates apart.")

    def domain_widths(self) -> tuple[int, ...]:
        """Read the widths of the dense layers.

        Raises:
            SettingError: they are no whole numbers above 0.
        """
        parts = [part.strip() for part in self.domain_layers.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            message = f"setting domain_layers is {self.domain_layers!r}: give widths such as 1024,512,128"
            raise SettingError(message)
        return tuple(map(int, parts))


@dataclass(frozen=True)
class PseudoClassificationSettings(Settings):
    """Of pseudo-classification with a multi-scale network (Godinez et al. 2018; Bray et al. 2022, PC)."""

    network: str = _of("multi_scale_cnn", "A timm model, or multi_scale_cnn.")
    layer: str = _of("pooled", "Layer whose mean over space is the embedding; pooled: the last.")
    weights: str = _of("none", "Where training starts: none, hub, package, or a file.")


@dataclass(frozen=True)
class MetadataGuidedSettings(Settings):
    """Of metadata-guided learning (Spiegel et al. 2019; Bray et al. 2022, MGL)."""

    layer: str = _of("pooled", "Layer whose mean over space is the embedding; pooled: the last.")
    objective: str = _of(
        "explicit", "explicit: distances between cells; implicit: classes of compound and dose.",
        choices=("explicit", "implicit"),
    )  # fmt: skip
    cells_of_class: int = _of(4, "Cells of a class in a step of the explicit objective.", least=2)
    margin: float = _of(
        0.2,
        "By how much an unlike cell must be farther than a like one (squared, unit vectors).",
        least=0,
        most=4,
    )
    projection: int = _of(128, "Length of the vector whose distances are learned.", least=2)
    dose_weight: float = _of(0.5, "Weight of the dose beside the compound, implicit objective.", least=0)


@dataclass(frozen=True)
class Method:
    """The settings of one trained method, and what its small preset changes: minutes on two cores, no download."""

    name: str
    settings: type[Settings]
    small: Mapping[str, object]


#: ImageNet weights that come with a package, crops of a quarter of the area, and an optimizer that needs few steps.
_SMALL: Mapping[str, object] = {
    "network": "tf_efficientnet_lite0", "weights": "package", "crop": 64, "size": 48, "epochs": 24,
    "optimizer": "adamw",
    "learning_rate": 0.001, "weight_decay": 0.01, "schedule": "cosine",
}  # fmt: skip
METHODS = (
    Method("cell_painting_cnn", Settings, _SMALL),
    Method("online_label_smoothing", OnlineLabelSmoothingSettings, _SMALL),
    Method(
        "attention_mil", AttentionSettings,
        {
            **_SMALL, "batch_size": 16, "bag_size": 4, "least_treated": 2, "most_treated": 4, "bags_per_class": 16,
        },
    ),
    Method("gradient_reversal", ReversalSettings, {**_SMALL, "domain_layers": "128"}),
    Method(
        "pseudo_classification", PseudoClassificationSettings,
        {key: value for key, value in _SMALL.items() if key not in ("network", "weights")},
    ),
    Method("metadata_guided", MetadataGuidedSettings, {**_SMALL, "objective": "implicit"}),
)  # fmt: skip
PRESETS = ("paper", "small")


def method_of(name: str) -> Method:
    """Look a trained method up.

    Raises:
        UnknownNameError: no trained method has this name.
    """
    known = {method.name: method for method in METHODS}
    if name not in known:
        raise unknown(name, "trained method", known)
    return known[name]


def settings_of(
    name: str, preset: str | None = None, overrides: Mapping[str, object] | None = None
) -> Settings:
    """Give a method's settings: its paper's, changed by a preset, changed by what was typed.

    Args:
        name: of a trained method.
        preset: `paper` (the default) or `small`.
        overrides: name to value; the value has the type of the default.

    Raises:
        UnknownNameError: no such method, preset or setting.
        SettingError: a value that the setting cannot have.
    """
    method = method_of(name)
    if preset not in (None, *PRESETS):
        raise unknown(str(preset), "preset", PRESETS)
    changes = dict(method.small) if preset == "small" else {}
    known = [each.name for each in fields(method.settings)]
    for key, value in (overrides or {}).items():
        if key not in known:
            raise unknown(key, f"setting of {name}", known, shown=60)
        changes[key] = value
    made = replace(method.settings(), **changes)
    if isinstance(made, AttentionSettings) and not made.least_treated <= made.most_treated <= made.bag_size:
        message = (
            f"{name}: least_treated {made.least_treated}, most_treated {made.most_treated} and bag_size "
            f"{made.bag_size} must rise in this order"
        )
        raise SettingError(message)
    if isinstance(made, ReversalSettings):
        made.domain_widths()
    if made.stop_on == "validation_loss" and made.patience and made.holdout == "none":
        message = (
            f"{name}: stop_on=validation_loss needs held-out cells: give holdout=cells or holdout=plates"
        )
        raise SettingError(message)
    return made
