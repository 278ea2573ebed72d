"""Which treatments look like this one: the index of a level, questions to it, and tables over all of it."""

from warehouse.lake import Lake
from warehouse.nearest.answers import Answer
from warehouse.nearest.filters import Filters, Query
from warehouse.nearest.indexes import IndexReport, build, state
from warehouse.nearest.searcher import Searcher

__all__ = [
    "Answer",
    "Filters",
    "IndexReport",
    "Query",
    "Searcher",
    "build",
    "nearest",
    "state",
]


def nearest(
    lake: Lake,
    query: str,
    feature_set: str,
    *,
    recipe: str = "none",
    level: str = "treatment",
    k: int = 20,
    not_same_compound: bool = False,
    not_same_batch: bool = False,
    not_same_plate: bool = False,
    not_same_position: bool = False,
    where: str | None = None,
    opposite: bool = False,
    device: str = "cpu",
) -> Answer:
    """Find the rows of a level most similar to one, by cosine; every filter acts before the ranking.

    For many questions to one level, and for queries other than by name, open a `Searcher` once.

    Args:
        lake: an open lake.
        query: name of a row of the level, as a treatment's; below treatments also the name of a treatment.
        feature_set: its name.
        recipe: steps or name of a recipe that was fitted.
        level: of `profiles.LEVELS`.
        k: how many; fewer come back only where fewer are allowed.
        not_same_compound: leave out every concentration of the query's compound.
        not_same_batch: leave out what has wells in a batch of the query.
        not_same_plate: leave out what has wells on a plate of the query.
        not_same_position: leave out what has wells at a well position of the query.
        where: an SQL predicate over the level's columns that neighbours must meet.
        opposite: find the most dissimilar instead.
        device: `cpu` or `gpu`.

    Raises:
        UnknownNameError: no such treatment, feature set, level or step; the nearest names are offered.
        SearchError: k is below 1, a filter does not apply, or a profile cannot be compared.
    """
    searcher = Searcher(lake, feature_set, recipe, level, device)
    filters = Filters(not_same_compound, not_same_batch, not_same_plate, not_same_position, where)
    return searcher.nearest(searcher.query(query), k, filters, opposite=opposite)
