"""What the list of metrics holds, one frozen record each."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from warehouse.metrics.passes import Pairwise
from warehouse.metrics.score import Score


@dataclass(frozen=True)
class Metric:
    """One metric, called as ``function(X, ids=ids, **{need: values}, **parameters)``.

    Attributes:
        name: what is typed.
        function: over arrays; its keyword-only arguments with a default, `ids` aside, are the metric's parameters.
        needs: what it is given beside X, one value a row each; `warehouse.evaluation.tables` says which there are.
        higher_is_better: which way is good.
        range: least and largest value.
        paper: whose it is.
        level: of `warehouse.profiles.LEVELS`, that it reads where none is asked for.
        plan: of a metric of pairs: the same arguments with a `Vectors` in the place of X and ids, to a `Pairwise`
            that shares its pass over the similarities with others. None: the metric has no pairs.
        label_kind: of the labels, where the metric itself says which (`treatment`, for replicates); None: those that
            are asked for.
        baselines: that stand beside its value; of `warehouse.evaluation.baselines`.
        summary: of a score with many groups, the table that its paper prints; None: the value says it.
    """

    name: str
    function: Callable[..., Score]
    needs: tuple[str, ...]
    higher_is_better: bool
    range: tuple[float, float]
    paper: str
    level: str
    plan: Callable[..., Pairwise] | None = None
    label_kind: str | None = None
    baselines: tuple[str, ...] = ("shuffled", "random", "cell_count")
    summary: Callable[[Score], pl.DataFrame] | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """Name to default of all that can be written in parentheses: ``knn(k=11)``."""
        found = inspect.signature(self.function).parameters.values()
        return {
            one.name: one.default
            for one in found
            if one.kind is inspect.Parameter.KEYWORD_ONLY and one.name not in ("ids", *self.needs)
        }
