"""What is asked for: metrics with their parameters, feature sets with their recipes, as they are typed."""

import re
from dataclasses import dataclass

from warehouse.errors import EvaluationError
from warehouse.metrics import Metric, get
from warehouse.names import split_outside, unknown

_CALL = re.compile(r"\s*([^()\s]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class AskedMetric:
    """A metric with all its parameters.

    Attributes:
        metric: of the registry.
        parameters: each of the metric's, name to value.
    """

    metric: Metric
    parameters: dict[str, object]

    @property
    def text(self) -> str:
        """How it is typed: parameters at their default are left out."""
        given = [
            f"{name}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in self.parameters.items()
            if value != self.metric.parameters[name]
        ]
        return self.metric.name + (f"({','.join(given)})" if given else "")


def asked_metric(text: str, seed: int | None = None) -> AskedMetric:
    """Read a metric such as ``nsc`` or ``knn(k=11,exclude=nsb)``.

    Args:
        text: what is typed.
        seed: of a metric that draws, where the text gives it none; None: its default.

    Raises:
        UnknownNameError: the metric, or a parameter, is in no list; the nearest one is offered.
        EvaluationError: the text has no such shape, or a value is not of the parameter's type.
    """
    match = _CALL.fullmatch(text)
    if match is None:
        message = f"metric {text!r} is not written as a name, or as a name with parameters such as knn(k=11)"
        raise EvaluationError(message)
    metric = get(match[1])
    parameters = metric.parameters
    if seed is not None and "seed" in parameters:
        parameters["seed"] = seed
    given: set[str] = set()
    for pair in (match[2] or "").split(","):
        if not pair.strip():
            continue
        name, equals, value = (part.strip() for part in pair.partition("="))
        if name in given:
            message = f"metric {text!r}: {name} is there twice: give it one value"
            raise EvaluationError(message)
        given.add(name)
        if name not in parameters:
            raise unknown(name, f"parameter of metric {metric.name!r}", metric.parameters)
        if not equals or not value:
            message = (
                f"metric {text!r}: parameter {name!r} has no value: write {name}={metric.parameters[name]}"
            )
            raise EvaluationError(message)
        parameters[name] = _typed(metric, name, value)
    check_seed(parameters.get("seed", 0))
    return AskedMetric(metric, parameters)


def check_seed(seed: object) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        EvaluationError: it is negative.
    """
    if isinstance(seed, int) and seed < 0:
        message = f"seed {seed} is negative: give a whole number from 0 on"
        raise EvaluationError(message)


def _typed(metric: Metric, name: str, value: str) -> object:
    default = metric.parameters[name]
    try:
        if isinstance(default, bool):
            return _BOOLEANS[value.lower()]
        if isinstance(default, int | float):
            return type(default)(value)
    except (ValueError, KeyError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(default)]
        message = (
            f"metric {metric.name!r}: {name}={value} is not {kind}: write, as an example, {name}={default}"
        )
        raise EvaluationError(message) from None
    return value


def split(text: str) -> list[str]:
    """Split a list of metrics at the commas outside of parentheses."""
    return [part.strip() for part in split_outside(text, ",") if part.strip()]


def asked_set(text: str, recipe: str) -> tuple[str, str]:
    """Read ``FEATURE_SET`` or ``FEATURE_SET:RECIPE`` into feature set and recipe; `recipe` where none is written."""
    name, colon, own = text.partition(":")
    return (name, own) if colon and own else (name, recipe)
