"""Which treatments look like this one: the index of a lake's treatments, and questions to it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from warehouse import feature_sets, profiles
from warehouse.errors import SearchError
from warehouse.lake import INDEX_FOLDER, Lake
from warehouse.names import unknown
from warehouse.profiles import Profiles
from warehouse.search import FlatIndex

#: Metadata of a neighbour that an answer carries.
_ANSWER = ("treatment", "compound", "concentration", "unit", "control_type", "well_count", "batch_count")
_LABELS = ("moa", "target", "pathway", "gene_family")


@dataclass(frozen=True)
class IndexReport:
    """An index that was built: of what, how many vectors, where."""

    feature_set: str
    recipe: str
    level: str
    vectors: int
    dim: int
    path: str


@dataclass(frozen=True)
class Answer:
    """The nearest treatments of a query.

    Attributes:
        query: the treatment asked for.
        neighbours: rank, similarity (cosine), treatment, compound, concentration, unit, control_type, well_count
            (replicates), batch_count, moa, target, pathway, gene_family; nearest first.
        allowed: how many treatments the exclusions left to choose from.
        note: what the asker should know of how it was answered, or None.
    """

    query: str
    neighbours: pl.DataFrame
    allowed: int
    note: str | None


def build(lake: Lake, feature_set: str, *, recipe: str = "none", level: str = "treatment") -> IndexReport:
    """Build the index of one level and write it beside the lake, whole or not at all.

    Args:
        lake: an open lake.
        feature_set: its name.
        recipe: steps or name of a recipe that was fitted.
        level: `treatment` or `consensus`.

    Raises:
        SearchError: no profile, a zero vector, or a missing element; the message names it. Or the lake is open as of
            an older snapshot, whose index would take the place of the newest one's.
    """
    if lake.as_of is not None:
        message = f"{lake.address} is open as of {lake.as_of}: `nearest` searches it without an index; index the newest"
        raise SearchError(message)
    with lake.reading():
        table = _searchable(profiles.read(lake, feature_set, recipe=recipe, level=_check_level(level)))
        card = _card(lake, table)
    index = FlatIndex(table.matrix, table.names())
    path = _path(lake, table.feature_set.name, table.recipe, level)
    index.save(path, card)
    return IndexReport(
        table.feature_set.name, table.recipe, level, len(table.rows), table.matrix.shape[1], str(path)
    )


def nearest(
    lake: Lake,
    treatment: str,
    feature_set: str,
    *,
    recipe: str = "none",
    level: str = "treatment",
    k: int = 20,
    not_same_compound: bool = False,
    not_same_batch: bool = False,
    where: str | None = None,
) -> Answer:
    """Find the treatments most similar to one, by cosine; every exclusion applies before ranking.

    Args:
        lake: an open lake.
        treatment: name of the query, as in `treatments.treatment`.
        feature_set: its name.
        recipe: steps or name of a recipe that was fitted.
        level: `treatment` or `consensus`.
        k: how many; fewer come back only where fewer are allowed.
        not_same_compound: leave out every concentration of the query's compound.
        not_same_batch: leave out treatments that share a batch with the query.
        where: an SQL predicate over the level's columns that neighbours must meet.

    Raises:
        UnknownNameError: no such treatment, feature set or step; the nearest names are offered.
        SearchError: k is below 1, or a profile cannot be compared.
    """
    if k < 1:
        message = f"k is {k}: ask for at least one neighbour"
        raise SearchError(message)
    with lake.reading():
        target = feature_sets.find(lake, feature_set)
        fitted = profiles.find_recipe(lake, target, recipe)
        profiles.refuse_waiting(lake, target.name, fitted)
        rows = profiles.rows(lake, feature_set, fitted.name, _check_level(level))
        index, note = _index(lake, feature_set, fitted.name, level, rows)
        chosen = None if where is None else _matching(lake, feature_set, fitted.name, level, where, rows)
    positions = {name: row for row, name in enumerate(rows["treatment"])}
    if treatment not in positions:
        raise unknown(treatment, "treatment", positions)
    query = positions[treatment]
    allowed = np.ones(len(rows), dtype=bool)
    allowed[query] = False
    if not_same_compound:
        allowed &= (rows["compound"] != rows["compound"][query]).to_numpy()
    if not_same_batch:
        own = set(rows["batches"][query])
        allowed &= np.array([own.isdisjoint(batches) for batches in rows["batches"]])
    if chosen is not None:
        allowed &= chosen
    similarities, found = index.search(index.vectors([query]), k, allowed)
    hits = found[0][found[0] >= 0]
    neighbours = rows[hits].select(
        pl.int_range(1, pl.len() + 1).alias("rank"),
        pl.Series("similarity", similarities[0][: len(hits)], dtype=pl.Float32),
        *_ANSWER,
        *_LABELS,
    )
    return Answer(treatment, neighbours, int(allowed.sum()), note)


def for_people(neighbours: pl.DataFrame) -> pl.DataFrame:
    """Leave out what a reader does not need: what the treatment's name says, and columns without any value."""
    said = neighbours.drop("compound", "concentration", "unit")
    return said.select(name for name in said.columns if said[name].null_count() < said.height)


