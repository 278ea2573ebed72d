"""Correcting a feature set with a recipe: the fit is stored, and plates that come later are corrected with it.

Plates are read in stretches of bounded memory, and a plate that comes later is corrected without reading the others.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import duckdb
import polars as pl

from warehouse import feature_sets, fits, fitting, layouts, profiles, recipes, resources, rows_to_correct
from warehouse.errors import RecipeError
from warehouse.feature_sets import FeatureSet
from warehouse.fits import Plate
from warehouse.fitting import MEMORY_MB
from warehouse.lake import Lake, now
from warehouse.recipes import KEYS, Recipe
from warehouse.runs import Run
from warehouse.sqltext import expand, relation, statements

_KEYS = list(KEYS)


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
    notes: tuple[str, ...]
    outcome: str


class _ChangedMeanwhileError(Exception):
    """Plates came in between the reading of wells and the commit of their correction."""


def correct(
    lake: Lake,
    feature_set: str,
    recipe: str,
    *,
    refit: bool = False,
    memory_mb: int = MEMORY_MB,
    run: Run | None = None,
) -> CorrectReport:
    """Write `wells__<recipe>`, its views and its fit, in one transaction.

    The first time the recipe is fitted on all wells of the feature set. Later calls correct the plates that
    have come since with the stored fit and leave the others as they are; `refit` fits anew on everything. A plate
    that a step cannot be fitted on (it has no negative controls, say) is left out and named in `recipe_left_out`.

    Args:
        lake: open for writing.
        feature_set: its name.
        recipe: steps, as `mad_robustize+sphering(lambda=0.01)`, or a name of `recipes.NAMED`.
        refit: fit again.
        memory_mb: profiles that take more than half of it are worked on in a temporary file, in blocks. The wells
            that a step is fitted on for the whole set are held besides.
        run: that this belongs to; None for one of its own.

    Returns:
        What was done; outcome `fitted`, `extended` or `unchanged`.

    Raises:
        RecipeError: it cannot be fitted (no plate has controls, a missing element where a step refuses it).
        UnknownNameError: no such feature set or step.
    """
    parsed = recipes.parse(recipe)
    if not parsed.steps:
        message = "recipe 'none' needs no correction: the profiles as they came in have that name already"
        raise RecipeError(message)
    if memory_mb < 64:
        message = f"memory of {memory_mb} MB: allow 64 or more"
        raise RecipeError(message)
    target = feature_sets.find(lake, feature_set)
    if parsed.level == "field" and target.entry_level == "well":
        message = f"recipe {recipe!r} corrects fields, and feature set {feature_set!r} came in as wells: it has none"
        raise RecipeError(message)
    notes: tuple[str, ...] = ()
    if parsed.name == "microsnoop" and target.entry_level == "cell" and target.field_operator != "mean":
        notes = (
            f"the paper takes the mean of cells; the fields of {target.name!r} are made by {target.field_operator!r}",
        )
    own = Run("correct", {"feature_set": target.name, "recipe": parsed.text, "refit": refit})
    for _ in range(5):
        try:
            report = _correct(lake, target, parsed, refit, memory_mb, run or own)
        except _ChangedMeanwhileError:
            continue
        if run is None:
            own.finish(lake, {"plates": report.plates, "wells": report.wells})
        return replace(report, notes=notes + report.notes)
    message = (
        f"feature set {feature_set!r} kept changing while it was corrected: try again when ingestion rests"
    )
    raise RecipeError(message)


def _correct(
    lake: Lake, target: FeatureSet, recipe: Recipe, refit: bool, memory_mb: int, run: Run
) -> CorrectReport:
    with lake.reading():
        before = profiles.fingerprint(lake, target.name, recipe.slug)
        query = "SELECT max(steps) FROM main.recipes WHERE feature_set = ? AND recipe = ?"
        steps = lake.value(query, [target.name, recipe.slug])
        if steps is not None and steps != recipe.text and not refit:
            message = (
                f"recipe {recipe.slug!r} was fitted as {steps!r} and now is {recipe.text!r}: "
                "fit it anew with --refit"
            )
            raise RecipeError(message)
        plates = rows_to_correct.plates(lake, target)
        done = _corrected(lake, target.name, recipe.slug) if steps is not None and not refit else set()
        # What stands corrected could be fitted; a plate that is to come into such a batch goes by the batch's fit.
        counts = rows_to_correct.counts(
            lake, target, recipe, [plate for plate in plates if plate not in done]
        )
        lacking = recipes.lacking(recipe, counts, {(source, batch) for source, batch, _ in done})
        chosen: list[Plate] = [plate for plate in counts.select(_KEYS).rows() if plate not in lacking]
        if not (chosen or done):
            _refuse(target, recipe, lacking)
        # Where every plate was replaced, no profile is left to stay comparable with: that is a new fit.
        fresh = not done
        anew = _anew(chosen, done)
        stored = (
            None if fresh else fits.stored(lake, target.name, recipe.slug, chosen, anew, len(recipe.steps))
        )

        def attempt(plates: Sequence[Plate]) -> tuple[pl.DataFrame, fitting.State]:
            rows, work = rows_to_correct.read(
                lake, target, recipe, counts.filter(_is_among(counts, plates)), memory_mb
            )
            return rows, fitting.run(recipe, work, rows, target.feature_names, stored, memory_mb)

        try:
            rows, state = attempt(chosen) if chosen else (counts, None)
        except RecipeError:
            # A plate that the stored fits cannot correct (a feature is constant on it, say) holds up no other.
            unfit = {} if fresh else _unfit(attempt, chosen)
            if not unfit:
                raise
            lacking, chosen = lacking | unfit, [plate for plate in chosen if plate not in unfit]
            anew = _anew(chosen, done)
            rows, state = attempt(chosen) if chosen else (counts, None)
        if state is None and fits.left_out(lake, target.name, recipe.slug) == lacking:
            return _unchanged(lake, target, recipe, lacking)
    if state is None:
        return _leave_out(lake, target, recipe, lacking, run)
    wells = 0

    def parts() -> Iterator[pl.DataFrame]:
        nonlocal wells
        for part in rows_to_correct.corrected_wells(recipe, rows, state.work, memory_mb):
            wells += len(part)
            yield part

    def put(connection: duckdb.DuckDBPyConnection) -> None:
        nonlocal wells
        wells = 0
        if profiles.fingerprint(lake, target.name, recipe.slug) != before:
            raise _ChangedMeanwhileError
        run.record(lake)
        if fresh:
            _begin(connection, target, recipe, list(state.names), run, steps is not None)
        table = relation(target.name, "wells", recipe.slug)
        connection.register("anew", pl.DataFrame(sorted(anew, key=str), schema=_KEYS, orient="row"))
        connection.execute(
            f"DELETE FROM {table} WHERE (source, batch, plate) IN (SELECT (source, batch, plate) FROM anew)"
        )
        connection.execute(
            "DELETE FROM main.recipe_fits WHERE feature_set = ? AND recipe = ? AND source IS NOT NULL AND "
            "(source, batch, coalesce(plate, '')) IN (SELECT (source, batch, coalesce(plate, '')) FROM anew)",
            [target.name, recipe.slug],
        )
        connection.unregister("anew")
        layouts.insert_parts(connection, table, parts())
        fits.store(connection, target.name, recipe, state.fits)
        fits.put_left_out(connection, target.name, recipe.slug, lacking)

    lake.transaction(put)
    state.work.close()
    outcome = "fitted" if fresh else "extended"
    return _report(target, recipe, chosen, wells, outcome, state.names, lacking, state)


def _leave_out(
    lake: Lake, target: FeatureSet, recipe: Recipe, lacking: dict[Plate, str], run: Run
) -> CorrectReport:
    """Note which plates a recipe has to leave out, where that is all that is new."""

    def put(connection: duckdb.DuckDBPyConnection) -> None:
        run.record(lake)
        fits.put_left_out(connection, target.name, recipe.slug, lacking)

    lake.transaction(put)
    return replace(_unchanged(lake, target, recipe, lacking), outcome="extended")


def _unchanged(lake: Lake, target: FeatureSet, recipe: Recipe, lacking: dict[Plate, str]) -> CorrectReport:
    left = profiles.find_recipe(lake, target, recipe.slug).feature_names
    return _report(target, recipe, [], 0, "unchanged", left, lacking)


def _unfit(attempt: Callable[[Sequence[Plate]], object], chosen: Sequence[Plate]) -> dict[Plate, str]:
    """Try plates one by one, and tell which cannot be corrected, and why."""
    found = {}
    for plate in chosen:
        try:
            attempt([plate])
        except RecipeError as error:
            found[plate] = str(error)
    return found


def _refuse(target: FeatureSet, recipe: Recipe, lacking: dict[Plate, str]) -> None:
    if not lacking:
        message = f"feature set {target.name!r} has no {recipe.level}s yet: ingest a plate first"
        raise RecipeError(message)
    plate, reason = next(iter(lacking.items()))
    message = (
        f"recipe {recipe.text!r} can correct none of the {len(lacking)} plates of feature set {target.name!r}; "
        f"plate {plate[2]!r}: {reason}: mark its controls as negative in the layout, or use on=all"
    )
    raise RecipeError(message)


def _corrected(lake: Lake, feature_set: str, recipe: str) -> set[Plate]:
    """Name the plates that stand in the recipe's table."""
    table = relation(feature_set, "wells", recipe)
    return set(lake.connection.execute(f"SELECT DISTINCT source, batch, plate FROM {table}").fetchall())


