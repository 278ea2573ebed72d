"""The card of a trained model: what it is, what it was trained on, and how its numbers come about."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from warehouse.errors import TrainingError


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
        """Hash everything that decides an embedding: the weights, the settings, the channels, the scale."""
        parts = [self.method, self.version, self.channels, self.settings, self.mean, self.std, self.weights]
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
        TrainingError: it is no card, or was changed since it was written.
    """
    try:
        found = json.loads(text)
        card = Card(**{each.name: _frozen(found[each.name]) for each in fields(Card)})
        identity = found["identity"]
    except (ValueError, KeyError, TypeError) as error:
        message = f"{where}: is no model's card ({type(error).__name__}: {error}): train the model again"
        raise TrainingError(message) from error
    if card.identity() != identity:
        message = (
            f"{where}: says identity {str(identity)[:16]}…, and what stands in it has {card.identity()[:16]}…: it was "
            "changed by hand: copy the model again, or train it again"
        )
        raise TrainingError(message)
    return card


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Name the first setting that differs, with both values; None where all are equal."""
    for key in sorted({*was, *now}):
        if was.get(key) != now.get(key):
            return f"{key} {was.get(key)!r}, now {now.get(key)!r}"
    return None