def state(lake: Lake, feature_set: str, recipe: str, level: str = "treatment") -> str:
    """Tell whether there is an index: `none`, `fresh`, or `stale` where the profiles are newer."""
    path = _path(lake, feature_set, recipe, level)
    if not path.is_file():
        return "none"
    is_fresh = FlatIndex.card(path).get("fingerprint") == profiles.fingerprint(lake, feature_set, recipe)
    return "fresh" if is_fresh else "stale"


def _check_level(level: str) -> str:
    if level not in ("treatment", "consensus"):
        raise unknown(level, "level to search", ("treatment", "consensus"))
    return level


def _matching(
    lake: Lake, feature_set: str, recipe: str, level: str, where: str, rows: pl.DataFrame
) -> np.ndarray:
    kept = profiles.rows(lake, feature_set, recipe, level, where).select("treatment", there=pl.lit(True))
    joined = rows.select("treatment").join(kept, on="treatment", how="left", maintain_order="left")
    return joined["there"].is_not_null().to_numpy()


def _index(
    lake: Lake, feature_set: str, recipe: str, level: str, rows: pl.DataFrame
) -> tuple[FlatIndex, str | None]:
    """Load the index where it is of these very profiles; otherwise search the lake itself, and say so."""
    path = _path(lake, feature_set, recipe, level)
    command = f"`wellhouse index {feature_set} --recipe {recipe} --level {level}`"
    if path.is_file():
        index, card = FlatIndex.load(path)
        if card.get("fingerprint") == profiles.fingerprint(lake, feature_set, recipe) and len(rows) == len(
            index
        ):
            return index, None
        note = f"the index is older than the profiles: the lake itself was searched; renew it with {command}"
        if lake.as_of is not None:
            note = (
                f"the index is of other profiles than those as of {lake.as_of}: the lake itself was searched"
            )
    elif lake.as_of is not None:
        note = "there is no index of an older snapshot: the lake itself was searched"
    else:
        note = f"there is no index yet: the lake itself was searched; make one with {command}"
    table = _searchable(profiles.read(lake, feature_set, recipe=recipe, level=level))
    return FlatIndex(table.matrix, table.names()), note


def _searchable(table: Profiles) -> Profiles:
    if table.rows.is_empty():
        message = f"feature set {table.feature_set.name!r} has no {table.level} to search: bring a layout with --layout"
        raise SearchError(message)
    missing = np.isnan(table.matrix)
    if missing.any():
        row, feature = np.argwhere(missing)[0]
        message = (
            f"{table.level} {table.names()[row]!r} has no value for feature {table.feature_names[feature]!r}: "
            "correct the feature set with a recipe that deals with missing values"
        )
        raise SearchError(message)
    return table


def _path(lake: Lake, feature_set: str, recipe: str, level: str) -> Path:
    return lake.folder / INDEX_FOLDER / feature_set / f"{level}__{recipe}.index"


def _card(lake: Lake, table: Profiles) -> dict[str, object]:
    """Describe an index: of which profiles it is, so that a stale one is found out."""
    return {
        "feature_set": table.feature_set.name,
        "recipe": table.recipe,
        "level": table.level,
        "fingerprint": profiles.fingerprint(lake, table.feature_set.name, table.recipe),
        "snapshot": lake.snapshot(),
    }
