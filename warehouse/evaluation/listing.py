"""The registry as a table."""

import polars as pl

from warehouse.metrics import ALL


def metrics_frame() -> pl.DataFrame:
    """List all metrics: name, what it tells, level, needs, parameters with their defaults, paper."""
    return pl.DataFrame(
        [
            {
                "metric": metric.name,
                "tells": (metric.function.__doc__ or "").split("\n")[0].strip(),
                "level": metric.level,
                "needs": ", ".join(metric.needs),
                "labels": metric.label_kind or ("as asked" if "labels" in metric.needs else None),
                "parameters": ", ".join(f"{name}={value}" for name, value in metric.parameters.items()),
                "better": "higher" if metric.higher_is_better else "lower",
                "paper": metric.paper,
            }
            for metric in ALL
        ],
        schema_overrides={"labels": pl.String},
    )
