"""The way back: plates as they were at a snapshot, brought there by a new one; what came between stays reachable."""

from dataclasses import dataclass

import duckdb
import polars as pl

from warehouse import feature_sets, layouts, resources
from warehouse.errors import LakeError
from warehouse.lake import Lake, now
from warehouse.names import unknown
from warehouse.runs import Run
from warehouse.sqltext import expand, relation, statements
from warehouse.upkeep import differences
from warehouse.upkeep.differences import Load
from warehouse.upkeep.moments import Snapshot, find

_KEYS = ("source", "batch", "plate")
#: Rows handed from the old state to the new one at a time: some megabytes of embeddings.
_ROWS = 20_000


@dataclass(frozen=True)
class Restored:
    """What became of one plate of one feature set.

    Attributes:
        feature_set: its name; empty where only the plate's layout, images or quality changed.
        source: of the plate.
        batch: of the plate.
        plate: its name.
        outcome: `restored`, or `taken out` where the lake did not hold it at that snapshot.
    """

    feature_set: str
    source: str
    batch: str
    plate: str
    outcome: str


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did, or with `dry_run` would do.

    Attributes:
        to: the snapshot gone back to.
        snapshot: the newest before; everything as it was then can still be asked, and gone forward to.
        plates: that differ, one row a feature set.
        unchanged: plates, counted once a feature set, that are as they were.
        tables: tables without plates (annotations, limits, recipes) that went back as wholes.
    """

    to: int
    snapshot: int
    plates: tuple[Restored, ...]
    unchanged: int
    tables: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """What differs between now and then.

    Attributes:
        loads: plates of feature sets whose profiles differ.
        rows: of each shared table, the plates whose rows differ (feature set empty where the table has none).
        tables: without plates, that differ.
        recipes: of feature sets, now and then, where these go back too.
        unchanged: loads that are as they were.
    """

    loads: set[Load]
    rows: dict[str, set[Load]]
    tables: list[str]
    recipes: set[tuple[str, str]]
    unchanged: int


def rollback(
    lake: Lake,
    moment: str | int,
    *,
    plate: str | None = None,
    feature_set: str | None = None,
    dry_run: bool = False,
) -> RolledBack:
    """Bring plates back to what they were, in one transaction that makes one new snapshot.

    Only plates that differ are written. Where the whole lake goes back, so do annotations, limits of quality and
    recipes; a recipe fitted since is dropped. Where one plate or feature set does, the corrected wells of what
    changed are forgotten, and `correct` makes them anew. Runs, the history of plates, evaluations and nights stay.

    Args:
        lake: open for writing.
        moment: a snapshot's number, or what `moments.parse` reads.
        plate: only this one (of every source and batch that has one of the name).
        feature_set: only this one; the shared layout, images and annotations stay as they are.
        dry_run: say what differs, and write nothing.

    Raises:
        LakeError: there is no such snapshot, or it is of another schema.
        UnknownNameError: no such plate or feature set, now or then.
    """
    target = find(lake, moment)
    run = Run("rollback", {"to": target.number, "plate": plate, "feature_set": feature_set})
    with Lake.open(lake.address, read_only=True, as_of=target.number) as old:
        _refuse_other_schema(lake, old, target)
        _check_names(lake, old, plate, feature_set)

        def work(_: duckdb.DuckDBPyConnection) -> RolledBack:
            before = lake.snapshot()
            plan = _plan(lake, old, plate, feature_set)
            held, former = differences.loads(lake), differences.loads(old)
            restored = _restored(plan, held, former)
            report = RolledBack(target.number, before, restored, plan.unchanged, tuple(plan.tables))
            if dry_run or not (restored or plan.tables):
                lake.change_nothing()
                return report
            run.record(lake)
            _apply(lake, old, plan, feature_set, plate is None and feature_set is None)
            for one in restored:
                _remember(lake, run, one, held, former, before)
            lake.forget()
            return report

        report = lake.transaction(work)
    if not dry_run:
        outcomes = [one.outcome for one in report.plates]
        run.finish(lake, {f"plates_{name.replace(' ', '_')}": outcomes.count(name) for name in set(outcomes)})
    return report


def as_frame(report: RolledBack) -> pl.DataFrame:
    """Lay out what became of each plate: feature_set, source, batch, plate, outcome."""
    columns = ("feature_set", *_KEYS, "outcome")
    rows = [tuple(getattr(one, name) for name in columns) for one in report.plates]
    return pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")


def _refuse_other_schema(lake: Lake, old: Lake, target: Snapshot) -> None:
    query = "SELECT max(version) FROM main.schema_version"
    then, present = old.value(query), lake.value(query)
    if then != present:
        message = (
            f"snapshot {target} has schema {then}, the lake has {present} now: rollback does not go across a change of "
            f"the schema; read that snapshot with --as-of {target.number} and bring its plates in again"
        )
        raise LakeError(message)


def _check_names(lake: Lake, old: Lake, plate: str | None, feature_set: str | None) -> None:
    names = {name for one in (lake, old) for name in feature_sets.names(one)}
    if feature_set is not None and feature_set not in names:
        raise unknown(feature_set, "feature set", names)
    query = "SELECT DISTINCT plate FROM main.plates"
    plates = {name for one in (lake, old) for (name,) in one.connection.execute(query).fetchall()}
    if plate is not None and plate not in plates:
        raise unknown(plate, "plate", plates)


def _plan(lake: Lake, old: Lake, plate: str | None, feature_set: str | None) -> _Plan:
    """Compare now and then: what was loaded, the shared rows of each plate, and tables without plates."""
    held, former = differences.loads(lake), differences.loads(old)
    chosen = {
        load
        for load in held.keys() | former.keys()
        if plate in (None, load[3]) and feature_set in (None, load[0])
    }
    loads = {load for load in chosen if held.get(load) != former.get(load)}
    # What no feature set holds any more, its layout and images leave with it.
    left = (held.keys() - loads) | (loads & former.keys())
    bare = {load[1:] for load in loads} - {load[1:] for load in left}
    rows: dict[str, set[Load]] = {}
    tables: list[str] = []
    is_whole = plate is None and feature_set is None
    for table, columns in differences.tables(lake).items():
        if not set(_KEYS) <= columns:
            if is_whole and differences.digest(lake, table) != differences.digest(old, table):
                tables.append(table)
            continue
        is_shared = "feature_set" not in columns
        found = {
            row
            for row in differences.differing(lake, old, relation("main", table), is_shared)
            if plate in (None, row[3]) and (feature_set in (None, row[0]) or (is_shared and row[1:] in bare))
        }
        if found:
            rows[table] = found
    recipes = differences.recipes(lake) | differences.recipes(old) if is_whole else set()
    if any(differences.recipe_differs(lake, old, recipe) for recipe in recipes):
        tables.append("recipes")
    return _Plan(loads, rows, tables, recipes, len(chosen - loads))


def _restored(
    plan: _Plan, held: dict[Load, tuple[object, ...]], former: dict[Load, tuple[object, ...]]
) -> tuple[Restored, ...]:
    """Say what becomes of each plate: of every feature set that has it, where only its shared rows differ."""
    changed = set(plan.loads)
    by_plate: dict[tuple[str, ...], set[Load]] = {}
    for load in held.keys() | former.keys():
        by_plate.setdefault(load[1:], set()).add(load)
    for row in set().union(*plan.rows.values()):
        changed |= {row} if row[0] else by_plate.get(row[1:], {row})
    outcomes = {load: "restored" if load in former or load not in held else "taken out" for load in changed}
    return tuple(Restored(*load, outcome) for load, outcome in sorted(outcomes.items()))


def _apply(lake: Lake, old: Lake, plan: _Plan, feature_set: str | None, is_whole: bool) -> None:
    connection = lake.connection
    for table, rows in plan.rows.items():
        columns = ("feature_set", *_KEYS) if any(row[0] for row in rows) else _KEYS
        _put_back(lake, old, relation("main", table), columns, {row[-len(columns) :] for row in rows})
    made = set(feature_sets.names(old))
    for name in sorted({load[0] for load in plan.loads}):
        keys: set[tuple[str, ...]] = {load[1:] for load in plan.loads if load[0] == name}
        for table in ("cells", "fields", "wells"):
            _put_back(lake, old, relation(name, table), _KEYS, keys, name in made)
    if not is_whole:
        changed = {load[1:] for load in plan.loads}
        changed |= {row[1:] for row in plan.rows.get("wells", set())}  # other controls
        for key in sorted(changed):
            layouts.forget_corrections(lake, key, feature_set)
    for table in plan.tables:
        if table != "recipes":
            connection.execute(f"DELETE FROM {relation('main', table)}")
            _copy(lake, old, relation("main", table), f"FROM {relation('main', table)}", [])
    for recipe in sorted(plan.recipes):
        _put_recipe_back(lake, old, recipe)
    if feature_set is not None:
        _recount(connection, feature_set)


def _put_back(
    lake: Lake, old: Lake, name: str, keys: tuple[str, ...], rows: set[tuple[str, ...]], is_there: bool = True
) -> None:
    """Replace the rows of these plates in one table by those of then."""
    _delete(lake.connection, name, keys, rows)
    if not is_there:
        return
    old.connection.register("chosen", pl.DataFrame(sorted(rows), schema=keys, orient="row"))
    names = ", ".join(keys)
    _copy(lake, old, name, f"FROM {name} WHERE ({names}) IN (SELECT ({names}) FROM chosen)", [])
    old.connection.unregister("chosen")


def _delete(
    connection: duckdb.DuckDBPyConnection, name: str, keys: tuple[str, ...], rows: set[tuple[str, ...]]
) -> None:
    connection.register("chosen", pl.DataFrame(sorted(rows), schema=keys, orient="row"))
    names = ", ".join(keys)
    connection.execute(f"DELETE FROM {name} WHERE ({names}) IN (SELECT ({names}) FROM chosen)")
    connection.unregister("chosen")


def _copy(lake: Lake, old: Lake, name: str, rows: str, parameters: list[object]) -> None:
    """Insert rows of then; they come in parts, so a plate of millions of cells needs no memory of its size."""
    reader = old.connection.execute(f"SELECT * {rows}", parameters).to_arrow_reader(_ROWS)
    lake.connection.register("incoming", reader)
    lake.connection.execute(f"INSERT INTO {name} BY NAME SELECT * FROM incoming")
    lake.connection.unregister("incoming")


def _put_recipe_back(lake: Lake, old: Lake, recipe: tuple[str, str]) -> None:
    """Bring a recipe's fit and corrected wells back; drop it where it was fitted since."""
    feature_set, name = recipe
    connection, table = lake.connection, relation(feature_set, "wells", name)
    is_there, was_there = recipe in differences.recipes(lake), recipe in differences.recipes(old)
    differs = differences.recipe_differs(lake, old, recipe)
    if not differs:
        return
    for ledger in sorted(differences.RECIPES):
        of = f"FROM {relation('main', ledger)} WHERE feature_set = ? AND recipe = ?"
        connection.execute(f"DELETE {of}", list(recipe))
        _copy(lake, old, relation("main", ledger), of, list(recipe))
    if is_there and not was_there:
        views = connection.execute(
            "SELECT view_name FROM duckdb_views() WHERE database_name = 'lake' AND schema_name = ? "
            "AND view_name LIKE '%\\_\\_' || ? ESCAPE '\\'",
            [feature_set, name],
        ).fetchall()
        for (view,) in views:
            connection.execute(f"DROP VIEW {relation(feature_set, view)}")
        connection.execute(f"DROP TABLE {table}")
        return
    if not is_there:
        wells = next(
            path for path in resources.files("schema", "feature_set") if path.stem.endswith("_wells")
        )
        for statement in statements(wells.read_text(encoding="utf-8")):
            connection.execute(expand(statement, feature_set, name))
        query = "SELECT dim FROM main.recipes WHERE feature_set = ? AND recipe = ?"
        feature_sets.create_views(connection, feature_set, name, int(str(old.value(query, list(recipe)))))
    connection.execute(f"DELETE FROM {table}")
    _copy(lake, old, table, f"FROM {table}", [])


