"""Fitting a recipe to wells, and applying it: step after step, scope after scope, in blocks of bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.names import unknown
from warehouse.recipes import KEYS, Recipe
from warehouse.scratch import Scratch
from warehouse.steps import Fit, Matrix, Step, Wells, refuse_missing

Key = tuple[str | None, str | None, str | None]
Span = tuple[int, int]
WHOLE: Key = (None, None, None)
#: Megabytes that a correction works in unless told otherwise.
MEMORY_MB = 4096


@dataclass(frozen=True)
class StoredFit:
    """The fit of one step for one plate, one batch (plate None) or all wells (source, batch, plate None).

    A step that is fitted plate by plate, or batch by batch, has one for all wells besides: which features went on
    (``keep``), and what it learnt from the whole set.
    """

    step_index: int
    source: str | None
    batch: str | None
    plate: str | None
    arrays: Fit


class Corrected(NamedTuple):
    """What became of profiles.

    Attributes:
        profiles: (n, r) float64.
        names: r features; empty where those given had no names.
        kept: (d,) which of the features given go on under their own name.
        constant: features that a step found to be constant.
        fits: made, not those that were stored before.
    """

    profiles: Matrix
    names: tuple[str, ...]
    kept: NDArray[np.bool_]
    constant: tuple[str, ...]
    fits: list[StoredFit]


@dataclass
class State:
    """A recipe on its way.

    Attributes:
        work: the matrix.
        names: of its columns.
        kept: which of the first features are still there under their own name.
        is_renamed: whether a step made other features of them.
        constant: features that a step found to be constant.
        notes: what steps chose or estimated, for people.
        fits: made so far.
    """

    work: Scratch
    names: tuple[str, ...]
    kept: NDArray[np.bool_]
    is_renamed: bool
    constant: list[str]
    notes: list[str]
    fits: list[StoredFit]


def fit_transform(
    recipe: Recipe, X: NDArray[np.floating], groups: pl.DataFrame, features: Sequence[str] = ()
) -> Corrected:
    """Fit a recipe on these wells and correct them.

    Args:
        recipe: the steps.
        X: (n, d) wells; NaN marks a missing element. Left as it is.
        groups: n rows with source, batch, plate and control_type (``negative`` marks a control), and what else of
            `steps.COLUMNS` the steps ask for.
        features: d names, for messages; may be empty.

    Returns:
        The profiles in the order of the rows; the features that every fit of every step kept; the fits. A feature
        is dropped for all plates when one plate drops it, as an embedding has one length.

    Raises:
        RecipeError: too few controls, a missing element where a step refuses it, an infinite value, or no
            feature left; plate or feature are named.
    """
    return _in_memory(recipe, X, groups, features, None)


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
    return _in_memory(recipe, X, groups, features, fits)


def _in_memory(
    recipe: Recipe,
    X: NDArray[np.floating],
    groups: pl.DataFrame,
    features: Sequence[str],
    stored: Sequence[StoredFit] | None,
) -> Corrected:
    _check(X, groups, features)
    # Wells of one plate must lie together; the result goes back into the order that was given.
    order = groups.select(KEYS).with_row_index("row").sort(KEYS, maintain_order=True)["row"].to_numpy()
    work = Scratch(*X.shape, fill=np.array(X[order], dtype=np.float64))
    state = run(recipe, work, groups[order], features, stored)
    result = np.empty(state.work.shape)
    result[order] = state.work.read()
    return Corrected(result, state.names, state.kept, tuple(state.constant), state.fits)


def run(
    recipe: Recipe,
    work: Scratch,
    rows: pl.DataFrame,
    features: Sequence[str],
    stored: Sequence[StoredFit] | None,
    memory_mb: float = MEMORY_MB,
) -> State:
    """Correct a matrix step by step, in the place it is in, or in a new one where its width changes.

    Args:
        recipe: the steps.
        work: (n, d), without infinite values; closed where another takes its place.
        rows: its n wells, ordered by source, batch and plate.
        features: d names, or none.
        stored: earlier fits, or None to fit anew.
        memory_mb: bounds the blocks that are worked on at once; the wells that a step of scope ``all`` is fitted on
            are held besides, all features of them for a step that is not featurewise.

    Returns:
        The matrix and what its columns are.
    """
    state = State(work, tuple(features), np.ones(work.shape[1], dtype=bool), False, [], [], [])
    for index, step in enumerate(recipe.steps):
        known = {(f.source, f.batch, f.plate): f.arrays for f in stored or () if f.step_index == index}
        if stored is not None and WHOLE not in known:
            message = (
                f"{step.name}: step {index + 1} of recipe {recipe.text!r} has no stored fit: "
                "fit it anew with --refit"
            )
            raise RecipeError(message)
        _step(index, step, state, rows, known, int(memory_mb * 2**20 / (16 * 8)))
    return state


def _step(
    index: int, step: Step, state: State, rows: pl.DataFrame, known: dict[Key, Fit], values: int
) -> None:
    """Fit one step scope by scope where it has no fit yet, settle which features go on, and apply it."""
    width = state.work.shape[1]
    spans = _spans(step, rows)
    whole = Wells(rows, _place(WHOLE), state.names)
    survey: Fit | None = known.get(WHOLE)
    if survey is None and step.surveys:
        survey = step.survey(state.work.read(), whole)
    fits: dict[Key, Fit] = {}
    together: Matrix | None = None
    for key, span in spans.items():
        if key in known and (key != WHOLE or step.scope == "all"):
            fits[key] = known[key]
            _check_width(step, fits[key], width, key)
            continue
        chosen, wells = _fitted_on(step, rows, span, _place(key), state.names)
        if step.together:
            fits[key], together = step.fit_transform(state.work.read(*span), wells)
        else:
            fits[key] = _fit(step, state.work, chosen, wells, survey, values)
    keep = _keep(step, fits, known, whole, width)
    renamed = (
        step.names(state.names or [f"f{i}" for i in range(width)], next(iter(fits.values())))
        if fits
        else None
    )
    target = state.work
    out = int(keep.sum()) if renamed is None else len(renamed)
    if out != width or together is not None:
        target = Scratch(len(rows), out, in_memory=state.work.is_in_memory)
    for key, (first, end) in spans.items():
        if together is not None and key not in known:
            target.write(first, together[:, keep] if renamed is None else together)
            continue
        for at, stop in _blocks(step, first, end, max(1, values // width)):
            block, wells = state.work.read(at, stop), Wells(rows[at:stop], _place(key), state.names)
            if step.complete:
                refuse_missing(step.name, block, wells)
            made = step.transform(block, wells, fits[key])
            target.write(at, made if renamed is not None or keep.all() else made[:, keep])
    masks = [fit["constant"] > 0 for fit in fits.values() if "constant" in fit]
    constant = np.logical_or.reduce([np.zeros(width, bool), *masks])
    state.constant += [state.names[i] if state.names else str(i + 1) for i in np.flatnonzero(constant)]
    if step.scope != "all" and WHOLE not in known:
        state.fits.append(StoredFit(index, *WHOLE, (survey or {}) | {"keep": keep.astype(np.float64)}))
    for key, fit in fits.items():
        if key in known:
            continue
        found = (survey or {}) | fit if step.scope == "all" else fit
        state.notes += [f"{step.name}: {note}" for note in step.notes(found)]
        settled = {"keep": keep.astype(np.float64)} if "keep" in fit else {}
        state.fits.append(StoredFit(index, *key, found | settled))
    _settle(state, target, keep, renamed)


def _settle(state: State, target: Scratch, keep: NDArray[np.bool_], renamed: tuple[str, ...] | None) -> None:
    """Take over what a step made: its matrix, and the names of its columns."""
    if target is not state.work:
        state.work.close()
        state.work = target
    if renamed is not None:
        state.names, state.is_renamed = renamed, True
        state.kept[:] = False
    else:
        state.names = (
            tuple(name for name, is_kept in zip(state.names, keep, strict=True) if is_kept)
            if state.names
            else ()
        )
        if not state.is_renamed:
            state.kept[np.flatnonzero(state.kept)[~keep]] = False


def _fitted_on(
    step: Step, rows: pl.DataFrame, span: Span, place: str, names: tuple[str, ...]
) -> tuple[NDArray[np.intp], Wells]:
    """The rows of a scope that a step is fitted on, by number, and what they are."""
    inside = Wells(rows[span[0] : span[1]], place, names)
    if step.on == "all" or step.together:
        return np.arange(*span), inside
    chosen = inside.are_controls() if step.on == "controls" else ~inside.are_controls()
    return span[0] + np.flatnonzero(chosen), inside.at(chosen)


def _fit(
    step: Step, work: Scratch, chosen: NDArray[np.intp], wells: Wells, survey: Fit | None, values: int
) -> Fit:
    """Fit on all features at once, or part by part where they are many and the step takes each alone."""
    width = work.shape[1]
    columns = max(1, values // max(1, len(chosen)))
    if not step.featurewise or columns >= width:
        return step.fit(work.take(chosen), wells, survey)
    parts = []
    for first in range(0, width, columns):
        features = wells.features[first : first + columns]
        part = work.take(chosen, slice(first, min(width, first + columns)))
        parts.append(step.fit(part, Wells(wells.rows, wells.place, features), survey))
    return {
        name: array if name in step.other_axes else np.concatenate([part[name] for part in parts], axis=-1)
        for name, array in parts[0].items()
    }


def _keep(
    step: Step, fits: dict[Key, Fit], known: dict[Key, Fit], whole: Wells, width: int
) -> NDArray[np.bool_]:
    """The features kept by every fit; once stored, what is kept is settled and a new plate must follow it."""
    own = {key: np.asarray(fit.get("keep", np.ones(width))) > 0 for key, fit in fits.items()}
    if WHOLE in known:
        settled = np.asarray(known[WHOLE].get("keep", np.ones(width))) > 0
        for key, mask in own.items():
            lost = np.flatnonzero(settled & ~mask) if len(settled) == width else np.array([], dtype=np.intp)
            if len(lost):
                message = (
                    f"{step.name}: feature {whole.feature(lost[0])} ({len(lost)} in all) is constant or has no value "
                    f"in {_place(key)} but was kept when the recipe was fitted: fit it anew with --refit"
                )
                raise RecipeError(message)
        if len(settled) != width:
            _check_width(step, known[WHOLE], width, WHOLE)
        return settled
    keep: NDArray[np.bool_] = np.logical_and.reduce([np.ones(width, dtype=bool), *own.values()])
    if not keep.any():
        worst = min(own, key=lambda key: int(own[key].sum()))
        message = (
            f"{step.name}: none of the {width} features is left; {_place(worst)} keeps {own[worst].sum()}: "
            "loosen the step, look at the wells, or leave the plate out"
        )
        raise RecipeError(message)
    return keep


def _spans(step: Step, rows: pl.DataFrame) -> dict[Key, Span]:
    """The stretches of rows that share a fit, by (source, batch, plate)."""
    depth = {"plate": 3, "batch": 2, "all": 0}[step.scope]
    if rows.is_empty():
        return {}
    if depth == 0:
        return {WHOLE: (0, len(rows))}
    counted = rows.group_by(KEYS[:depth], maintain_order=True).len()
    spans: dict[Key, Span] = {}
    first = 0
    for *key, count in counted.iter_rows():
        spans[key[0], key[1], key[2] if depth == 3 else None] = (first, first + count)
        first += count
    return spans


def _blocks(step: Step, first: int, end: int, limit: int) -> Iterator[Span]:
    if step.whole:
        limit = end - first
    for at in range(first, end, limit):
        yield at, min(end, at + limit)


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
    refuse_infinite(X, groups, features)


def refuse_infinite(X: NDArray[np.floating], rows: pl.DataFrame, features: Sequence[str]) -> None:
    """Refuse an element that is neither finite nor missing.

    Raises:
        RecipeError: the first one, its feature, value, row and plate.
    """
    infinite = np.isinf(X)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        source, batch, plate = rows.select(KEYS).row(int(row))
        message = (
            f"feature {Wells(features=tuple(features)).feature(column)} is {X[row, column]} in row {row} "
            f"({_place((source, batch, plate))}): a value must be finite or missing"
        )
        raise RecipeError(message)


def _check_width(step: Step, fit: Fit, width: int, key: Key) -> None:
    for name, array in fit.items():
        if name not in step.other_axes and array.shape[-1] != width:
            message = (
                f"{step.name}: the stored {name!r} for {_place(key)} has {array.shape[-1]} features, the profiles have "
                f"{width}: fit it anew with --refit"
            )
            raise RecipeError(message)
