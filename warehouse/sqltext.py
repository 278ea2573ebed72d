"""SQL as text: quoting names, and expanding the two placeholders that files in `sql/` and `schema/` use.

- `feature_set.wells` is the table `wells` of the feature set at hand; with a recipe, `wells__<recipe>`.
- `elementwise(avg, w.embedding)` is the list of `avg(w.embedding[i])` over the dimensions of the feature set.
  DuckDB unrolls it as fast as a column per feature; `median(embedding)` itself picks a lexicographic row.

Both are valid SQL as they stand, so the files can be parsed and linted. Values never go through here: they
are bound as parameters.
"""

import re

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_RELATION = re.compile(r"\bfeature_set\.([a-z_]+)")
_ELEMENTWISE = re.compile(r"\belementwise\((\w+), ([\w.]+)\)")

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


def expand(text: str, feature_set: str, recipe: str = "none", dim: int = 0) -> str:
    """Fill the placeholders of a file for one feature set, recipe and dimension."""

    def unrolled(match: re.Match[str]) -> str:
        operator, column = match.groups()
        return "[" + ", ".join(f"{operator}({column}[{i}])::FLOAT" for i in range(1, dim + 1)) + "]"

    text = _RELATION.sub(lambda match: relation(feature_set, match.group(1), recipe), text)
    return _ELEMENTWISE.sub(unrolled, text)


def statements(text: str) -> list[str]:
    """Split a file of our own into statements at `;`, comments left out (no file of ours quotes one)."""
    bare = re.sub(r"--[^\n]*", "", text)
    return [part.strip() for part in bare.split(";") if part.strip()]
