"""Correcting profiles that are not in the lake, a picture's say, with a recipe's stored fits; nothing is written.

A step that was fitted on the whole set needs no more than the profile. One that was fitted plate by plate, or batch by
batch, needs to know on which plate of the lake the profile was made: it then gets that plate's own fit.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse import fits, fitting, recipes
from warehouse.errors import RecipeError
from warehouse.feature_sets import FeatureSet
from warehouse.fits import Plate
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.profiles import FittedRecipe
from warehouse.recipes import KEYS, Recipe
from warehouse.sqltext import relation
from warehouse.steps import STEPS, Step
from warehouse.wells import position

_HARMONY, _CELL_COUNT, _WELL_POSITION = "harmony", "cell_count", "well_position"
assert {_HARMONY, _CELL_COUNT, _WELL_POSITION} <= {step.name for step in STEPS}


@dataclass(frozen=True)
class Correction:
    """A recipe with its stored fits, ready for profiles of one plate; made by `correction`.

    Attributes:
        target: whose profiles they are.
        fitted: the recipe as the lake holds it.
        recipe: its steps; `recipe.level` says of what profiles, `well` or `field`.
        plate: that the profiles were made on, or None.
        well: its well, or None.
        stored: the fits.
        notes: what a person should know of the result.
    """

    target: FeatureSet
    fitted: FittedRecipe
    recipe: Recipe
    plate: Plate | None
    well: str | None
    stored: tuple[fitting.StoredFit, ...]
    notes: tuple[str, ...] = ()

    def apply(
        self, vectors: NDArray[np.floating], cell_counts: list[int] | None = None
    ) -> NDArray[np.float32]:
        """Correct profiles: see `corrected`."""
        X = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
        if X.ndim != 2 or X.shape[1] != self.target.dim:
            message = (
                f"profiles of shape {np.shape(vectors)} are none of feature set {self.target.name!r}, which has "
                f"{self.target.dim} features: give (n, {self.target.dim})"
            )
            raise RecipeError(message)
        if cell_counts is not None and len(cell_counts) != len(X):
            message = (
                f"{len(X)} profiles of feature set {self.target.name!r} came with {len(cell_counts)} cell_counts: "
                "give one count for each profile"
            )
            raise RecipeError(message)
        if not self.recipe.steps:
            return np.array(X)
        _refuse_no_count(self.recipe, self.fitted, cell_counts)
        rows = _rows(len(X), self.plate, self.well, cell_counts)
        found = fitting.transform(self.recipe, X, rows, self.stored, self.target.feature_names)
        if found.names != self.fitted.feature_names:
            message = (
                f"recipe {self.fitted.typed!r} left {len(self.fitted.feature_names)} features of "
                f"{self.target.name!r} when it was fitted, and its stored fits leave {len(found.names)}: fit it "
                "anew with --refit"
            )
            raise RecipeError(message)
        return found.profiles.astype(np.float32)


def corrected(
    lake: Lake,
    target: FeatureSet,
    fitted: FittedRecipe,
    vectors: NDArray[np.floating],
    plate: Plate | None = None,
    *,
    level: str = "well",
    well: str | None = None,
    cell_counts: list[int] | None = None,
) -> NDArray[np.float32]:
    """Correct profiles that are not in the lake as the recipe corrected those that are.

    A well of the lake, given with its plate, comes out as it stands in ``wells__<recipe>``; after
    `inverse_normal` and `harmony` as a well of its plate that came after the fit would.

    Args:
        lake: an open lake.
        target: whose profiles they are.
        fitted: the recipe, as `profiles.find_recipe` finds it.
        vectors: (n, d) uncorrected, or one (d,).
        plate: source, batch and plate that they were made on, among those that the recipe corrected; None where
            every step was fitted on the whole set.
        level: what they are of, `well` or `field`. A recipe of fields is given fields; the mean of what comes is the
            well.
        well: that they are of, for the step `well_position`.
        cell_counts: n, for the step `cell_count`.

    Returns:
        (n, r) float32, r the features that the recipe leaves.

    Raises:
        RecipeError: a step needs the plate, its wells together, the well or a count; it is named, and what to do.
            Or profiles have another number of features, or of counts.
        UnknownNameError: the recipe corrected no such plate.
    """
    made = correction(lake, target, fitted, plate, well=well)
    if made.recipe.steps and made.recipe.level != level:
        message = (
            f"recipe {fitted.typed!r} corrects {made.recipe.level}s, and these are {level}s: give the profiles of "
            "the fields, and take the mean of what comes"
            if made.recipe.level == "field"
            else f"recipe {fitted.typed!r} corrects {made.recipe.level}s, and these are {level}s: aggregate them first"
        )
        raise RecipeError(message)
    return made.apply(vectors, cell_counts)


def correction(
    lake: Lake,
    target: FeatureSet,
    fitted: FittedRecipe,
    plate: Plate | None = None,
    *,
    well: str | None = None,
) -> Correction:
    """Read a recipe's fits for profiles of one plate, or say at once why these cannot be corrected.

    Arguments and errors as `corrected`, but for what concerns the profiles themselves.
    """
    recipe = recipes.parse(fitted.steps)
    if not recipe.steps:
        if plate is not None:
            _refuse_other_plate(lake, target, fitted, plate)
        return Correction(target, fitted, recipe, plate, well, ())
    for step in recipe.steps:
        _refuse_alone(step, fitted)
    if well is None and any(step.name == _WELL_POSITION for step in recipe.steps):
        message = (
            f"recipe {fitted.typed!r}: step {_WELL_POSITION} takes out where a well lies, and the profile's well "
            "is not known: search with a recipe without this step (in Python, give well='A01')"
        )
        raise RecipeError(message)
    if plate is None:
        _refuse_no_plate(recipe, fitted)
    else:
        _refuse_other_plate(lake, target, fitted, plate)
    chosen = [] if plate is None else [plate]
    stored = fits.stored(lake, target.name, fitted.name, chosen, [], len(recipe.steps), with_own=True)
    notes: tuple[str, ...] = ()
    for index, step in enumerate(recipe.steps):
        if plate is not None:
            _refuse_unfitted(index, step, stored, fitted, plate)
        if step.together:
            _refuse_new_batch(index, step, stored, fitted, plate)
            notes += (f"{step.name}: placed as a plate that came after the fit, by what the fit learnt",)
    return Correction(target, fitted, recipe, plate, well, tuple(stored), notes)


def plate_named(lake: Lake, target: FeatureSet, fitted: FittedRecipe, text: str) -> Plate:
    """Find the plate that is meant by ``SOURCE/BATCH/PLATE``, or by its name alone where one plate has it.

    Raises:
        UnknownNameError: the recipe corrected no such plate; the nearest is offered.
        RecipeError: several plates have this name.
    """
    by_text = {"/".join(plate): plate for plate in _plates(lake, target, fitted)}
    if text in by_text:
        return by_text[text]
    named = [plate for plate in by_text.values() if plate[2] == text]
    if len(named) == 1:
        return named[0]
    if named:
        message = f"{len(named)} plates are named {text!r}: give one of {', '.join(map('/'.join, named))} with --plate"
        raise RecipeError(message)
    raise unknown(text, _what(target, fitted), by_text)


def _plates(lake: Lake, target: FeatureSet, fitted: FittedRecipe) -> list[Plate]:
    """Name the plates that stand in the recipe's table, ordered."""
    table = relation(target.name, "wells", fitted.name)
    return lake.connection.execute(
        f"SELECT DISTINCT source, batch, plate FROM {table} ORDER BY ALL"
    ).fetchall()


