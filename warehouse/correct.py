"""Correcting a feature set with a recipe: the fit is stored, and plates that come later are corrected with it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse import feature_sets, layouts, profiles, recipes, resources
from warehouse.embeddings import to_column
from warehouse.errors import RecipeError
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake, now
from warehouse.recipes import Corrected, Recipe, StoredFit
from warehouse.runs import Run
from warehouse.sqltext import expand, relation, statements

_KEYS = ["source", "batch", "plate"]
Plate = tuple[str, str, str]


@dataclass(frozen=True)
class CorrectReport:
    """What was corrected: plates fitted or brought up to date, wells written, features left and dropped."""

    feature_set: str
    recipe: str
    steps: str
    plates: int
    wells: int
    features: int
    features_dropped: tuple[str, ...]
    constant_features: tuple[str, ...]
    plates_left_out: tuple[str, ...]
    outcome: str


class _ChangedMeanwhileError(Exception):
    """Plates came in between the reading of wells and the commit of their correction."""


def correct(
    lake: Lake, feature_set: str, recipe: str, *, refit: bool = False, run: Run | None = None
) -> CorrectReport:
    """Write `wells__<recipe>`, its views and its fit, in one transaction.

    The first time the recipe is fitted on all wells of the feature set. Later calls correct the plates that
    have come since with the stored fit and leave the others as they are; `refit` fits anew on everything. A plate
    that a step cannot be fitted on (it has no negative controls, say) is left out and named in `recipe_left_out`.

    Args:
        lake: open for writing.
        feature_set: its name.
        recipe: steps, as `mad_robustize+sphering(lambda=0.01)`.
        refit: fit again.
        run: that this belongs to; None for one of its own.

    Returns:
        What was done; outcome `fitted`, `extended` or `unchanged`.

    Raises:
        RecipeError: it cannot be fitted (no plate has controls, a missing element where a step refuses it).
        UnknownNameError: no such feature set or step.
    """
    parsed = recipes.parse(recipe)
    if parsed.slug == "none":
        message = "recipe 'none' needs no correction: the profiles as they came in have that name already"
        raise RecipeError(message)
    target = feature_sets.find(lake, feature_set)
    own = Run("correct", {"feature_set": target.name, "recipe": parsed.text, "refit": refit})
    for _ in range(5):
        try:
            report = _correct(lake, target, parsed, refit, run or own)
        except _ChangedMeanwhileError:
            continue
        if run is None:
            own.finish(lake, {"plates": report.plates, "wells": report.wells})
        return report
    message = (
        f"feature set {feature_set!r} kept changing while it was corrected: try again when ingestion rests"
    )
    raise RecipeError(message)


def _correct(lake: Lake, target: FeatureSet, recipe: Recipe, refit: bool, run: Run) -> CorrectReport:
    before = profiles.fingerprint(lake, target.name, recipe.slug)
    wells = profiles.read(lake, target.name, level="well")
    if wells.rows.is_empty():
        message = f"feature set {target.name!r} has no wells yet: ingest a plate first"
        raise RecipeError(message)
    # A well without a layout is no control; the recipe's steps treat it like any other.
    groups = wells.rows.with_columns(pl.col("control_type").fill_null("none"))
    is_fitted = bool(
        lake.value(
            "SELECT count(*) FROM main.recipes WHERE feature_set = ? AND recipe = ?",
            [target.name, recipe.slug],
        )
    )
    lacking = recipes.lacking(recipe, groups)
    able = ~_is_among(groups, lacking)
    if not able.any():
        plate, reason = next(iter(lacking.items()))
        message = (
            f"recipe {recipe.text!r} can correct none of the {len(lacking)} plates of feature set {target.name!r}; "
            f"plate {plate[2]!r}: {reason}: mark its controls as negative in the layout, or use on=all"
        )
        raise RecipeError(message)
    left_out = _left_out(lake, target.name, recipe.slug)
    done = _corrected(lake, target.name, recipe.slug) if is_fitted and not refit else set()
    chosen = able & ~_is_among(groups, done)
    if not chosen.any() and left_out == lacking:
        left = profiles.find_recipe(lake, target, recipe.slug).feature_names
        return _report(target, recipe, groups.clear(), None, "unchanged", left, lacking)
    # Where every plate was replaced, no profile is left to stay comparable with: that is a new fit.
    fresh = bool((chosen | ~able).all())
    if fresh:
        rows = groups.filter(pl.Series(able))
        result = recipes.fit_transform(recipe, wells.matrix[able], rows, target.feature_names)
    else:
        stored = [
            fit
            for fit in _stored(lake, target.name, recipe.slug)
            if (fit.source, fit.batch, fit.plate) not in _anew(groups, chosen, done)
        ]
        rows = groups.filter(pl.Series(chosen))
        result = recipes.transform(recipe, wells.matrix[chosen], rows, stored, target.feature_names)
    fitted_anew = _anew(groups, chosen, done)
    groups = groups.filter(pl.Series(chosen))
    names = [name for name, kept in zip(target.feature_names, result.kept, strict=True) if kept]

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        if profiles.fingerprint(lake, target.name, recipe.slug) != before:
            raise _ChangedMeanwhileError
        run.record(lake)
        if fresh:
            _begin(connection, target, recipe, names, run, is_fitted)
        corrected = groups.select(*_KEYS, "well", "field_count", "cell_count")
        corrected = corrected.with_columns(to_column(result.profiles.astype(np.float32)))
        table = relation(target.name, "wells", recipe.slug)
        connection.register("anew", pl.DataFrame(sorted(fitted_anew, key=str), schema=_KEYS, orient="row"))
        connection.execute(
            f"DELETE FROM {table} WHERE (source, batch, plate) IN (SELECT (source, batch, plate) FROM anew)"
        )
        connection.execute(
            "DELETE FROM main.recipe_fits WHERE feature_set = ? AND recipe = ? AND (source, batch, "
            "coalesce(plate, '')) IN (SELECT (source, batch, coalesce(plate, '')) FROM anew)",
            [target.name, recipe.slug],
        )
        connection.unregister("anew")
        layouts.insert(connection, table, corrected)
        _store(connection, target.name, recipe, result)
        _put_left_out(connection, target.name, recipe.slug, lacking)

    lake.transaction(work)
    return _report(target, recipe, groups, result, "fitted" if fresh else "extended", names, lacking)


def _corrected(lake: Lake, feature_set: str, recipe: str) -> set[Plate]:
    """Name the plates that stand in the recipe's table."""
    table = relation(feature_set, "wells", recipe)
    return set(lake.connection.execute(f"SELECT DISTINCT source, batch, plate FROM {table}").fetchall())


