"""Feature sets: what one extractor, with its weights and parameters, writes; a schema of the lake each."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from warehouse import resources
from warehouse.errors import ProfileError
from warehouse.lake import Lake, now
from warehouse.names import unknown
from warehouse.runs import Run
from warehouse.sqltext import DEFAULT_OPERATORS, UNCORRECTED, expand, identifier, is_plain_name, statements

#: Schemas that are not feature sets.
_RESERVED = {"main", "information_schema", "pg_catalog"}
#: Operators of the views above wells: of all but `consensus`, and of that one.
TREATMENT_OPERATORS = ("mean", "median", "trimmed_mean")
CONSENSUS_OPERATORS = ("mean_of_sources", "mean", "median", "trimmed_mean", "modz")


@dataclass(frozen=True)
class FeatureSet:
    """The identity of a feature set: two tables are comparable when all of it is equal.

    Attributes:
        name: its schema in the lake; lower-case letters, digits, underscores.
        extractor: registry name of the method, or `import` for profiles made elsewhere.
        version: of the extractor.
        weights: SHA-256 of the weights file, or None.
        parameters: settings that change numbers; JSON values.
        channels: in the order in which the extractor saw them.
        feature_names: one name a dimension, in order.
        entry_level: the finest level held: `cell`, `field` or `well`.
        field_operator: cells to field, `median` or `mean`.
        well_operator: fields to well, `mean` or `median`.
    """

    name: str
    extractor: str
    version: str
    weights: str | None
    parameters: dict[str, object]
    channels: tuple[str, ...]
    feature_names: tuple[str, ...]
    entry_level: str
    field_operator: str = "median"
    well_operator: str = "mean"

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return len(self.feature_names)

    def identity(self) -> str:
        """Return a hash of everything that decides the numbers (the name does not)."""
        parts = [getattr(self, key) for key in _IDENTITY]
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


_IDENTITY = (
    "extractor",
    "version",
    "weights",
    "parameters",
    "channels",
    "feature_names",
    "entry_level",
    "field_operator",
    "well_operator",
)


def check_name(name: str) -> None:
    """Refuse a name that cannot be a schema of the lake.

    Raises:
        ProfileError: the name, and what a name may hold.
    """
    if name in _RESERVED or not is_plain_name(name):
        message = (
            f"feature set name {name!r}: use up to 63 lower-case letters, digits and single underscores, a "
            f"letter first, and none of {', '.join(sorted(_RESERVED))}"
        )
        raise ProfileError(message)


def names(lake: Lake) -> list[str]:
    """List the feature sets of a lake."""
    return lake.frame("SELECT feature_set FROM main.feature_sets ORDER BY feature_set")[
        "feature_set"
    ].to_list()


def find(lake: Lake, name: str) -> FeatureSet:
    """Read a feature set.

    Raises:
        UnknownNameError: the lake has none of this name.
    """
    found = read(lake, name)
    if found is None:
        raise unknown(name, "feature set", names(lake))
    return found


def read(lake: Lake, name: str) -> FeatureSet | None:
    """Read a feature set; None where there is none of this name."""
    row = lake.connection.execute(
        "SELECT extractor, extractor_version, weights, parameters, channels, feature_names, entry_level, "
        "field_operator, well_operator FROM main.feature_sets WHERE feature_set = ?",
        [name],
    ).fetchone()
    if row is None:
        return None
    return FeatureSet(
        name, row[0], row[1], row[2], json.loads(row[3]), tuple(row[4]), tuple(row[5]), *row[6:]
    )


def ensure(lake: Lake, feature_set: FeatureSet, run: Run) -> None:
    """Make the schema, tables and views of a feature set, or check that the one there is the same.

    For use inside `Lake.transaction`.

    Raises:
        ProfileError: the name is taken by a feature set with another identity; the message says what differs.
    """
    check_name(feature_set.name)
    known: dict[str, FeatureSet | None] = lake.remembered("feature sets", dict)
    if feature_set.name not in known:
        known[feature_set.name] = read(lake, feature_set.name)
    present = known[feature_set.name]
    if present is not None:
        refuse_other(present, feature_set)
        return
    connection = lake.connection
    run.record(lake)
    connection.execute(f"CREATE SCHEMA {identifier(feature_set.name)}")
    for path in resources.files("schema", "feature_set"):
        for statement in statements(path.read_text(encoding="utf-8")):
            connection.execute(expand(statement, feature_set.name))
    create_views(connection, feature_set.name, "none", feature_set.dim)
    connection.execute(
        "INSERT INTO main.feature_sets (feature_set, extractor, extractor_version, weights, parameters, channels, dim, "
        "feature_names, entry_level, field_operator, well_operator, run, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            feature_set.name,
            feature_set.extractor,
            feature_set.version,
            feature_set.weights,
            json.dumps(feature_set.parameters, sort_keys=True),
            list(feature_set.channels),
            feature_set.dim,
            list(feature_set.feature_names),
            feature_set.entry_level,
            feature_set.field_operator,
            feature_set.well_operator,
            run.run,
            now(),
        ],
    )
    known[feature_set.name] = feature_set


def operators(connection: duckdb.DuckDBPyConnection, name: str) -> dict[str, str]:
    """Read the operators of the views of a feature set: `treatment_operator` and `consensus_operator`.

    Those of the default where the lake has no such feature set (yet), or is read as of before it held operators.
    """
    found = (
        connection.execute("SELECT * FROM main.feature_sets WHERE feature_set = ?", [name]).pl().to_dicts()
    )
    row = found[0] if found else {}
    return {setting: row.get(setting) or default for setting, default in DEFAULT_OPERATORS.items()}


def set_operators(
    lake: Lake, name: str, *, treatment: str | None = None, consensus: str | None = None
) -> dict[str, str]:
    """Choose how views above wells aggregate, and renew those of the feature set and of its recipes.

    Args:
        lake: open for writing.
        name: of the feature set.
        treatment: of `TREATMENT_OPERATORS`, for treatments, compounds, batches and sources; None leaves it.
        consensus: of `CONSENSUS_OPERATORS`, for consensus; None leaves it.

    Returns:
        The operators that it has now, as `operators`.

    Raises:
        UnknownNameError: no such feature set or operator.
    """
    if treatment is not None and treatment not in TREATMENT_OPERATORS:
        raise unknown(treatment, "treatment operator", TREATMENT_OPERATORS)
    if consensus is not None and consensus not in CONSENSUS_OPERATORS:
        raise unknown(consensus, "consensus operator", CONSENSUS_OPERATORS)
    find(lake, name)
    run = Run("operators", {"feature_set": name, "treatment": treatment, "consensus": consensus})

    def work(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
        present = operators(connection, name)
        wanted = {
            "treatment_operator": treatment or present["treatment_operator"],
            "consensus_operator": consensus or present["consensus_operator"],
        }
        if wanted == present:
            lake.change_nothing()
            return present
        run.record(lake)
        connection.execute(
            "UPDATE main.feature_sets SET treatment_operator = ?, consensus_operator = ? WHERE feature_set = ?",
            [wanted["treatment_operator"], wanted["consensus_operator"], name],
        )
        renew_views(lake, name)
        return wanted

    before = operators(lake.connection, name)
    chosen = lake.transaction(work)
    if chosen != before:
        run.finish(lake, {})
    return chosen


def operators_of_levels(lake: Lake, name: str) -> dict[str, str]:
    """Read by which operator each level of a feature set is made, from the level after the one it begins with.

    Raises:
        UnknownNameError: no such feature set.
    """
    found = find(lake, name)
    chosen = operators(lake.connection, name)
    stored = {"field": found.field_operator, "well": found.well_operator}
    if found.entry_level != "cell":
        del stored["field"]
    if found.entry_level == "well":
        del stored["well"]
    views = dict.fromkeys(("treatment", "compound", "batch", "source"), chosen["treatment_operator"])
    return stored | views | {"consensus": chosen["consensus_operator"]}


def view_texts(chosen: Mapping[str, str]) -> dict[str, str]:
    """Read the files of the views of a feature set that has these operators: name to text, in the order of making."""
    texts = {
        resources.number_and_name(path)[1]: path.read_text(encoding="utf-8")
        for path in resources.files("sql", "feature_set")
    }
    if chosen["consensus_operator"] != DEFAULT_OPERATORS["consensus_operator"]:
        kind = "modz" if chosen["consensus_operator"] == "modz" else "over_wells"
        path = next(path for path in resources.files("sql", "consensus") if path.stem == kind)
        texts["consensus"] = path.read_text(encoding="utf-8")
    return texts


def create_views(connection: duckdb.DuckDBPyConnection, feature_set: str, recipe: str, dim: int) -> None:
    """Make the views over `wells`, or over `wells__<recipe>`, in the order of their numbers."""
    chosen = operators(connection, feature_set)
    for name, text in view_texts(chosen).items():
        if recipe == "none" or name not in UNCORRECTED:
            connection.execute(expand(text, feature_set, recipe, dim, chosen))


def renew_views(lake: Lake, feature_set: str | None = None) -> None:
    """Make the views of a feature set, or of all, and of their recipes again: their operators or the schema changed.

    For use inside `Lake.transaction`.
    """
    made = lake.frame(
        "SELECT feature_set, 'none' AS recipe, dim FROM main.feature_sets "
        "UNION ALL SELECT feature_set, recipe, dim FROM main.recipes ORDER BY ALL"
    )
    for name, recipe, dim in made.iter_rows():
        if feature_set in (None, name):
            create_views(lake.connection, name, recipe, dim)


def refuse_other(present: FeatureSet, wanted: FeatureSet) -> None:
    """Refuse to put two different things under one name.

    Raises:
        ProfileError: the first property in which they differ, and both values.
    """
    for key in _IDENTITY:
        there, here = getattr(present, key), getattr(wanted, key)
        if json.dumps(there, sort_keys=True) == json.dumps(here, sort_keys=True):
            continue
        if key == "feature_names":
            missing, extra = sorted(set(there) - set(here)), sorted(set(here) - set(there))
            there = f"{len(present.feature_names)} features"
            here = f"{len(wanted.feature_names)}, {len(missing)} missing (first: {missing[:1]}), {len(extra)} new"
            here += f" (first: {extra[:1]})" if extra else ""
            if not missing and not extra:
                here = "the same in another order"
        if key == "parameters":
            key, there, here = _first_difference(key, there, here)
        message = f"feature set {wanted.name!r} has {key} {there}, this input has {here}: name another --feature-set"
        raise ProfileError(message)


def _first_difference(name: str, there: object, here: object) -> tuple[str, object, object]:
    """Find the setting in which two sets of parameters differ, `segmentation.min_area_px` say, and both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            if there.get(key) != here.get(key):
                return _first_difference(f"{name}.{key}", there.get(key), here.get(key))
    return name, there, here
