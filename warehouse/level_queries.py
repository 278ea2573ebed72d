"""One level as one SQL text that any DuckDB client can run on the lake: over chosen wells, or from cells up.

Nothing is stored for it: the texts of the views are put together as common table expressions, with what they read
replaced. A view that is made for good would be loaded whenever the lake is opened, 150 KB of it at 3,360 features.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from warehouse import resources
from warehouse.errors import ProfileError
from warehouse.feature_sets import FeatureSet, view_texts
from warehouse.names import unknown
from warehouse.profiles import IDS, LABEL_KINDS, LEVELS, FittedRecipe, predicate
from warehouse.sqltext import UNCORRECTED, elementwise, expand, relation

#: Columns that a predicate may name beside those of well_profiles: labels, and what quality control found.
LABELS = LABEL_KINDS
FLAGS = ("is_flagged", "flags")

#: Σ n·x / Σ n of one element {x} over the rows that have it, {n} being the cells of a row. No FILTER: DuckDB holds a
#: chunk of all columns for each one, which at 3,840 features is more memory than most machines have.
_WEIGHTED_MEAN = "(sum({x}::DOUBLE * {n}) / nullif(sum(CASE WHEN {x} IS NOT NULL THEN {n} END), 0))::FLOAT"
_PLACEHOLDER = re.compile(r"\belementwise\((field_operator|well_operator), (\w+)\.embedding\)")
_RELATION = re.compile(r"\bfeature_set\.([a-z_]+)")
_HEADER = re.compile(r"\A.*?^CREATE OR REPLACE VIEW feature_set\.\w+ AS$", re.DOTALL | re.MULTILINE)
_KEYS = IDS["well"]
#: An expression that only chooses rows of a table: done again for each reader, rather than kept in memory.
_CHOSEN = "this_chosen_wells"


@dataclass(frozen=True)
class Slice:
    """Which wells a level is computed from, and from where.

    Attributes:
        where: an SQL predicate over wells: columns of well_profiles, `LABELS`, `FLAGS`; None for all.
        passing: only wells that quality control does not flag.
        from_cells: compute fields and wells from cells (or from fields where the feature set begins there).
    """

    where: str | None = None
    passing: bool = False
    from_cells: bool = False

    @property
    def chooses(self) -> bool:
        """Whether wells are left out."""
        return self.where is not None or self.passing


def level_query(
    target: FeatureSet, recipe: FittedRecipe, level: str, part: Slice, operators: Mapping[str, str]
) -> str:
    """Write the query of a level.

    Args:
        target: the feature set.
        recipe: of it, or `none`.
        level: of `warehouse.profiles.LEVELS`.
        part: which wells, and from where.
        operators: of the views of the feature set (`feature_sets.operators`).

    Returns:
        One SELECT without parameters; names resolve where the lake is the default catalog (`USE lake`).

    Raises:
        UnknownNameError: no such level.
        ProfileError: the predicate is none, or there is nothing to compute the level from.
    """
    if level not in LEVELS:
        raise unknown(level, "level", LEVELS)
    if part.from_cells:
        _refuse_from_cells(target, recipe, level)
    text = _Text(target, recipe, operators)
    if part.from_cells:
        text.begin_from_cells()
    if part.chooses:
        text.choose(part)
    if level in ("cell", "field"):
        table = text.name(LEVELS[level])
        layout, join = ("main.wells", "LEFT") if not part.chooses else (text.name("well_profiles"), "INNER")
        query = (
            "SELECT measured.*, layout.treatment, layout.compound, layout.concentration, layout.unit, "
            f"layout.control_type\nFROM {table} AS measured\n{join} JOIN {layout} AS layout "
            f"USING ({', '.join(_KEYS)})"
        )
    else:
        query = f"SELECT * FROM {text.name(LEVELS[level])}"
    return text.whole(query)


def counting_queries(
    target: FeatureSet, recipe: FittedRecipe, part: Slice, operators: Mapping[str, str]
) -> tuple[str, str]:
    """Write two queries: how many wells there are, and how many of them are chosen."""
    text = _Text(target, recipe, operators)
    if part.from_cells:
        text.begin_from_cells()
    of_all = text.whole(f"SELECT count(*) FROM {text.name('well_profiles')}")
    text.choose(part)
    return of_all, text.whole(f"SELECT count(*) FROM {text.name('well_profiles')}")


def recomputed(target: FeatureSet, table: str) -> str:
    """Write the query that computes the rows of the table `fields` or `wells` from those of the table below it."""
    path = next(p for p in resources.files("sql", "from_cells") if resources.number_and_name(p)[1] == table)
    text = _without_comments(path.read_text(encoding="utf-8"))
    operators = {"field_operator": target.field_operator, "well_operator": target.well_operator}

    def unrolled(match: re.Match[str]) -> str:
        operator, column = operators[match[1]], f"{match[2]}.embedding"
        if operator != "weighted_mean":
            return elementwise(operator, column, target.dim)
        places = range(1, target.dim + 1)
        values = (_WEIGHTED_MEAN.format(x=f"{column}[{i}]", n=f"{match[2]}.cell_count") for i in places)
        return f"[{', '.join(values)}]"

    return _PLACEHOLDER.sub(unrolled, text)


def _refuse_from_cells(target: FeatureSet, recipe: FittedRecipe, level: str) -> None:
    if target.entry_level == "well":
        message = f"feature set {target.name!r} begins with wells: there is nothing in the lake to compute them from"
        raise ProfileError(message)
    if recipe.name != "none":
        message = f"recipe {recipe.steps!r} corrects wells as they were committed: leave --recipe or --from-cells out"
        raise ProfileError(message)
    if level == target.entry_level:
        message = f"feature set {target.name!r} begins with {level}s: name a level above"
        raise ProfileError(message)
    if level == "cell":
        message = f"feature set {target.name!r} begins with fields and holds no cells"
        raise ProfileError(message)


class _Text:
    """Gathers common table expressions; `names` says which of them stand for a relation of the feature set."""

    def __init__(self, target: FeatureSet, recipe: FittedRecipe, operators: Mapping[str, str]) -> None:
        self.target, self.recipe, self.operators = target, recipe, operators
        self.views = {name: _query(text) for name, text in view_texts(operators).items()}
        self.names: dict[str, str] = {}
        self.parts: dict[str, str] = {}

    def begin_from_cells(self) -> None:
        """Put computed fields and wells in the place of those that were committed."""
        for table in ("fields", "wells") if self.target.entry_level == "cell" else ("wells",):
            self._put(table, f"this_{table}", self._filled(recomputed(self.target, table)))

    def choose(self, part: Slice) -> None:
        """Put the chosen wells in the place of well_profiles, for all views above it."""
        wells = self.name("well_profiles")
        asked = (part.where or "").lower()
        columns, joins = ["wells.*"], ""
        dropped: list[str] = []
        if any(label in asked for label in LABELS):
            columns += [f"labels.{label}" for label in LABELS]
            dropped += LABELS
            joins += "\nLEFT JOIN main.treatment_annotations AS labels ON wells.treatment = labels.treatment"
        if part.passing or any(flag in asked for flag in FLAGS):
            flagged = relation(self.target.name, "well_flags", self.recipe.name)
            columns += [f"quality.{flag}" for flag in FLAGS]
            dropped += FLAGS
            same = " AND ".join(f"wells.{key} = quality.{key}" for key in _KEYS)
            joins += f"\nLEFT JOIN {flagged} AS quality ON {same}"
        rows = f"(\nSELECT {', '.join(columns)}\nFROM {wells} AS wells{joins}\n) AS wells"
        conditions = [f"({predicate(part.where)}\n)"] if part.where is not None else []
        conditions += ["(is_flagged IS NOT TRUE)"] if part.passing else []
        exclude = f" EXCLUDE ({', '.join(dropped)})" if dropped else ""
        query = f"SELECT *{exclude}\nFROM {rows}\nWHERE {' AND '.join(conditions)}"
        self._put("well_profiles", _CHOSEN, query)

    def name(self, view: str) -> str:
        """Return what stands for a relation: itself, or an expression where it reads one that was replaced."""
        if view not in self.names and self._is_touched(view):
            self._put(view, f"this_{view}", self._filled(self.views[view]))
        return self.names.get(view) or relation(self.target.name, view, self.recipe.name)

    def whole(self, query: str) -> str:
        """Put the expressions that the query needs before it."""
        needed: set[str] = set()
        waiting = [query]
        while waiting:
            text = waiting.pop()
            found = {name for name in self.parts if re.search(rf"\b{name}\b", text)} - needed
            needed |= found
            waiting += [self.parts[name] for name in found]
        made: list[str] = []
        readers = [query]
        # From the last to the first: whoever reads a part stands behind it.
        for name, text in reversed([(name, text) for name, text in self.parts.items() if name in needed]):
            times = sum(len(re.findall(rf"\b{name}\b", reader)) for reader in readers)
            # What is read once is best a part of its reader, which then chooses rows before they are computed.
            is_kept = times > 1 and (name != _CHOSEN or "this_wells" in needed)
            readers += [text] * (1 if is_kept else times)
            made.insert(0, f"{name} AS {'' if is_kept else 'NOT '}MATERIALIZED (\n{text}\n)")
        return f"WITH {', '.join(made)}\n{query}" if made else query

    def _put(self, view: str, name: str, text: str) -> None:
        self.parts[name] = text
        self.names[view] = name

    def _is_touched(self, view: str) -> bool:
        if view in self.names:
            return True
        if view in UNCORRECTED:  # what quality control found stays as it is, whatever wells are chosen
            return False
        return any(self._is_touched(name) for name in _reads(self.views.get(view, "")) if name != view)

    def _filled(self, text: str) -> str:
        """Fill a text's placeholders, with the expressions that stand for relations."""
        text = _RELATION.sub(lambda match: self.name(match[1]), text)
        return expand(
            text, self.target.name, self.recipe.name, len(self.recipe.feature_names), self.operators
        )


def _query(text: str) -> str:
    """Return the query of a view's file, its placeholders as they are."""
    return _without_comments(_HEADER.sub("", text, count=1))


def _reads(text: str) -> Iterator[str]:
    return (match[1] for match in _RELATION.finditer(text))


def _without_comments(text: str) -> str:
    return re.sub(r"--[^\n]*", "", text).strip().removesuffix(";")
