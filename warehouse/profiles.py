"""Reading profiles out of the lake: metadata as a frame, embeddings as a matrix, at any level and recipe."""

import hashlib
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl

from warehouse import feature_sets, recipes
from warehouse.embeddings import to_matrix
from warehouse.errors import ProfileError, RecipeError
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.query import by_chance, side_effect
from warehouse.sqltext import DEFAULT_OPERATORS, literal, relation

#: What is typed after `--level`, and the table or view that holds it.
LEVELS = {
    "cell": "cells",
    "field": "fields",
    "well": "well_profiles",
    "treatment": "treatments",
    "compound": "compounds",
    "batch": "batches",
    "source": "sources",
    "consensus": "consensus",
}
#: Columns that name a row, level by level.
IDS = {
    "cell": ("source", "batch", "plate", "well", "field", "cell"),
    "field": ("source", "batch", "plate", "well", "field"),
    "well": ("source", "batch", "plate", "well"),
    "treatment": ("treatment",),
    "compound": ("compound",),
    "batch": ("treatment", "source", "batch"),
    "source": ("treatment", "source"),
    "consensus": ("treatment",),
}
#: Kinds of label that a treatment can have; columns of the levels that have labels.
LABEL_KINDS = ("moa", "target", "pathway", "gene_family")
#: Levels that have a second view, `<view>_checked`, with passing_share.
CHECKED = ("treatment", "compound", "batch", "source", "consensus")
#: A column of the levels above wells that costs a pass over their embeddings, and that nobody here reads.
_COSTLY = "replicate_cosine"


@dataclass(frozen=True)
class Profiles:
    """Rows of one level of one feature set under one recipe.

    Attributes:
        feature_set: where they are from.
        recipe: the name in `wells__<recipe>`, or `none`.
        level: of `LEVELS`.
        rows: metadata, everything but the embedding, ordered by the level's ids.
        matrix: (n, d) float32; NaN where the lake holds a NULL element.
        feature_names: d names.
    """

    feature_set: FeatureSet
    recipe: str
    level: str
    rows: pl.DataFrame
    matrix: np.ndarray
    feature_names: tuple[str, ...]

    def names(self) -> list[str]:
        """One text a row, for messages and indexes: its ids joined by `/`."""
        return self.rows.select(pl.concat_str(IDS[self.level], separator="/")).to_series().to_list()


@dataclass(frozen=True)
class FittedRecipe:
    """A recipe as the lake holds it for one feature set: its table's suffix, its steps, the features it leaves."""

    name: str
    steps: str
    feature_names: tuple[str, ...]

    @property
    def typed(self) -> str:
        """What is typed for it: its name where it has one, its steps otherwise."""
        return typed(self.name, self.steps)


def typed(name: str, steps: str) -> str:
    """Say what is typed for a recipe of the lake, where `recipe` and `steps` are these."""
    return name if name in {recipe.name for recipe in recipes.NAMED} else steps


def find_recipe(lake: Lake, feature_set: FeatureSet, text: str) -> FittedRecipe:
    """Find a recipe by its name in the lake or by its steps.

    Raises:
        RecipeError: this feature set was never corrected with it; the message lists those it was.
        UnknownNameError: the text names a step that does not exist.
    """
    if text == "none":
        return FittedRecipe("none", "none", feature_set.feature_names)
    query = "SELECT recipe, steps, feature_names FROM main.recipes WHERE feature_set = ?"
    rows = {row[0]: row for row in lake.connection.execute(query, [feature_set.name]).fetchall()}
    name = text if text in rows else recipes.parse(text).slug
    if name not in rows:
        message = (
            f"feature set {feature_set.name!r} has no recipe {text!r} (it has none"
            f"{''.join(', ' + typed(known, steps) for known, steps, _ in rows.values())}): make it with "
            f"`wellhouse correct {feature_set.name} --recipe '{text}'`"
        )
        raise RecipeError(message)
    return FittedRecipe(name, rows[name][1], tuple(rows[name][2]))


def read(
    lake: Lake, feature_set: str, *, recipe: str = "none", level: str = "treatment", where: str | None = None
) -> Profiles:
    """Read profiles.

    Args:
        lake: an open lake.
        feature_set: its name.
        recipe: its steps or its name in the lake; `none` for the profiles as they came in.
        level: of `LEVELS`.
        where: an SQL predicate over the level's columns.

    Raises:
        UnknownNameError: no such feature set, level or step.
        RecipeError: the recipe was never fitted, or plates wait for it.
        ProfileError: the predicate is not one, or names a column that the level lacks.
    """
    if level not in LEVELS:
        raise unknown(level, "level", LEVELS)
    target = feature_sets.find(lake, feature_set)
    fitted = find_recipe(lake, target, recipe)
    if fitted.name != "none" and level in ("cell", "field"):
        message = f"recipe {recipe!r} corrects wells; {level}s are there as they came in: leave --recipe out"
        raise ProfileError(message)
    refuse_waiting(lake, target.name, fitted)
    frame = _select(lake, (), target.name, fitted.name, level, where)
    matrix = to_matrix(frame["embedding"], len(fitted.feature_names))
    return Profiles(target, fitted.name, level, frame.drop("embedding"), matrix, fitted.feature_names)


