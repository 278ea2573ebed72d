"""Quality of fields, wells and plates as data: the limits that decide what is flagged, and what is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import polars as pl

from warehouse import feature_sets
from warehouse.errors import QualityError
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.runs import Run
from warehouse.sqltext import relation

BOUNDS = ("lower", "upper")
#: Measures that are a share of something, 0 to 1.
_SHARES = ("saturation", "foreground", "flagged_fields", "flagged_wells")
#: Measures of which only the upper limit means anything.
_UPPER_ONLY = ("flagged_fields", "flagged_wells")


@dataclass(frozen=True)
class QualityReport:
    """What is flagged in a feature set.

    Attributes:
        plates: one row a plate: fields and wells, how many of them are flagged, wells without a profile, and the
            flags of the plate, as `wells without data: 3`.
        flags: one row a flag: how many fields and wells have it.
        worst_wells: flagged wells, those with the largest share of flagged fields first, then those with most flags.
    """

    plates: pl.DataFrame
    flags: pl.DataFrame
    worst_wells: pl.DataFrame


def limits(lake: Lake) -> pl.DataFrame:
    """Read the limits: measure, lower, upper; NULL is no limit."""
    return lake.frame("SELECT measure, lower, upper FROM main.quality_limits ORDER BY measure")


def parse_limit(text: str) -> tuple[str, str, float | None]:
    """Read `focus.lower=-2.5`; `none` lifts a limit.

    Raises:
        QualityError: the text has no such shape, or its value is no finite number.
        UnknownNameError: a bound that is neither lower nor upper.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    measure, dot, bound = name.rpartition(".")
    if not (equals and dot and measure and value):
        message = f"{text!r} is no limit: write MEASURE.lower=NUMBER or MEASURE.upper=NUMBER, as in focus.lower=-2.5"
        raise QualityError(message)
    if bound not in BOUNDS:
        raise unknown(bound, f"bound of {measure!r}", BOUNDS)
    if value.casefold() in ("none", "null"):
        return measure, bound, None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        message = f"{name}={value!r} is no number: give one, or `none` for no limit"
        raise QualityError(message)
    return measure, bound, number


def set_limits(lake: Lake, changes: Sequence[tuple[str, str, float | None]]) -> bool:
    """Change limits, all of them or none; views follow at once, and nothing of what was measured changes.

    Args:
        lake: open for writing.
        changes: measure (one that `limits` lists), `lower` or `upper`, and the value, None for no limit.

    Returns:
        False where the limits were so already.

    Raises:
        UnknownNameError: a measure or bound that there is not.
        QualityError: a value cannot be its measure's, or a lower limit would lie above the upper.
    """
    run = Run("quality", {f"{measure}.{bound}": value for measure, bound, value in changes})

    def work(connection: duckdb.DuckDBPyConnection) -> bool:
        present = {name: {"lower": lower, "upper": upper} for name, lower, upper in limits(lake).iter_rows()}
        wanted = {name: dict(bounds) for name, bounds in present.items()}
        for measure, bound, value in changes:
            if measure not in present:
                raise unknown(measure, "measure", present)
            _check_value(measure, bound, value)
            wanted[measure][bound] = value
        changed = {name: bounds for name, bounds in wanted.items() if bounds != present[name]}
        for name, bounds in changed.items():
            _check_order(name, bounds["lower"], bounds["upper"])
            run.record(lake)
            connection.execute(
                "UPDATE main.quality_limits SET lower = ?, upper = ? WHERE measure = ?",
                [bounds["lower"], bounds["upper"], name],
            )
        if not changed:
            lake.change_nothing()
        return bool(changed)

    is_changed = lake.transaction(work)
    if is_changed:
        run.finish(lake, {})
    return is_changed


