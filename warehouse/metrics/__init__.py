"""Metrics: plain functions over arrays, and the one list of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from warehouse.errors import EvaluationError
from warehouse.metrics.nearest import nsb, nsc, one_nn_accuracy
from warehouse.metrics.precision import average_precision, map_labels, map_vs_controls, mean_average_precision
from warehouse.metrics.score import Score
from warehouse.names import unknown

__all__ = [
    "ALL",
    "Metric",
    "Score",
    "average_precision",
    "get",
    "map_labels",
    "map_vs_controls",
    "mean_average_precision",
    "nsb",
    "nsc",
    "one_nn_accuracy",
]


@dataclass(frozen=True)
class Metric:
    """One metric, called as ``function(X, ids=ids, **{need: values})``: one value per row for each need."""

    name: str
    function: Callable[..., Score]
    needs: tuple[str, ...]
    higher_is_better: bool
    range: tuple[float, float]
    paper: str
    level: str
    """Which rows it reads: ``treatment`` or ``well``."""


ALL: tuple[Metric, ...] = (
    Metric(
        name="nsc",
        function=nsc,
        needs=("labels", "compounds"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Ljosa et al. 2013; Bray et al. 2022 (NSC)",
        level="treatment",
    ),
    Metric(
        name="nsb",
        function=nsb,
        needs=("labels", "compounds", "batches"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Ando et al. 2017; Bray et al. 2022 (NSB); NSCB in Xun et al. 2023",
        level="treatment",
    ),
    Metric(
        name="map",
        function=map_labels,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kalinin et al. 2025 (mAP); Moshkov et al. 2024 for matches by shared label",
        level="treatment",
    ),
    Metric(
        name="map_vs_controls",
        function=map_vs_controls,
        needs=("treatments", "plates", "controls"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kalinin et al. 2025 (phenotypic activity)",
        level="well",
    ),
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
        raise unknown(name, "metric", by_name)
    return by_name[name]
