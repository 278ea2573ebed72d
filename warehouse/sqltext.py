"""SQL as text: quoting names, and expanding the three placeholders that files in `sql/` and `schema/` use.

- `feature_set.wells` is the table `wells` of the feature set at hand; with a recipe, `wells__<recipe>`.
- `elementwise(avg, w.embedding)` is the list of `avg(w.embedding[i])` over the dimensions of the feature set.
  DuckDB unrolls it as fast as a column per feature; `median(embedding)` itself picks a lexicographic row.
  `elementwise(treatment_operator, …)` takes the operator that the feature set has for this.
- `profiles.part_summary` stands for the columns that `sql/parts/summary.sql` selects: shared by views.

All are valid SQL as they stand, so the files can be parsed and linted. Values never go through here: they
are bound as parameters.
"""

import re
from collections.abc import Mapping
from functools import cache

from warehouse import resources

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_RELATION = re.compile(r"\bfeature_set\.([a-z_]+)")
_ELEMENTWISE = re.compile(r"\belementwise\((\w+), ([\w.]+)\)")
_PART = re.compile(r"\b\w+\.part_(\w+)")

#: Operators of one element of the embeddings of a group; NULLs are passed over, and NULL comes of none. A median is
#: taken in double: of floats DuckDB would also calculate the mean of the middle two in single precision.
OPERATORS = {"mean": "avg({})", "median": "median({}::DOUBLE)", "trimmed_mean": "list({})"}
#: What is then done with each list of values. Trimmed are a tenth below and a tenth above, rounded down.
_OF_LISTS = {
    "trimmed_mean": "list_avg(list_sort(v, 'ASC', 'NULLS LAST')"
    "[list_count(v) // 10 + 1 : list_count(v) - list_count(v) // 10])"
}
#: The operators that a feature set has unless it is given others.
DEFAULT_OPERATORS = {"treatment_operator": "mean", "consensus_operator": "mean_of_sources"}

#: Relations that hold what was measured, and so are there once, whatever the recipe.
UNCORRECTED = {"cells", "fields", "field_flags", "well_flags", "plate_flags"}


def identifier(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for the few statements that take no parameters (ATTACH, LOAD)."""
    return "'" + text.replace("'", "''") + "'"


def is_plain_name(name: str) -> bool:
    """Tell whether a name can be a feature set: lower-case letters, digits and single underscores."""
    return bool(_NAME.fullmatch(name)) and "__" not in name


def relation(feature_set: str, table: str, recipe: str = "none") -> str:
    """Return the quoted `feature_set.table`, or `feature_set.table__recipe`."""
    suffix = "" if recipe == "none" or table in UNCORRECTED else f"__{recipe}"
    return f"{identifier(feature_set)}.{identifier(table + suffix)}"


def expand(
    text: str,
    feature_set: str,
    recipe: str = "none",
    dim: int = 0,
    operators: Mapping[str, str] = DEFAULT_OPERATORS,
) -> str:
    """Fill the placeholders of a file for one feature set, recipe and dimension, with the operators it has."""

    def unrolled(match: re.Match[str]) -> str:
        name, column = match.groups()
        return elementwise(operators.get(name, name), column, dim)

    text = _PART.sub(lambda match: _part(match[1]), text)
    text = _RELATION.sub(lambda match: relation(feature_set, match.group(1), recipe), text)
    return _ELEMENTWISE.sub(unrolled, text)


def elementwise(operator: str, column: str, dim: int) -> str:
    """Write the list of an operator (of `OPERATORS`, or any aggregate) over each element of a column of lists."""
    element = OPERATORS.get(operator, f"{operator}({{}})")
    if operator in _OF_LISTS:
        values = ", ".join(element.format(f"{column}[{i}]") for i in range(1, dim + 1))
        return f"list_transform([{values}], lambda v: {_OF_LISTS[operator]}::FLOAT)"
    return "[" + ", ".join(element.format(f"{column}[{i}]") + "::FLOAT" for i in range(1, dim + 1)) + "]"


@cache
def _part(name: str) -> str:
    """Read the columns of a file of `sql/parts`: what stands between its SELECT and its FROM."""
    path = next(path for path in resources.files("sql", "parts") if path.stem == name)
    text = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
    return text.partition("SELECT")[2].rpartition("\nFROM")[0].strip()


def statements(text: str) -> list[str]:
    """Split a file of our own into statements at `;`, comments left out (no file of ours quotes one)."""
    bare = re.sub(r"--[^\n]*", "", text)
    return [part.strip() for part in bare.split(";") if part.strip()]
