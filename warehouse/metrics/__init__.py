"""Metrics: plain functions over arrays, and the one list of them."""

from collections.abc import Iterable

from warehouse.errors import EvaluationError
from warehouse.metrics import (
    batch_effects,
    bioactivity,
    classification,
    clustering,
    nearest,
    novelty,
    precision,
    replicates,
    retrieval,
    strength,
)
from warehouse.metrics.registry import Metric
from warehouse.metrics.score import Score
from warehouse.names import unknown

__all__ = ["ALL", "Metric", "Score", "get"]

#: In the order in which they are listed.
ALL: tuple[Metric, ...] = (
    *nearest.METRICS,
    *precision.METRICS,
    *retrieval.METRICS,
    *replicates.METRICS,
    *clustering.METRICS,
    *classification.METRICS,
    *strength.METRICS,
    *novelty.METRICS,
    *bioactivity.METRICS,
    *batch_effects.METRICS,
)


def get(name: str, metrics: Iterable[Metric] = ALL) -> Metric:
    """Return the metric of this name.

    Raises:
        UnknownNameError: no metric has it; the nearest one and the list are offered.
        EvaluationError: two metrics of the list have one name.
    """
    by_name: dict[str, Metric] = {}
    for metric in metrics:
        if metric.name in by_name:
            message = f"two metrics are named {metric.name!r}: rename one in warehouse/metrics"
            raise EvaluationError(message)
        by_name[metric.name] = metric
    if name not in by_name:
        raise unknown(name, "metric", sorted(by_name))
    return by_name[name]
