"""The card of a trained model: what it is, what it was trained on, and how its numbers come about."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from extractors.training.settings import settings_of
from warehouse.errors import TrainingError, WellhouseError


@dataclass(frozen=True)
class Card:
    """What stands beside a model's weights.

    Attributes:
        method: its entry in the registry.
        version: of the method.
        channels: in the order in which the network takes them.
        settings: of `extractors.training.settings`.
        mean: one a channel; pixels on a scale of 0 to 1, less this, over `std`, are what the network takes.
        std: one a channel.
        classes: what its head tells apart, in the head's order.
        data: what it was trained on: lake, snapshot, feature set of the cells, predicate, counts, digest.
        training: how training went: epochs, outcome, seconds, last values.
        code_version: of Wellhouse.
        weights: SHA-256 of the file of weights.
    """

    method: str
    version: str
    channels: tuple[str, ...]
    settings: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    data: dict[str, Any]
    training: dict[str, Any]
    code_version: str
    weights: str

    def identity(self) -> str:
        """Hash what decides an embedding and its classes' scores: weights, settings, channels, scale, classes.

        The setting `weights`, where training began, is left out: it may be a file's path, which is another one on the
        next computer, and the hash of the weights that came of it is there.
        """
        settings = {name: value for name, value in self.settings.items() if name != "weights"}
        parts = [
            self.method,
            self.version,
            self.channels,
            settings,
            self.mean,
            self.std,
            self.classes,
            self.weights,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def text(self) -> str:
        """Give the card as JSON, its identity included."""
        return json.dumps(asdict(self) | {"identity": self.identity()}, indent=2, sort_keys=True) + "\n"


def read_card(text: str, where: str) -> Card:
    """Read a card.

    Args:
        text: of `Card.text`.
        where: the file, for messages.

    Raises:
        TrainingError: it is no card, was changed since it was written, or contradicts itself.
    """
    try:
        found = json.loads(text)
        card = Card(**{each.name: _frozen(found[each.name]) for each in fields(Card)})
        identity, own = found["identity"], card.identity()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{where}: is no model's card ({type(error).__name__}: {error}): train the model again"
        raise TrainingError(message) from error
    if own != identity:
        message = (
            f"{where}: says identity {str(identity)[:16]}…, and what stands in it has {own[:16]}…: it was "
            "changed by hand: copy the model again, or train it again"
        )
        raise TrainingError(message)
    fault = _fault(card)
    if fault is not None:
        message = (
            f"{where}: {fault}: it is of another version of Wellhouse, or was changed: train the model again"
        )
        raise TrainingError(message)
    return card


def _fault(card: Card) -> str | None:
    """Say what a card lacks or contradicts, None where it is one that `train` could have written."""
    for name in ("mean", "std"):
        values = getattr(card, name)
        if not isinstance(values, tuple) or len(values) != len(card.channels):
            count = len(values) if isinstance(values, tuple) else "no"
            return f"has {count} values of {name} for {len(card.channels)} channels"
        least = 0 if name == "mean" else math.ulp(0)
        wrong = [value for value in values if type(value) is not float or not least <= value <= 1]
        if wrong:
            return f"{name} holds {wrong[0]!r}, which pixels on a scale of 0 to 1 cannot have"
    try:
        wanted = settings_of(card.method, None, card.settings).as_dict()
    except WellhouseError as error:
        return str(error).rstrip(".")
    lacking = sorted(set(wanted) - set(card.settings))
    return f"has no setting {lacking[0]!r} of {card.method}" if lacking else None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Name the first setting that differs, with both values; None where all are equal."""
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            return f"{key} {was.get(key)!r}, now {now.get(key)!r}"
    return None
