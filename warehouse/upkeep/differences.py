"""What differs between two states of a lake: what was loaded, the rows of each plate, whole tables, recipes."""

from warehouse.lake import Lake
from warehouse.sqltext import relation

#: A plate of a feature set: feature set (empty for rows that all share), source, batch, plate.
Load = tuple[str, str, str, str]

#: Ledgers say what happened, and that is not undone; they get new rows.
LEDGERS = {"schema_version", "write_gate", "runs", "plate_history", "evaluations", "night_steps"}
#: Not by plate, so they go back as wholes, and only where the whole lake does.
RECIPES = {"recipes", "recipe_fits", "recipe_left_out"}
#: What was made stays made: an emptied feature set can be brought forward again.
_KEPT = {"feature_sets"}


def loads(lake: Lake) -> dict[Load, tuple[object, ...]]:
    """Read what is in, in every feature set: the content, and the run that brought it."""
    query = "SELECT feature_set, source, batch, plate, content_hash, run, loaded_at FROM main.plate_loads"
    return {row[:4]: row[4:] for row in lake.connection.execute(query).fetchall()}


def tables(lake: Lake) -> dict[str, set[str]]:
    """List the shared tables that go back, with their columns; a table of a later version too."""
    columns = lake.connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() SEMI JOIN duckdb_tables() "
        "USING (database_name, schema_name, table_name) WHERE database_name = 'lake' AND schema_name = 'main'"
    ).fetchall()
    found: dict[str, set[str]] = {}
    for table, column in sorted(columns):
        if table not in LEDGERS | RECIPES | _KEPT:
            found.setdefault(table, set()).add(column)
    return found


def differing(lake: Lake, old: Lake, name: str, is_shared: bool) -> set[Load]:
    """Name the plates whose rows in a table are not the same, in any order, now and then."""
    who = "''" if is_shared else "feature_set"
    query = (
        f"SELECT {who}, source, batch, plate, count(*), sum(hash(part)::HUGEINT)::VARCHAR "
        f"FROM (SELECT * FROM {name}) AS part GROUP BY ALL"
    )
    held, former = (
        {row[:4]: row[4:] for row in one.connection.execute(query).fetchall()} for one in (lake, old)
    )
    return {key for key in held.keys() | former.keys() if held.get(key) != former.get(key)}


def digest(lake: Lake, table: str) -> tuple[object, ...]:
    """Count and hash the rows of a shared table, in any order."""
    query = (
        f"SELECT count(*), sum(hash(part)::HUGEINT)::VARCHAR FROM (FROM {relation('main', table)}) AS part"
    )
    return tuple(lake.connection.execute(query).fetchall()[0])


def recipes(lake: Lake) -> set[tuple[str, str]]:
    """Name the recipes that are fitted: (feature set, recipe)."""
    rows = lake.connection.execute("SELECT feature_set, recipe FROM main.recipes").fetchall()
    return {(feature_set, recipe) for feature_set, recipe in rows}


def recipe_differs(lake: Lake, old: Lake, recipe: tuple[str, str]) -> bool:
    """Tell whether a recipe's fit or its corrected wells are not the same now and then."""
    if recipe not in recipes(lake) or recipe not in recipes(old):
        return True
    fits = (_fit(one, table, recipe) for table in sorted(RECIPES) for one in (lake, old))
    return any(a != b for a, b in zip(fits, fits, strict=True)) or bool(
        differing(lake, old, relation(recipe[0], "wells", recipe[1]), True)
    )


def _fit(lake: Lake, table: str, recipe: tuple[str, str]) -> tuple[object, ...]:
    query = (
        "SELECT count(*), sum(hash(part)::HUGEINT)::VARCHAR "
        f"FROM (FROM {relation('main', table)} WHERE feature_set = ? AND recipe = ?) AS part"
    )
    return tuple(lake.connection.execute(query, list(recipe)).fetchall()[0])