def _check_order(measure: str, lower: float | None, upper: float | None) -> None:
    if lower is not None and upper is not None and lower > upper:
        message = (
            f"{measure}: the lower limit {lower:g} would lie above the upper {upper:g}, so that nothing passes: "
            f"give both, or lift one with --set {measure}.lower=none"
        )
        raise QualityError(message)


def _check_value(measure: str, bound: str, value: float | None) -> None:
    """Refuse what would be set without effect, or was meant in another unit."""
    if bound not in BOUNDS:
        raise unknown(bound, f"bound of {measure!r}", BOUNDS)
    if measure in _UPPER_ONLY and bound != "upper":
        message = f"{measure} has no {bound} limit: only its upper one is used; set {measure}.upper"
        raise QualityError(message)
    if value is None:
        return
    if not math.isfinite(value) or (measure in _SHARES and not 0 <= value <= 1):
        message = f"{measure}.{bound}={value:g}: " + (
            "give a share from 0 to 1 (0.05 is 5 %)" if measure in _SHARES else "give a finite number"
        )
        raise QualityError(message)


def report(lake: Lake, feature_set: str, worst: int = 10) -> QualityReport:
    """Count what is flagged in a feature set, at one snapshot; nothing is written.

    Args:
        lake: any open lake.
        feature_set: its name.
        worst: the most wells to list.

    Raises:
        UnknownNameError: no such feature set.
    """
    with lake.reading():
        feature_sets.find(lake, feature_set)
        # The views work these out from the limits: once is enough. `reading` ends with a rollback, which drops them.
        lake.connection.execute(
            "CREATE TEMP TABLE some_fields AS SELECT source, batch, plate, flags, is_flagged "
            f"FROM {relation(feature_set, 'field_flags')}"
        )
        lake.connection.execute(
            f"CREATE TEMP TABLE some_wells AS SELECT * FROM {relation(feature_set, 'well_flags')}"
        )
        plates = lake.frame(
            "WITH texts AS (SELECT source, batch, plate, list(flag || coalesce(': ' || affected, '') ORDER BY flag) "
            f"AS flags FROM {relation(feature_set, 'plate_flags')} GROUP BY ALL), "
            "of_fields AS (SELECT source, batch, plate, count(*) AS fields, "
            "count(*) FILTER (WHERE is_flagged) AS fields_flagged FROM some_fields GROUP BY ALL), "
            "of_wells AS (SELECT source, batch, plate, count(*) FILTER (WHERE has_profile) AS wells, "
            "count(*) FILTER (WHERE has_profile AND is_flagged) AS wells_flagged, "
            "count(*) FILTER (WHERE NOT has_profile) AS wells_without_profile FROM some_wells GROUP BY ALL) "
            "SELECT source, batch, plate, coalesce(fields, 0) AS fields, "
            "coalesce(fields_flagged, 0) AS fields_flagged, wells, wells_flagged, wells_without_profile, "
            "coalesce(flags, []) AS flags FROM of_wells "
            "LEFT JOIN of_fields USING (source, batch, plate) LEFT JOIN texts USING (source, batch, plate) ORDER BY ALL"
        )
        flags = lake.frame(
            "WITH each AS (SELECT 'field' AS level, unnest(flags) AS flag FROM some_fields "
            "UNION ALL SELECT 'well' AS level, unnest(flags) AS flag FROM some_wells) "
            "SELECT flag, count(*) FILTER (WHERE level = 'field') AS fields, "
            "count(*) FILTER (WHERE level = 'well') AS wells FROM each GROUP BY flag ORDER BY flag"
        )
        worst_wells = lake.frame(
            "SELECT source, batch, plate, well, field_count, flagged_field_count, cell_count, flags "
            "FROM some_wells WHERE is_flagged AND has_profile "
            "ORDER BY coalesce(flagged_field_count / nullif(field_count, 0), 0) DESC, len(flags) DESC, "
            "cell_count, source, batch, plate, well LIMIT ?",
            [worst],
        )
    return QualityReport(plates, flags, worst_wells)
