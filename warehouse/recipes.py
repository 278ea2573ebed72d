"""Recipes: an ordered list of correction steps, as text such as ``mad_robustize+sphering(lambda=0.01)``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import NamedTuple, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.names import unknown
from warehouse.steps import STEPS, Fit, Matrix, Step, refuse_missing

KEYS = ("source", "batch", "plate")
LONGEST_SLUG = 48  # wells__<slug> stays within Postgres' 63 characters
_CALL = re.compile(r"\s*([^()\s]*)\s*(?:\((.*)\))?\s*", re.DOTALL)

Key = tuple[str | None, str | None, str | None]


@dataclass(frozen=True)
class Recipe:
    """Correction steps in order; no step at all is the recipe ``none``."""

    steps: tuple[Step, ...]

    @property
    def text(self) -> str:
        """The one canonical text: parameters in a fixed order, those at their default left out."""
        return "+".join(step.text for step in self.steps) or "none"

    @property
    def slug(self) -> str:
        """A name of [a-z0-9_] for tables and files; parameters that are not default become a hash."""
        plain = "_".join(step.name for step in self.steps) or "none"
        if "(" not in self.text and len(plain) <= LONGEST_SLUG:
            return plain
        return f"{plain[: LONGEST_SLUG - 9]}_{sha256(self.text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class StoredFit:
    """The fit of one step for one plate, one batch (plate None) or all wells (source, batch, plate None).

    `arrays["keep"]`, where present, is the mask of features that left the step for *all* its fits;
    `arrays["constant"]` is this fit's own.
    """

    step_index: int
    source: str | None
    batch: str | None
    plate: str | None
    arrays: Fit


class Corrected(NamedTuple):
    """Corrected profiles (n, kept features) float64, the mask (d,) of kept features, the fits made."""

    profiles: Matrix
    kept: NDArray[np.bool_]
    fits: list[StoredFit]


def parse(text: str) -> Recipe:
    """Read a recipe: step names joined by ``+``, each with ``(parameter=value,…)`` where not the default.

    Raises:
        UnknownNameError: a step, parameter or value is in no list; the nearest one is offered.
        RecipeError: the text has no such shape, or a number is out of range.
    """
    # A + within parentheses belongs to a number such as 1e+2.
    parts = re.split(r"\+(?![^()]*\))", text)
    if [part.strip() for part in parts] == ["none"]:
        return Recipe(())
    return Recipe(tuple(_parse_step(part, text) for part in parts))


def fit_transform(
    recipe: Recipe, X: NDArray[np.floating], groups: pl.DataFrame, features: Sequence[str] = ()
) -> Corrected:
    """Fit a recipe on these wells and correct them.

    Args:
        recipe: the steps.
        X: (n, d) wells; NaN marks a missing element. Left as it is.
        groups: n rows with source, batch, plate and control_type (``negative`` marks a control).
        features: d names, for messages; may be empty.

    Returns:
        The profiles in the order of the rows; the features that every fit of every step kept; one fit a step
        and plate, batch or all. A feature is dropped for all plates when one plate drops it, as an embedding
        has one length.

    Raises:
        RecipeError: too few controls, a missing element where a step refuses it, an infinite value, or no
            feature left; plate or feature are named.
    """
    return _apply(recipe, X, groups, features, None)


def transform(
    recipe: Recipe,
    X: NDArray[np.floating],
    groups: pl.DataFrame,
    fits: Sequence[StoredFit],
    features: Sequence[str] = (),
) -> Corrected:
    """Correct wells with the stored fits of an earlier `fit_transform`.

    A plate (or batch) that has a stored fit gets it; a new one is fitted on its own wells; a step of scope
    ``all`` always uses its stored fit. Arguments as in `fit_transform`. Leave out the stored fits of a plate
    whose wells have been replaced, so that it is fitted anew.

    Returns:
        As `fit_transform`; `fits` holds the new ones only.

    Raises:
        RecipeError: as `fit_transform`; also when a fit is absent or of another length, or when a new plate
            has a constant feature that the stored fits kept.
    """
    return _apply(recipe, X, groups, features, fits)


def lacking(recipe: Recipe, groups: pl.DataFrame) -> dict[tuple[str, str, str], str]:
    """Name the plates that a recipe cannot be fitted on: they, or their batch, have too few wells to fit a step.

    Args:
        recipe: the steps.
        groups: one row a well with source, batch, plate and control_type.

    Returns:
        Plate to reason. A step that is fitted on the whole set leaves no plate out: it fits, or says why not.
    """
    found: dict[tuple[str, str, str], str] = {}
    left = groups
    for step in recipe.steps:
        if step.scope == "all" or left.is_empty():
            continue
        by = KEYS[: {"plate": 3, "batch": 2}[step.scope]]
        usable = pl.col("control_type") == "negative" if step.controls else pl.col("plate").is_not_null()
        counts = left.with_columns(usable.sum().over(by).alias("usable"))
        short = (
            counts.filter(pl.col("usable") < step.minimum).select(*KEYS, "usable").unique(maintain_order=True)
        )
        kind = "negative control(s)" if step.controls else "well(s)"
        for source, batch, plate, count in short.iter_rows():
            found[source, batch, plate] = (
                f"{step.name}: its {step.scope} has {count} {kind}, at least {step.minimum} needed"
            )
        left = left.join(short, on=KEYS, how="anti")
    return found


def _apply(
    recipe: Recipe,
    X: NDArray[np.floating],
    groups: pl.DataFrame,
    features: Sequence[str],
    stored: Sequence[StoredFit] | None,
) -> Corrected:
    _check(X, groups, features)
    current = np.array(X, dtype=np.float64)
    kept = np.ones(X.shape[1], dtype=bool)
    names = list(features)
    control = (groups["control_type"] == "negative").to_numpy()
    made: list[StoredFit] = []
    for index, step in enumerate(recipe.steps):
        known = {(f.source, f.batch, f.plate): f.arrays for f in stored or () if f.step_index == index}
        rows = _rows(step, groups)
        fits = {}
        for key, where in rows.items():
            if key in known:
                fits[key] = known[key]
                _check_length(step, fits[key], current, key)
            elif stored is not None and (step.scope == "all" or not known):
                message = (
                    f"{step.name}: step {index + 1} of recipe {recipe.text!r} has no stored fit: "
                    "fit it anew with --refit"
                )
                raise RecipeError(message)
            else:
                fitted = where[control[where]] if step.controls else where
                fits[key] = step.fit(current[fitted], _place(key), names)
        keep = _keep(step, fits, known, names, current.shape[1])
        for key, where in rows.items():
            if step.complete:
                refuse_missing(step.name, current[where], _place(key), names)
            current[where] = step.transform(current[where], fits[key])
            if key not in known:
                arrays = fits[key] | ({"keep": keep.astype(np.float64)} if "keep" in fits[key] else {})
                made.append(StoredFit(index, *key, arrays))
        current = current[:, keep]
        kept[np.flatnonzero(kept)[~keep]] = False
        names = [name for name, is_kept in zip(names, keep, strict=True) if is_kept] if names else []
    return Corrected(current, kept, made)


def _keep(
    step: Step, fits: dict[Key, Fit], known: dict[Key, Fit], names: list[str], width: int
) -> NDArray[np.bool_]:
    """The features kept by every fit; once stored, what is kept is settled and a new plate must follow it."""
    own = {key: np.asarray(fit.get("keep", np.ones(width))) > 0 for key, fit in fits.items()}
    if known:
        settled = np.asarray(next(iter(known.values())).get("keep", np.ones(width))) > 0
        for key, mask in own.items():
            lost = np.flatnonzero(settled & ~mask)
            if len(lost):
                feature = repr(names[lost[0]]) if names else f"number {lost[0] + 1}"
                message = (
                    f"{step.name}: feature {feature} ({len(lost)} in all) is constant or has no value in "
                    f"{_place(key)} but was kept when the recipe was fitted: "
                    "fit it anew with --refit"
                )
                raise RecipeError(message)
        return settled
    keep: NDArray[np.bool_] = np.logical_and.reduce([np.ones(width, dtype=bool), *own.values()])
    if not keep.any():
        worst = min(own, key=lambda key: int(own[key].sum()))
        message = (
            f"{step.name}: none of the {width} features is left; {_place(worst)} keeps {own[worst].sum()}: "
            "look at its wells, or leave the plate out"
        )
        raise RecipeError(message)
    return keep


def _rows(step: Step, groups: pl.DataFrame) -> dict[Key, NDArray[np.intp]]:
    """The rows that share a fit, by (source, batch, plate), in order of first appearance."""
    depth = {"plate": 3, "batch": 2, "all": 0}[step.scope]
    if depth == 0 or groups.is_empty():
        return {(None, None, None): np.arange(len(groups))} if len(groups) else {}
    parts = groups.select(KEYS[:depth]).with_row_index("row").group_by(KEYS[:depth], maintain_order=True)
    rows = {}
    for key, part in parts:
        padded = cast(Key, (*key, *[None] * (3 - depth)))
        rows[padded] = part["row"].to_numpy().astype(np.intp)
    return rows


def _place(key: Key) -> str:
    source, batch, plate = key
    if source is None:
        return "the whole set"
    at = f"plate {plate!r} of " if plate is not None else ""
    return f"{at}batch {batch!r} of source {source!r}"


def _check(X: NDArray[np.floating], groups: pl.DataFrame, features: Sequence[str]) -> None:
    for column in (*KEYS, "control_type"):
        if column not in groups.columns:
            raise unknown(column, "column of the wells' groups", groups.columns)
    if X.ndim != 2 or len(X) != len(groups) or (len(features) and len(features) != X.shape[1]):
        message = (
            f"profiles of shape {X.shape} do not fit {len(groups)} wells and {len(features)} feature names: "
            "give one row per well and one column per feature"
        )
        raise RecipeError(message)
    infinite = np.isinf(X)
    if infinite.any():
        row, column_ = np.argwhere(infinite)[0]
        feature = repr(features[column_]) if len(features) else f"number {column_ + 1}"
        source, batch, plate = groups.select(KEYS).row(int(row))
        message = (
            f"feature {feature} is {X[row, column_]} in row {row} ({_place((source, batch, plate))}): "
            "a value must be finite or missing"
        )
        raise RecipeError(message)


def _check_length(step: Step, fit: Fit, current: Matrix, key: Key) -> None:
    for name, array in fit.items():
        width = array.shape[-1]
        if name not in ("lambda", "eigenvalues") and width != current.shape[1]:
            message = (
                f"{step.name}: the stored {name!r} for {_place(key)} has {width} features, the profiles have "
                f"{current.shape[1]}: fit it anew with --refit"
            )
            raise RecipeError(message)


def _parse_step(part: str, text: str) -> Step:
    found = _CALL.fullmatch(part)
    if found is None or not found[1]:
        message = f"recipe {text!r}: {part!r} is no step: write NAME or NAME(parameter=value), joined by +"
        raise RecipeError(message)
    by_name = {step.name: step for step in STEPS}
    if found[1] == "none":
        message = f"recipe {text!r}: 'none' stands alone: leave it out beside other steps"
        raise RecipeError(message)
    if found[1] not in by_name:
        raise unknown(found[1], "recipe step", [*by_name, "none"])
    step = by_name[found[1]]
    types = {field.name.rstrip("_"): field for field in fields(step)}
    arguments: dict[str, str | float] = {}
    for item in (found[2] or "").split(",") if (found[2] or "").strip() else []:
        name, equals, value = (piece.strip() for piece in item.partition("="))
        if not equals or not value:
            message = f"recipe {text!r}: {item.strip()!r} in step {step.name}: write parameter=value"
            raise RecipeError(message)
        if name not in types:
            raise unknown(name, f"parameter of step {step.name}", types)
        if types[name].name in arguments:
            message = f"recipe {text!r}: parameter {name!r} of step {step.name} is given twice: keep one"
            raise RecipeError(message)
        arguments[types[name].name] = _number(name, value, text) if types[name].type is float else value
    return cast(Step, step(**arguments))  # type: ignore[arg-type]


def _number(name: str, value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError:
        message = f"recipe {text!r}: {name}={value!r} is no number: write such as {name}=0.001"
        raise RecipeError(message) from None
