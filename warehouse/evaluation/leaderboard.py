"""The table of methods: one row a feature set and recipe, one column a metric (Bray et al. 2022, Table 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

from warehouse.errors import EvaluationError, WellhouseError
from warehouse.evaluation.asked import AskedMetric, asked_metric
from warehouse.evaluation.records import conditions, fingerprint, label_kind, same_conditions
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.profiles import LABEL_KINDS

#: The columns of Bray's Table 1.
METRICS = ("nsc", "nsb", "ari", "ami", "silhouette_labels", "silhouette_clusters")


@dataclass(frozen=True)
class Board:
    """A leaderboard.

    Attributes:
        table: feature_set, recipe, one column a metric; NULL: never scored under these conditions.
        best: (row number, column) of the best values, ties all, among those that are not stale.
        stale: (row number, column) of values whose profiles, labels or code have changed since.
        below: (row number, column) of values that are not above their baselines.
        notes: how to bring stale and missing values up to date.
    """

    table: pl.DataFrame
    best: frozenset[tuple[int, str]]
    stale: frozenset[tuple[int, str]]
    below: frozenset[tuple[int, str]]
    notes: tuple[str, ...]


def leaderboard(
    lake: Lake,
    *,
    metrics: Sequence[str] = METRICS,
    labels: str = "moa",
    level: str | None = None,
    where: str | None = None,
    batch_key: str = "batch",
) -> Board:
    """Read the newest scores of all methods that were computed under one set of conditions.

    Args:
        lake: an open lake.
        metrics: as they are typed for an evaluation.
        labels: kind of label that they go by.
        level: that they read; None: each its own.
        where: the predicate that they were computed under.
        batch_key: what counted as the same batch.

    Raises:
        UnknownNameError: a name that is in no list.
        EvaluationError: no method was scored under these conditions, or the lake has scores of none.
    """
    if labels not in (*LABEL_KINDS, "treatment", "compound"):
        raise unknown(labels, "kind of label", (*LABEL_KINDS, "treatment", "compound"))
    asked = [asked_metric(text) for text in metrics]
    current: dict[tuple[str, str], str | None] = {}
    cells: dict[tuple[str, str], dict[str, tuple[float | None, bool | None, str]]] = {}
    for one in asked:
        for feature_set, recipe, value, is_above, mark in _newest(lake, one, labels, level, where, batch_key):
            key = (feature_set, recipe)
            cells.setdefault(key, {}).setdefault(one.text, (value, is_above, mark))
            if key not in current:
                current[key] = _current(lake, *key)
    if not cells:
        message = (
            f"no feature set was scored by {', '.join(one.text for one in asked)} under these conditions: run "
            f"`wellhouse evaluate FEATURE_SET --metrics {','.join(one.text for one in asked)} --labels {labels}`"
        )
        raise EvaluationError(message)
    keys = sorted(cells)
    columns = {one.text: [cells[key].get(one.text, (None, None, ""))[0] for key in keys] for one in asked}
    table = pl.DataFrame(
        {"feature_set": [key[0] for key in keys], "recipe": [key[1] for key in keys], **columns},
        schema_overrides=dict.fromkeys(columns, pl.Float64),
    )
    stale, below = set(), set()
    for row, key in enumerate(keys):
        for text, (_, is_above, mark) in cells[key].items():
            if mark != current[key]:
                stale.add((row, text))
            if is_above is False:
                below.add((row, text))
    best = {place for one in asked for place in _best(columns[one.text], one, stale)}
    return Board(table, frozenset(best), frozenset(stale), frozenset(below), _notes(table, stale, below))


def _newest(
    lake: Lake, asked: AskedMetric, labels: str, level: str | None, where: str | None, batch_key: str
) -> list[tuple[str, str, float | None, bool | None, str]]:
    """Scores of a metric under these conditions, the newest of each method first."""
    found = lake.connection.execute(
        "SELECT feature_set, recipe, value, is_above, fingerprint, label_kind, parameters FROM main.evaluations "
        "WHERE metric = ? AND level = ? ORDER BY evaluated_at DESC, evaluation",
        [asked.metric.name, level or asked.metric.level],
    ).fetchall()
    wanted = conditions(asked, where, batch_key)
    kind = label_kind(asked, labels)
    return [
        (row[0], row[1], row[2], row[3], row[4])
        for row in found
        if row[5] == kind and same_conditions(row[6], wanted)
    ]


def _current(lake: Lake, feature_set: str, recipe: str) -> str | None:
    """What a score of today would rest on; None where the feature set, or its recipe, is gone."""
    try:
        return fingerprint(lake, feature_set, recipe)
    except (WellhouseError, duckdb.CatalogException):
        return None


def _best(
    values: list[float | None], asked: AskedMetric, stale: set[tuple[int, str]]
) -> list[tuple[int, str]]:
    known = {
        row: value for row, value in enumerate(values) if value is not None and (row, asked.text) not in stale
    }
    if not known:
        return []
    top = max(known.values()) if asked.metric.higher_is_better else min(known.values())
    return [(row, asked.text) for row, value in known.items() if value == top]


def _notes(table: pl.DataFrame, stale: set[tuple[int, str]], below: set[tuple[int, str]]) -> tuple[str, ...]:
    notes = []
    if stale:
        rows = sorted({row for row, _ in stale})
        names = ", ".join(f"{table['feature_set'][row]}:{table['recipe'][row]}" for row in rows)
        notes.append(f"profiles, labels or code changed since {names} were scored (†): evaluate them again")
    if below:
        notes.append("scores that are not above chance are marked (‡)")
    if any(table[name].null_count() for name in table.columns[2:]):
        notes.append("an empty place: that method was not scored by that metric under these conditions")
    return tuple(notes)