def _what(target: FeatureSet, fitted: FittedRecipe) -> str:
    return f"plate of feature set {target.name!r} under recipe {fitted.typed!r}"


def _refuse_other_plate(lake: Lake, target: FeatureSet, fitted: FittedRecipe, plate: Plate) -> None:
    known = _plates(lake, target, fitted)
    if tuple(plate) not in known:
        raise unknown("/".join(plate), _what(target, fitted), map("/".join, known))


def _refuse_alone(step: Step, fitted: FittedRecipe) -> None:
    """Refuse a step whose result is a well's rank among the others of its plate."""
    if step.whole and not step.together:
        message = (
            f"recipe {fitted.typed!r}: step {step.text} ranks the wells of a plate among each other, which a profile "
            f"that is not in the lake has no place in: search with a recipe that has {step.name}(scope=all), or none"
        )
        raise RecipeError(message)
    if step.name == _HARMONY and step.parameters["by"] == "plate":
        message = (
            f"recipe {fitted.typed!r}: step {step.text} corrects each later plate by its own wells together, and keeps "
            "no fit of it: search with a recipe that has harmony(by=batch), or none"
        )
        raise RecipeError(message)


def _refuse_no_plate(recipe: Recipe, fitted: FittedRecipe) -> None:
    """Refuse profiles of no known plate where a step goes by plate or batch."""
    steps = [(step.name, step.scope) for step in recipe.steps if step.scope != "all"]
    steps += [(step.name, step.parameters["by"]) for step in recipe.steps if step.name == _HARMONY]
    if steps:
        name, scope = steps[0]
        message = (
            f"recipe {fitted.typed!r}: step {name} is fitted for each {scope}, and on which plate the profile was made "
            "is not known: give --plate SOURCE/BATCH/PLATE of a plate in the lake, or search with a recipe whose steps "
            "all have scope=all, or with none"
        )
        raise RecipeError(message)