def _recount(connection: duckdb.DuckDBPyConnection, feature_set: str) -> None:
    """Count the wells of a feature set's loads against the layouts of now, which did not go back with it."""
    wells = relation(feature_set, "wells")
    connection.execute(
        "UPDATE main.plate_loads SET wells_in_layout = counted.wells_in_layout, "
        "wells_without_data = counted.wells_in_layout - counted.both_have, "
        "wells_without_layout = counted.wells_there - counted.both_have "
        "FROM (SELECT source, batch, plate, count(layouts.place) AS wells_in_layout, "
        "count(wells.place) AS wells_there, "
        "count(*) FILTER (layouts.place IS NOT NULL AND wells.place IS NOT NULL) AS both_have "
        "FROM (SELECT source, batch, plate, well, 1 AS place FROM main.wells) AS layouts "
        f"FULL JOIN (SELECT source, batch, plate, well, 1 AS place FROM {wells}) AS wells "
        "USING (source, batch, plate, well) GROUP BY ALL) AS counted "
        "WHERE plate_loads.feature_set = ? AND plate_loads.source = counted.source "
        "AND plate_loads.batch = counted.batch AND plate_loads.plate = counted.plate "
        "AND (plate_loads.wells_in_layout <> counted.wells_in_layout "
        "OR plate_loads.wells_without_data <> counted.wells_in_layout - counted.both_have)",
        [feature_set],
    )


def _remember(
    lake: Lake,
    run: Run,
    one: Restored,
    held: dict[Load, tuple[object, ...]],
    former: dict[Load, tuple[object, ...]],
    before: int,
) -> None:
    """Write what was done to a plate into its history."""
    load = (one.feature_set, one.source, one.batch, one.plate)
    content = former[load][0] if load in former else None
    replaced = held[load][0] if load in held else None
    lake.connection.execute(
        "INSERT INTO main.plate_history VALUES (?, ?, ?, ?, 'rolled back', ?, ?, ?, ?, ?)",
        [*load, content, replaced, None if replaced is None else before, run.run, now()],
    )