def _left_out(lake: Lake, feature_set: str, recipe: str) -> dict[Plate, str]:
    """Read which plates the recipe's table is known to lack, and why."""
    rows = lake.connection.execute(
        "SELECT source, batch, plate, reason FROM main.recipe_left_out WHERE feature_set = ? AND recipe = ?",
        [feature_set, recipe],
    ).fetchall()
    return {(source, batch, plate): reason for source, batch, plate, reason in rows}


def _put_left_out(
    connection: duckdb.DuckDBPyConnection, feature_set: str, recipe: str, lacking: dict[Plate, str]
) -> None:
    connection.execute(
        "DELETE FROM main.recipe_left_out WHERE feature_set = ? AND recipe = ?", [feature_set, recipe]
    )
    if lacking:
        rows = [(feature_set, recipe, *plate, reason) for plate, reason in sorted(lacking.items())]
        columns = ("feature_set", "recipe", *_KEYS, "reason")
        layouts.insert(connection, "main.recipe_left_out", pl.DataFrame(rows, schema=columns, orient="row"))


def _is_among(groups: pl.DataFrame, plates: Collection[Plate]) -> NDArray[np.bool_]:
    """Tell of each well whether its plate is among these."""
    return np.array([plate in plates for plate in groups.select(_KEYS).iter_rows()], dtype=bool)


def _anew(
    groups: pl.DataFrame, chosen: NDArray[np.bool_], done: Collection[Plate]
) -> set[tuple[str, str, str | None]]:
    """Name the plates that are fitted on themselves, and as (source, batch, None) the batches.

    A plate that is to be corrected was never fitted, or its wells were replaced. A batch keeps its fit while
    one of its plates stands corrected with it: the others stay comparable with that one.
    """
    plates = groups.select(_KEYS).filter(pl.Series(chosen)).unique().rows()
    kept = {(source, batch) for source, batch, _ in done}
    batches = {(source, batch) for source, batch, _ in plates} - kept
    return set(plates) | {(source, batch, None) for source, batch in batches}


