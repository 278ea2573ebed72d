"""Slices: a level computed over the wells that a predicate chooses, or from cells up, without a copy of anything.

The predicate works before aggregation: a treatment's profile is that of its chosen wells. `profiles.read` and `export`
choose among the rows of a level after aggregation: a treatment's profile is that of all its wells.
"""

import duckdb
import polars as pl

from warehouse import feature_sets, profiles
from warehouse.embeddings import to_matrix
from warehouse.errors import ProfileError
from warehouse.export.stream import Selection
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.level_queries import FLAGS, LABELS, Slice, counting_queries, level_query
from warehouse.names import unknown
from warehouse.profiles import IDS, LEVELS, FittedRecipe, Profiles
from warehouse.sqltext import relation

__all__ = ["Slice", "read", "select", "shown", "text"]


def select(
    lake: Lake, feature_set: str, *, level: str = "treatment", recipe: str = "none", part: Slice | None = None
) -> Selection:
    """Find a slice; its rows can then be read, or written with `warehouse.export.write`.

    Args:
        lake: an open lake.
        feature_set: its name.
        level: of `warehouse.profiles.LEVELS`.
        recipe: its steps or its name in the lake; `none` for the profiles as they came in.
        part: which wells the level is computed from, and from where; None for all as they were committed.

    Raises:
        UnknownNameError: no such feature set, level or step.
        RecipeError: the recipe was never fitted, or plates wait for it.
        ProfileError: the predicate is none, names a column that wells lack, or no well meets it; the recipe corrects
            no such level; or there is nothing to compute from.
    """
    if level not in LEVELS:
        raise unknown(level, "level", LEVELS)
    part = part or Slice()
    target = feature_sets.find(lake, feature_set)
    fitted = profiles.find_recipe(lake, target, recipe)
    if fitted.name != "none" and level in ("cell", "field"):
        message = f"recipe {recipe!r} corrects wells; {level}s are there as they came in: leave --recipe out"
        raise ProfileError(message)
    profiles.refuse_waiting(lake, target.name, fitted)
    operators = feature_sets.operators(lake.connection, target.name)
    query = level_query(target, fitted, level, part, operators)
    if part == Slice():
        return Selection(target, fitted, level, None, query)
    lineage: dict[str, object] = {
        "computed_from": target.entry_level if part.from_cells else "committed wells"
    }
    if_empty = None
    if part.chooses:
        chosen, of_all = _count(lake, target, fitted, part)
        met = f"{chosen} of {of_all} wells of {target.name!r} meet {_said(part)}"
        if_empty = f"{met}, and level {level!r} has no row of them"
        lineage |= {"where": part.where, "passing": part.passing, "chosen": chosen, "of": of_all}
    return Selection(target, fitted, level, None, query, lineage, if_empty)


def read(
    lake: Lake, feature_set: str, *, level: str = "treatment", recipe: str = "none", part: Slice | None = None
) -> Profiles:
    """Read a slice.

    Args:
        lake: as in `select`.
        feature_set: as in `select`.
        level: as in `select`.
        recipe: as in `select`.
        part: as in `select`.

    Returns:
        Metadata and embeddings, ordered by the level's ids.

    Raises:
        UnknownNameError: as in `select`.
        RecipeError: as in `select`.
        ProfileError: as in `select`, or the level has no row.
    """
    with lake.reading():
        chosen = select(lake, feature_set, level=level, recipe=recipe, part=part)
        frame = lake.frame(text(chosen))
    if frame.is_empty():
        name, entry = chosen.feature_set.name, chosen.feature_set.entry_level
        message = (
            chosen.if_empty or f"{name!r} has no rows of level {level!r} (its finest level is {entry!r})"
        )
        raise ProfileError(message)
    names = chosen.recipe.feature_names
    matrix = to_matrix(frame["embedding"], len(names))
    return Profiles(chosen.feature_set, chosen.recipe.name, level, frame.drop("embedding"), matrix, names)


def text(selection: Selection) -> str:
    """Return the query of a slice, ordered by the level's ids; it runs where the lake is the default catalog."""
    return f"{selection.query}\nORDER BY {', '.join(IDS[selection.level])}"


def _count(lake: Lake, target: FeatureSet, recipe: FittedRecipe, part: Slice) -> tuple[int, int]:
    """Count the wells that are chosen, and all; this also tries the predicate before anything long begins."""
    total, chosen = counting_queries(
        target, recipe, part, feature_sets.operators(lake.connection, target.name)
    )
    of_all = int(str(lake.value(total)))
    try:
        found = int(str(lake.value(chosen)))
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        columns = ""
        if isinstance(error, duckdb.BinderException):
            columns = f"; columns of wells: {', '.join(_columns(lake, target, recipe))}"
        message = f"--where {part.where!r}: {reason}{columns}"
        raise ProfileError(message) from error
    if not found:
        message = f"none of the {of_all} wells of {target.name!r} meets {_said(part)}"
        raise ProfileError(message)
    return found, of_all


def _columns(lake: Lake, target: FeatureSet, recipe: FittedRecipe) -> list[str]:
    described = lake.frame(f"DESCRIBE {relation(target.name, 'well_profiles', recipe.name)}")
    return [*described["column_name"].to_list(), *LABELS, *FLAGS]


def _said(part: Slice) -> str:
    said = [] if part.where is None else [f"--where {part.where!r}"]
    return " and ".join([*said, *(["--passing"] if part.passing else [])])


def shown(found: Profiles, rows: int, numbers: int) -> pl.DataFrame:
    """Lay a slice out for people: metadata, and the first numbers of each profile.

    Args:
        found: of `read`.
        rows: how many, from the first.
        numbers: how many of each profile.

    Returns:
        Metadata, then one column a feature, NULL where an element is missing.
    """
    table = found.rows.head(rows)
    columns = [
        pl.Series(name, found.matrix[:rows, i]).fill_nan(None)
        for i, name in enumerate(found.feature_names[:numbers])
        if name not in table.columns
    ]
    return table.hstack(columns)
