"""The table of methods: one row a feature set and recipe, one column a metric (Bray et al. 2022, Table 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

from warehouse.errors import EvaluationError, WellhouseError
from warehouse.evaluation.asked import AskedMetric, asked_metric
from warehouse.evaluation.inputs import Inputs
from warehouse.evaluation.records import Setting, conditions, fingerprint, label_kind, same_conditions
from warehouse.evaluation.tables import KINDS
from warehouse.lake import Lake
from warehouse.names import unknown

#: The columns of Bray's Table 1.
METRICS = ("nsc", "nsb", "ari", "ami", "silhouette_labels", "silhouette_clusters")


@dataclass(frozen=True)
class Board:
    """A leaderboard.

    Attributes:
        table: feature_set, recipe, one column a metric; NULL: never scored under these conditions.
        best: (row number, column) of the best values, ties all, among those that are not stale; none where values are
            of different numbers of queries.
        stale: (row number, column) of values whose profiles, labels or code have changed since.
        below: (row number, column) of values that are not above their baselines.
        notes: how to bring stale and missing values up to date, and which metrics have no best.
    """

    table: pl.DataFrame
    best: frozenset[tuple[int, str]]
    stale: frozenset[tuple[int, str]]
    below: frozenset[tuple[int, str]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Cell:
    value: float
    n: int
    is_above: bool | None
    fingerprint: str | None


def leaderboard(
    lake: Lake,
    *,
    metrics: Sequence[str] = METRICS,
    labels: str = "moa",
    level: str | None = None,
    where: str | None = None,
    batch_key: str = "batch",
    inputs: Inputs | None = None,
    seed: int = 0,
) -> Board:
    """Read the newest scores of all methods that were computed under one set of conditions.

    Args:
        lake: an open lake.
        metrics: as they are typed for an evaluation.
        labels: kind of label that they go by.
        level: that they read; None: each its own.
        where: the predicate that they were computed under.
        batch_key: what counted as the same batch.
        inputs: files that they were given.
        seed: of metrics that draw.

    Raises:
        UnknownNameError: a name that is in no list.
        EvaluationError: no method was scored under these conditions, or the lake has scores of none.
    """
    if labels not in KINDS:
        raise unknown(labels, "kind of label", KINDS)
    asked = [asked_metric(text, seed) for text in metrics]
    setting = Setting(labels, where, batch_key, seed, (inputs or Inputs()).marks())
    current: dict[tuple[str, str], str | None] = {}
    cells: dict[tuple[str, str], dict[str, _Cell]] = {}
    for one in asked:
        wanted = conditions(one, setting)
        for key, cell in _newest(lake, one, labels, level, wanted):
            cells.setdefault(key, {}).setdefault(one.text, cell)
            if key not in current:
                current[key] = _current(lake, *key)
    if not cells:
        message = (
            f"no feature set was scored by {', '.join(one.text for one in asked)} under these conditions: run "
            f"`wellhouse evaluate FEATURE_SET --metrics {','.join(one.text for one in asked)} --labels {labels}`"
        )
        raise EvaluationError(message)
    keys = sorted(cells)
    of = {(row, text): cell for row, key in enumerate(keys) for text, cell in cells[key].items()}
    columns = {
        one.text: [of[row, one.text].value if (row, one.text) in of else None for row in range(len(keys))]
        for one in asked
    }
    table = pl.DataFrame(
        {"feature_set": [key[0] for key in keys], "recipe": [key[1] for key in keys], **columns},
        schema_overrides=dict.fromkeys(columns, pl.Float64),
    )
    stale = {place for place, cell in of.items() if cell.fingerprint != current[keys[place[0]]]}
    below = {place for place, cell in of.items() if cell.is_above is False}
    best: set[tuple[int, str]] = set()
    unlike = []
    for one in asked:
        rows = {
            row: cell for (row, text), cell in of.items() if text == one.text and (row, text) not in stale
        }
        counts = sorted({cell.n for cell in rows.values()})
        if len(counts) > 1:
            unlike.append(
                f"{one.text} is over {counts[0]} to {counts[-1]} queries: not the same, so none is best"
            )
        elif rows:
            values = [cell.value for cell in rows.values()]
            top = max(values) if one.metric.higher_is_better else min(values)
            best |= {(row, one.text) for row, cell in rows.items() if cell.value == top}
    notes = (*_notes(table, stale, below), *unlike)
    return Board(table, frozenset(best), frozenset(stale), frozenset(below), notes)


def _newest(
    lake: Lake, asked: AskedMetric, labels: str, level: str | None, wanted: dict[str, object]
) -> list[tuple[tuple[str, str], _Cell]]:
    """Scores of a metric under these conditions, by feature set and recipe, the newest first."""
    found = lake.connection.execute(
        "SELECT feature_set, recipe, value, n, is_above, fingerprint, label_kind, parameters FROM main.evaluations "
        "WHERE metric = ? AND level = ? AND value IS NOT NULL ORDER BY evaluated_at DESC, evaluation",
        [asked.metric.name, level or asked.metric.level],
    ).fetchall()
    kind = label_kind(asked, labels)
    return [
        ((row[0], row[1]), _Cell(*row[2:6]))
        for row in found
        if row[6] == kind and same_conditions(row[7], wanted)
    ]


def _current(lake: Lake, feature_set: str, recipe: str) -> str | None:
    """What a score of today would rest on; None where the feature set, or its recipe, is gone."""
    try:
        return fingerprint(lake, feature_set, recipe)
    except (WellhouseError, duckdb.CatalogException):
        return None


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