def _is_among(counts: pl.DataFrame, plates: Collection[Plate]) -> pl.Series:
    """Tell of each row whether its plate is among these."""
    wanted = set(plates)
    return pl.Series([plate in wanted for plate in counts.select(_KEYS).iter_rows()], dtype=pl.Boolean)


def _anew(chosen: Collection[Plate], done: Collection[Plate]) -> set[tuple[str, str, str | None]]:
    """Name the plates that are fitted on themselves, and as (source, batch, None) the batches.

    A plate that is to be corrected was never fitted, or its wells were replaced. A batch keeps its fit while
    one of its plates stands corrected with it: the others stay comparable with that one.
    """
    kept = {(source, batch) for source, batch, _ in done}
    batches = {(source, batch) for source, batch, _ in chosen} - kept
    return set(chosen) | {(source, batch, None) for source, batch in batches}


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


def _report(
    target: FeatureSet,
    recipe: Recipe,
    plates: Sequence[Plate],
    wells: int,
    outcome: str,
    names: Sequence[str],
    lacking: dict[Plate, str],
    state: fitting.State | None = None,
) -> CorrectReport:
    left = set(names)
    # Features of other names are made of all that came in: none was dropped.
    dropped = (
        tuple(n for n in target.feature_names if n not in left) if left <= set(target.feature_names) else ()
    )
    return CorrectReport(
        target.name,
        recipe.slug,
        recipe.text,
        len(plates),
        wells,
        len(names),
        dropped,
        () if state is None else tuple(state.constant),
        tuple(f"{plate[2]} ({reason})" for plate, reason in sorted(lacking.items())),
        () if state is None else tuple(state.notes),
        outcome,
    )
