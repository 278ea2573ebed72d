"""Plates whose features differ: a feature set has one ordered list of names, and nothing is ever filled in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warehouse import feature_sets
from warehouse.errors import ProfileError
from warehouse.feature_sets import FeatureSet
from warehouse.formats.model import ImportSettings, Plate
from warehouse.lake import Lake
from warehouse.names import unknown

#: Rules, and what each does with a plate that has other features than the feature set.
RULES = {
    "refuse": "nothing is taken in, and the message names what differs",
    "reject": "the plate fails with the reason, the others go in",
    "intersect": "all plates are cut to the features that all have, in the first one's order",
    "split": "the plate goes to a feature set of its own: NAME, NAME_2, NAME_3, …",
}


@dataclass(frozen=True)
class Aligned:
    """Where a plate goes: `take` are the positions of its features (None: all as they are), `reason` why it cannot."""

    plate: Plate
    target: FeatureSet
    take: np.ndarray | None = None
    reason: str | None = None


def align(lake: Lake, name: str, plates: Sequence[Plate], settings: ImportSettings) -> list[Aligned]:
    """Settle for each plate the feature set it goes to, and which of its features in which order.

    Args:
        lake: whose feature set of this name, where it has one, says the names.
        name: of the feature set.
        plates: in the order in which they were given, at least one.
        settings: `align` is the rule, one of `RULES`.

    Returns:
        One entry a plate, in their order.

    Raises:
        ProfileError: the levels of the plates differ, the features do under `refuse`, or under `intersect` no feature
            is common to all, or the lake's list has one that a plate lacks.
    """
    if settings.align not in RULES:
        raise unknown(settings.align, "rule of --align", RULES)
    first = plates[0]
    for plate in plates:
        if plate.level != first.level:
            message = (
                f"{plate.path}: its rows are of level {plate.level!r}, those of {first.path} of {first.level!r}: "
                "import them as two feature sets"
            )
            raise ProfileError(message)
    feature_sets.check_name(name)
    held = feature_sets.read(lake, name)
    if settings.align == "split":
        return _split(lake, name, plates, settings)
    if settings.align == "refuse":
        for plate in plates:
            if plate.features != first.features:
                raise ProfileError(_difference(plate, first))
        target = _target(name, first.features, first, settings)
        return [Aligned(plate, target) for plate in plates]
    names = first.features if held is None else held.feature_names
    if settings.align == "intersect" and held is None:
        common = set(names).intersection(*(plate.features for plate in plates))
        names = tuple(feature for feature in names if feature in common)
        if not names:
            message = f"the {len(plates)} plates have no feature in common: import them with --align split"
            raise ProfileError(message)
    target = _target(name, names, first, settings)
    return [_fitted(plate, target, settings.align) for plate in plates]


def _target(name: str, names: tuple[str, ...], plate: Plate, settings: ImportSettings) -> FeatureSet:
    operators = (settings.field_operator, settings.well_operator)
    return FeatureSet(name, "import", "1", None, {}, (), names, plate.level, *operators)


def _fitted(plate: Plate, target: FeatureSet, rule: str) -> Aligned:
    """Cut a plate to the features of its feature set, where it has them all."""
    if plate.features == target.feature_names:
        return Aligned(plate, target)
    position = {feature: index for index, feature in enumerate(plate.features)}
    missing = [feature for feature in target.feature_names if feature not in position]
    extra = [] if rule == "intersect" else sorted(position.keys() - set(target.feature_names))
    if missing or extra:
        which = [
            f"{word} {len(found)} (first: {found[0]!r})"
            for word, found in (("lacks", missing), ("has besides", extra))
            if found
        ]
        reason = (
            f"{plate.path}: plate {plate.said.get('plate')!r} has {len(plate.features)} features, feature set "
            f"{target.name!r} has {target.dim}: it {' and '.join(which)}; nothing is filled in: give --align "
            f"{'split' if missing else 'intersect'}, or another --feature-set"
        )
        return Aligned(plate, target, None, reason)
    return Aligned(plate, target, np.array([position[feature] for feature in target.feature_names]))


def dropped(aligned: Aligned) -> list[str]:
    """Name the features that a plate has and its feature set lacks."""
    kept = set(aligned.target.feature_names)
    return [] if aligned.take is None else [name for name in aligned.plate.features if name not in kept]


def _split(lake: Lake, name: str, plates: Sequence[Plate], settings: ImportSettings) -> list[Aligned]:
    """Give each distinct list of features a feature set: one that holds it already, else the next free number."""
    targets: dict[frozenset[str], FeatureSet] = {}
    number = 1
    while (held := feature_sets.read(lake, _numbered(name, number))) is not None:
        targets.setdefault(
            frozenset(held.feature_names), _target(held.name, held.feature_names, plates[0], settings)
        )
        number += 1
    found = []
    for plate in plates:
        names = frozenset(plate.features)
        if names not in targets:
            targets[names] = _target(_numbered(name, number), plate.features, plate, settings)
            number += 1
        found.append(_fitted(plate, targets[names], "split"))
    return found


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def _difference(plate: Plate, first: Plate) -> str:
    only = sorted(set(first.features) ^ set(plate.features))
    return (
        f"{plate.path}: has {len(plate.features)} features, {first.path} has {len(first.features)}; "
        f"{len(only)} are in one only (first: {only[:1] or 'none, the order differs'}): import them as two feature "
        "sets, or give --align intersect, reject or split"
    )
