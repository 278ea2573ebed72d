"""What learned features mean: their correlation with features that have names, over the wells that both have."""

from dataclasses import dataclass

import polars as pl

from warehouse import profiles
from warehouse.errors import EvaluationError
from warehouse.lake import Lake
from warehouse.metrics.features import cellprofiler_groups, without_correlation
from warehouse.metrics.features import feature_correlation as correlate
from warehouse.names import unknown
from warehouse.profiles import IDS


@dataclass(frozen=True)
class FeatureCorrelation:
    """What features of one set have to do with those of another.

    Attributes:
        table: as `warehouse.metrics.features.feature_correlation` gives it.
        wells: that both sets have.
        notes: wells that only one has, and features that correlate with nothing, counted.
    """

    table: pl.DataFrame
    wells: int
    notes: tuple[str, ...]


def feature_correlation(
    lake: Lake,
    learned: str,
    named: str,
    *,
    recipe: str = "none",
    named_recipe: str = "none",
    where: str | None = None,
    top: int = 5,
    method: str = "pearson",
    by: str | None = None,
) -> FeatureCorrelation:
    """Correlate each feature of one set with each of another, well by well.

    Args:
        lake: an open lake.
        learned: feature set whose features are to be explained.
        named: feature set whose features have names, such as `cellprofiler`.
        recipe: of the learned.
        named_recipe: of the named.
        where: an SQL predicate over wells.
        top: named features that each learned one gets.
        method: `pearson` or `spearman`.
        by: `compartment`, `channel` or `kind`: the best of each group of CellProfiler's features.

    Raises:
        UnknownNameError: no such feature set, method or group.
        RecipeError: a recipe was never fitted, or plates wait for it.
        ProfileError: the predicate is not one.
        EvaluationError: fewer than three wells in common.

    Source:
        Bray et al. 2022, Fig. 4.
    """
    with lake.reading():
        one = profiles.read(lake, learned, recipe=recipe, level="well", where=where)
        other = profiles.read(lake, named, recipe=named_recipe, level="well", where=where)
    keys = list(IDS["well"])
    both = one.rows.select(keys).with_row_index("one")
    both = both.join(other.rows.select(keys).with_row_index("other"), on=keys, validate="1:1").sort("one")
    if len(both) < 3:
        message = (
            f"feature sets {learned!r} and {named!r} have {len(both)} wells in common ({len(one.rows)} and "
            f"{len(other.rows)} wells): at least 3 are needed"
        )
        raise EvaluationError(message)
    groups = None
    if by is not None:
        known = cellprofiler_groups(other.feature_names)
        if by not in known.columns[1:]:
            raise unknown(by, "group of named features", known.columns[1:])
        groups = known[by].to_list()
    X, Y = one.matrix[both["one"].to_numpy()], other.matrix[both["other"].to_numpy()]
    table = correlate(X, Y, one.feature_names, other.feature_names, top, method=method, groups=groups)
    notes = [
        f"{len(rows) - len(both)} wells of {name!r} are not in the other feature set"
        for name, rows in ((learned, one.rows), (named, other.rows))
        if len(rows) > len(both)
    ]
    for name, values, features in ((learned, X, one.feature_names), (named, Y, other.feature_names)):
        for reason, found in without_correlation(values, features).items():
            notes.append(
                f"{len(found)} features of {name!r} correlate with nothing ({reason}): {', '.join(found[:5])}"
            )
    return FeatureCorrelation(table, len(both), tuple(notes))