def _refuse_unfitted(
    index: int, step: Step, stored: list[fitting.StoredFit], fitted: FittedRecipe, plate: Plate
) -> None:
    """Refuse what `fitting` would fit anew, on this one profile."""
    if step.scope == "all":
        return
    key = plate if step.scope == "plate" else (*plate[:2], None)
    if not any(fit.step_index == index and (fit.source, fit.batch, fit.plate) == key for fit in stored):
        message = (
            f"recipe {fitted.typed!r}: step {step.name} has no stored fit for {step.scope} "
            f"{'/'.join(part for part in key if part is not None)!r}: fit it anew with --refit"
        )
        raise RecipeError(message)


def _refuse_new_batch(
    index: int, step: Step, stored: list[fitting.StoredFit], fitted: FittedRecipe, plate: Plate | None
) -> None:
    """Refuse a batch that came after Harmony's fit: its correction was made of its wells together, and not kept."""
    if step.name != _HARMONY or plate is None:
        return
    from warehouse.steps.harmony import KEYS as PARTS
    from warehouse.steps.harmony import known_batches

    fit = next(fit.arrays for fit in stored if fit.step_index == index and fit.source is None)
    by = dict(zip(KEYS, plate, strict=True))
    batch = tuple(by[key] for key in PARTS[step.parameters["by"]])
    if batch not in known_batches(fit):
        message = (
            f"recipe {fitted.typed!r}: {step.parameters['by']} {'/'.join(batch)!r} came after harmony was "
            "fitted, and its correction was made of its wells together and not kept: fit it anew with --refit, or "
            "search with a recipe without harmony"
        )
        raise RecipeError(message)


def _refuse_no_count(recipe: Recipe, fitted: FittedRecipe, cell_counts: list[int] | None) -> None:
    if cell_counts is None and any(step.name == _CELL_COUNT for step in recipe.steps):
        message = (
            f"recipe {fitted.typed!r}: step {_CELL_COUNT} takes out what the number of cells explains, and how many "
            "these profiles are of is not given: give their cell_counts, or a recipe without this step"
        )
        raise RecipeError(message)


def _rows(n: int, plate: Plate | None, well: str | None, cell_counts: list[int] | None) -> pl.DataFrame:
    """What steps may know of the profiles: their plate, where one is known, their well and their cells."""
    row, column = (None, None) if well is None else position(well)
    constant = dict(zip(KEYS, plate or ("", "", ""), strict=True)) | {"well": well, "control_type": "none"}
    return pl.DataFrame(
        {name: [value] * n for name, value in constant.items()}
        | {
            "row_number": [row] * n,
            "column_number": [column] * n,
            "cell_count": pl.Series(cell_counts or [None] * n, dtype=pl.Int64),
        },
        schema_overrides={
            "well": pl.String,
            "row_number": pl.Int32,
            "column_number": pl.Int32,
            "cell_count": pl.Int64,
        },
    )