def _begin(
    connection: duckdb.DuckDBPyConnection,
    target: FeatureSet,
    recipe: Recipe,
    names: list[str],
    run: Run,
    is_fitted: bool,
) -> None:
    """Make the recipe's table and views, or empty them for a new fit."""
    if is_fitted:
        for table in ("recipes", "recipe_fits"):
            connection.execute(
                f"DELETE FROM main.{table} WHERE feature_set = ? AND recipe = ?", [target.name, recipe.slug]
            )
        connection.execute(f"DELETE FROM {relation(target.name, 'wells', recipe.slug)}")
    else:
        wells = next(
            path for path in resources.files("schema", "feature_set") if path.stem.endswith("_wells")
        )
        for statement in statements(wells.read_text(encoding="utf-8")):
            connection.execute(expand(statement, target.name, recipe.slug))
    feature_sets.create_views(connection, target.name, recipe.slug, len(names))
    connection.execute(
        "INSERT INTO main.recipes VALUES (?, ?, ?, ?, ?, ?, ?)",
        [target.name, recipe.slug, recipe.text, len(names), names, run.run, now()],
    )


def _store(
    connection: duckdb.DuckDBPyConnection, feature_set: str, recipe: Recipe, result: Corrected
) -> None:
    """Write fits as rows: a one-dimensional array is one row, a matrix one row a line."""
    rows = [
        (
            feature_set,
            recipe.slug,
            fit.step_index,
            recipe.steps[fit.step_index].name,
            fit.source,
            fit.batch,
            fit.plate,
            name,
            None if array.ndim < 2 else line,
            values.tolist(),
        )
        for fit in result.fits
        for name, array in fit.arrays.items()
        for line, values in enumerate(np.atleast_2d(array))
    ]
    if not rows:
        return
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "feature_set": pl.String,
        "recipe": pl.String,
        "step": pl.Int32,
        "step_name": pl.String,
        "source": pl.String,
        "batch": pl.String,
        "plate": pl.String,
        "array_name": pl.String,
        "array_row": pl.Int32,
        "array_values": pl.List(pl.Float64),
    }
    layouts.insert(connection, "main.recipe_fits", pl.DataFrame(rows, schema=schema, orient="row"))


def _stored(lake: Lake, feature_set: str, recipe: str) -> list[StoredFit]:
    """Read the fits back as they were made."""
    frame = lake.frame(
        "SELECT step, source, batch, plate, array_name, array_row, array_values FROM main.recipe_fits "
        "WHERE feature_set = ? AND recipe = ? ORDER BY ALL",
        [feature_set, recipe],
    )
    fits: dict[tuple[object, ...], dict[str, list[tuple[int | None, list[float]]]]] = {}
    for step, source, batch, plate, name, line, values in frame.iter_rows():
        fits.setdefault((step, source, batch, plate), {}).setdefault(name, []).append((line, values))
    found = []
    for (step, source, batch, plate), arrays in fits.items():
        made = {
            name: np.array(lines[0][1]) if lines[0][0] is None else np.array([values for _, values in lines])
            for name, lines in arrays.items()
        }
        found.append(StoredFit(int(str(step)), _text(source), _text(batch), _text(plate), made))
    return found


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _report(
    target: FeatureSet,
    recipe: Recipe,
    groups: pl.DataFrame,
    result: Corrected | None,
    outcome: str,
    left: Sequence[str],
    lacking: dict[Plate, str],
) -> CorrectReport:
    kept = set(left)
    constant: set[int] = set()
    for fit in result.fits if result is not None else []:
        if "constant" in fit.arrays and len(fit.arrays["constant"]) == target.dim:
            constant |= set(np.flatnonzero(fit.arrays["constant"] > 0).tolist())
    return CorrectReport(
        target.name,
        recipe.slug,
        recipe.text,
        groups.select(_KEYS).unique().height,
        len(groups),
        len(kept),
        tuple(name for name in target.feature_names if name not in kept),
        tuple(target.feature_names[i] for i in sorted(constant)),
        tuple(f"{plate[2]} ({reason})" for plate, reason in sorted(lacking.items())),
        outcome,
    )