def refuse_waiting(lake: Lake, feature_set: str, fitted: FittedRecipe) -> None:
    """Refuse a recipe's table while plates that came, or changed, since are not in it: it would be of fewer wells.

    Raises:
        RecipeError: how many plates wait, and the command that corrects them.
    """
    if fitted.name == "none":
        return
    corrected = f"SELECT DISTINCT source, batch, plate FROM {relation(feature_set, 'wells', fitted.name)}"
    waiting = lake.connection.execute(
        "SELECT plate FROM (SELECT source, batch, plate FROM main.plate_loads WHERE feature_set = ? AND wells_in > 0 "
        f"EXCEPT {corrected} EXCEPT SELECT source, batch, plate FROM main.recipe_left_out "
        "WHERE feature_set = ? AND recipe = ?) ORDER BY plate",
        [feature_set, feature_set, fitted.name],
    ).fetchall()
    if waiting:
        message = (
            f"{len(waiting)} plates of feature set {feature_set!r} (first: {waiting[0][0]!r}) came or changed after "
            f"recipe {fitted.typed!r} was last applied: run `wellhouse correct {feature_set} --recipe '{fitted.typed}'`"
        )
        raise RecipeError(message)


def rows(
    lake: Lake, feature_set: str, recipe_name: str, level: str, where: str | None = None
) -> pl.DataFrame:
    """Read the metadata of a level, in the order of `read`, without touching its embeddings.

    Args:
        lake: an open lake.
        feature_set: its name, which exists.
        recipe_name: as in `wells__<recipe>`, or `none`; it exists.
        level: of `LEVELS`.
        where: an SQL predicate over the level's columns.

    Raises:
        ProfileError: the predicate is not one, or names a column that the level lacks.
    """
    return _select(lake, ("embedding",), feature_set, recipe_name, level, where)


def view_of(level: str, where: str | None) -> str:
    """Name the view of a level: the one with passing_share where a predicate speaks of it."""
    is_checked = level in CHECKED and "passing_share" in (where or "").lower()
    return LEVELS[level] + ("_checked" if is_checked else "")


def _select(
    lake: Lake, without: tuple[str, ...], feature_set: str, recipe_name: str, level: str, where: str | None
) -> pl.DataFrame:
    view = view_of(level, where)
    # Not EXCLUDE: cells lack the column, as the views of an older snapshot do.
    left_out = ", ".join(literal(name) for name in (*without, _COSTLY))
    query = f"SELECT COLUMNS(lambda name: name NOT IN ({left_out})) FROM {relation(feature_set, view, recipe_name)}"
    if where is not None:
        query += f" WHERE ({predicate(where)}\n)"
    try:
        return lake.frame(f"{query} ORDER BY {', '.join(IDS[level])}")
    except duckdb.Error as error:
        if where is None:
            raise
        message = f"--where {where!r}: {str(error).splitlines()[0]}"
        raise ProfileError(message) from error


def predicate(text: str) -> str:
    """Check that a text is one SQL expression: it can then only choose among rows, whatever it says.

    Raises:
        ProfileError: it is no expression, more than one, or calls a function that changes something.
    """
    if not text.strip():
        message = "--where is empty: give one predicate, such as batch = 'b1', or leave it out"
        raise ProfileError(message)
    query = f"SELECT 1 WHERE ({text}\n)"
    try:
        # By itself first: "a) UNION SELECT (b" is a query only between our parentheses.
        duckdb.SQLExpression(text)
        duckdb.extract_statements(query)
    except duckdb.Error as error:
        message = f"--where {text!r} is no SQL predicate: {str(error).splitlines()[0]}"
        raise ProfileError(message) from error
    chance = by_chance(query)
    if chance is not None:
        message = (
            f"--where {text!r}: {chance} is another at every look: choose by a hash of the keys, as in "
            "hash(plate || well) % 2 = 0"
        )
        raise ProfileError(message)
    effect = side_effect(query)
    if effect is not None:
        message = f"--where {text!r}: {effect} is not allowed here: give one predicate that only reads"
        raise ProfileError(message)
    if _kind(text) not in (None, "BOOLEAN", '"NULL"'):
        message = f"--where {text!r} is neither true nor false: write a comparison, such as batch = 'b1'"
        raise ProfileError(message)
    return text


def _kind(text: str) -> str | None:
    """Tell the type of an expression without columns, which is not computed for it; None where it has columns."""
    try:
        with duckdb.connect() as connection:
            row = connection.execute(f"DESCRIBE SELECT ({text}\n)").fetchone()
    except duckdb.Error:
        return None
    return None if row is None else str(row[1])


def fingerprint(lake: Lake, feature_set: str, recipe: str = "none") -> str:
    """Hash what decides a feature set's profiles: content and layout of its plates, the recipe's fit, the operators.

    Two equal fingerprints mean equal tables, at every level, whatever else was committed in between.
    """
    plates = lake.connection.execute(
        "SELECT loads.source, loads.batch, loads.plate, loads.content_hash, plates.layout_hash "
        "FROM main.plate_loads AS loads "
        "LEFT JOIN main.plates AS plates "
        "ON loads.source = plates.source AND loads.batch = plates.batch AND loads.plate = plates.plate "
        "WHERE loads.feature_set = ? ORDER BY ALL",
        [feature_set],
    ).fetchall()
    fits = lake.connection.execute(
        "SELECT steps, fitted_at FROM main.recipes WHERE feature_set = ? AND recipe = ?",
        [feature_set, recipe],
    ).fetchall()
    # A plate waits for its correction from its commit until the next `correct`: the table is another then.
    corrected = [
        lake.connection.execute(
            f"SELECT DISTINCT source, batch, plate FROM {relation(feature_set, 'wells', recipe)} ORDER BY ALL"
        ).fetchall()
        for _ in fits
    ]
    parts: tuple[object, ...] = (plates, fits, corrected)
    chosen = feature_sets.operators(lake.connection, feature_set)
    if chosen != DEFAULT_OPERATORS:  # with them it is what it was before there was a choice
        parts += (chosen,)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
