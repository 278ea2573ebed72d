"""What a lake holds, what was rejected, and whether its checks pass."""

from dataclasses import dataclass

import polars as pl

from warehouse import feature_sets, nearest, profiles, resources
from warehouse.lake import Lake
from warehouse.sqltext import expand, relation


@dataclass(frozen=True)
class Status:
    """The state of a lake.

    Attributes:
        lake: its path.
        snapshot: its newest.
        shared: name to number of rows: plates, wells, treatments, annotations.
        feature_sets: one row each: extractor, dim, plates, images, cells, wells, rejections.
        recipes: one row each: feature set, steps, features, plates corrected and waiting, index state.
        rejections: one row per feature set and reason, with its count.
        quarantine: one row a plate that could not be taken in: why, how often it was tried, since when.
        runs: the last ones of the ledger, the newest first; one without an end goes on, or was killed.
        faults: check to rows, of the checks in `sql/checks` that found any.
    """

    lake: str
    snapshot: int
    shared: dict[str, int]
    feature_sets: pl.DataFrame
    recipes: pl.DataFrame
    rejections: pl.DataFrame
    quarantine: pl.DataFrame
    runs: pl.DataFrame
    faults: dict[str, pl.DataFrame]


def status(lake: Lake) -> Status:
    """Read the state of a lake, all of it at one snapshot; nothing is written."""
    with lake.reading():
        return _status(lake)


def _status(lake: Lake) -> Status:
    shared = {
        name: int(str(lake.value(f"SELECT count(*) FROM main.{name}")))
        for name in ("sources", "batches", "plates", "wells", "treatments", "annotations", "evaluations")
    }
    sets = lake.frame(
        "SELECT sets.feature_set, sets.extractor, sets.dim, sets.entry_level, count(loads.plate) AS plates, "
        "sum(loads.images_in)::BIGINT AS images, sum(loads.images_rejected)::BIGINT AS images_rejected, "
        "sum(loads.cells_in)::BIGINT AS cells, sum(loads.cells_rejected)::BIGINT AS cells_rejected, "
        "sum(loads.wells_in)::BIGINT AS wells, sum(loads.wells_without_data)::BIGINT AS wells_without_data, "
        "sum(loads.wells_without_layout)::BIGINT AS wells_without_layout "
        "FROM main.feature_sets AS sets LEFT JOIN main.plate_loads AS loads ON sets.feature_set = loads.feature_set "
        "GROUP BY ALL ORDER BY sets.feature_set"
    )
    rejections = lake.frame(
        "SELECT feature_set, plate, reason, count(*) AS times FROM main.rejections GROUP BY ALL ORDER BY ALL"
    )
    held = lake.frame(
        "SELECT feature_set, source, batch, plate, reason, tries, first_at FROM main.quarantine ORDER BY ALL"
    )
    runs = lake.frame(
        "SELECT command, username, started_at, seconds, outcome, counts, snapshot_before, snapshot_after "
        "FROM main.runs ORDER BY started_at DESC LIMIT 5"
    )
    return Status(
        lake.address, lake.snapshot(), shared, sets, _recipes(lake), rejections, held, runs, faults(lake)
    )


def faults(lake: Lake) -> dict[str, pl.DataFrame]:
    """Run the checks of `sql/checks`; rows returned are faults.

    Returns:
        Name of the check to its rows, for the checks that returned any; a check over a feature set's tables is
        run for each, as `<check> (<feature set>)`.
    """
    found = {}
    for path in resources.files("sql", "checks"):
        text = path.read_text(encoding="utf-8")
        if "feature_set." not in text:
            found[path.stem] = lake.frame(text)
            continue
        for name in feature_sets.names(lake):
            query = expand(text, name, dim=feature_sets.find(lake, name).dim)
            lake.connection.execute("SET VARIABLE feature_set = ?", [name])
            found[f"{path.stem} ({name})"] = lake.frame(query)
    return {name: rows for name, rows in found.items() if len(rows)}


def _recipes(lake: Lake) -> pl.DataFrame:
    rows = []
    fitted = lake.frame("SELECT feature_set, recipe, steps, dim FROM main.recipes ORDER BY ALL")
    for feature_set in feature_sets.names(lake):
        loads = "SELECT count(*) FROM main.plate_loads WHERE feature_set = ?"
        plates = int(str(lake.value(loads, [feature_set])))
        of_set = fitted.filter(pl.col("feature_set") == feature_set).select("recipe", "steps", "dim").rows()
        for recipe, steps, dim in of_set:
            wells = relation(feature_set, "wells", recipe)
            done = int(str(lake.value(f"SELECT count(DISTINCT (source, batch, plate)) FROM {wells}")))
            out = "SELECT count(*) FROM main.recipe_left_out WHERE feature_set = ? AND recipe = ?"
            left_out = int(str(lake.value(out, [feature_set, recipe])))
            waiting = plates - done - left_out
            state = _index_state(lake, feature_set, recipe)
            rows.append((feature_set, profiles.typed(recipe, steps), dim, done, waiting, left_out, state))
        state = _index_state(lake, feature_set, "none")
        if state != "none":
            rows.append((feature_set, "none", feature_sets.find(lake, feature_set).dim, plates, 0, 0, state))
    names = ("feature_set", "recipe", "features", "plates", "plates_waiting", "plates_left_out", "index")
    return pl.DataFrame(rows, schema=names, orient="row")


def _index_state(lake: Lake, feature_set: str, recipe: str) -> str:
    """Tell whether there is an index of treatments, and of which other levels: `fresh`, or `none; well stale` say."""
    states = {level: nearest.state(lake, feature_set, recipe, level) for level in profiles.LEVELS}
    others = [
        f"{level} {state}" for level, state in states.items() if level != "treatment" and state != "none"
    ]
    return "; ".join([states["treatment"], *others])
