"""Recipes: an ordered list of correction steps, as text such as ``mad_robustize+sphering(lambda=0.01)``.

A recipe that papers use again and again has a name (`NAMED`). One whose text begins with ``fields:`` corrects
fields, and its wells are the means of them; any other corrects wells.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from hashlib import sha256

import polars as pl

from warehouse.errors import RecipeError
from warehouse.names import split_outside, unknown
from warehouse.steps import STEPS, Step

KEYS = ("source", "batch", "plate")
MOST_STEPS = 50
LONGEST_SLUG = 48  # wells__<slug> stays within Postgres' 63 characters
_CALL = re.compile(r"\s*([^()\s]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_FIELDS = "fields:"


@dataclass(frozen=True)
class Recipe:
    """Correction steps in order; no step at all is the recipe ``none``.

    Attributes:
        steps: the first is applied first.
        level: of the profiles that are corrected, `well` or `field`.
        name: of `NAMED`, or None.
    """

    steps: tuple[Step, ...]
    level: str = "well"
    name: str | None = None

    @property
    def text(self) -> str:
        """The one canonical text: parameters in a fixed order, those at their default left out."""
        steps = "+".join(step.text for step in self.steps) or "none"
        return (_FIELDS if self.level == "field" else "") + steps

    @property
    def slug(self) -> str:
        """A name of [a-z0-9_] for tables and files; parameters that are not default become a hash."""
        if self.name is not None:
            return self.name
        plain = "_".join(step.name for step in self.steps) or "none"
        if self.level == "field":
            plain = f"fields_{plain}"
        if "(" not in self.text and len(plain) <= LONGEST_SLUG:
            return plain
        return f"{plain[: LONGEST_SLUG - 9]}_{sha256(self.text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe with a name: its steps, what it does, and the paper it follows."""

    name: str
    text: str
    description: str
    paper: str


NAMED = (
    NamedRecipe(
        "moshkov",
        "sphering(lambda=0.001)",
        "sphering of wells on all negative controls; for CellProfiler features the paper takes lambda=0.01",
        "Moshkov et al. 2024",
    ),
    NamedRecipe(
        "kim",
        "variance(threshold=1e-5,on=controls)+variance(threshold=1e-5,on=treated)"
        "+sphering(method=zca_cor)+mad_robustize(scale=1)",
        "features that vary, ZCA-cor sphering on all negative controls, then median and MAD of each plate's wells",
        "Kim et al. 2025",
    ),
    NamedRecipe(
        "microsnoop",
        "fields:sphering(method=zca_cor)",
        "ZCA-cor sphering of fields on the negative controls' fields; a well is the mean of its fields",
        "Xun et al. 2023",
    ),
    NamedRecipe(
        "bray_tl",
        "pca(on=controls)+standardize(scope=all)+coral",
        "typical variation normalisation, for transfer learning: controls whitened, then CORAL by batch (after Ando "
        "et al.: the benchmark's own parameters stand in a supplement that was not at hand)",
        "Bray et al. 2022; Ando et al. 2017",
    ),
    NamedRecipe(
        "jump_compound",
        "drop_missing(cutoff=0)+mad_variation(on=controls)+mad_robustize(on=controls,scale=1)+inverse_normal"
        "+variance+frequency+correlation+blocklist+drop_missing(cutoff=0)+harmony(clusters=300,iterations=20)",
        "the JUMP recipe for compounds: MAD on negative controls, ranks to normal, feature selection, Harmony by batch",
        "Arevalo et al. 2024",
    ),
    NamedRecipe(
        "efaar_tvn",
        "standardize(scope=all)+pca(on=controls)+standardize(scope=all)+tvn",
        "typical variation normalisation as in EFAAR: controls scaled, turned and scaled, then whitened in each batch",
        "Celik et al. 2024",
    ),
)


def parse(text: str) -> Recipe:
    """Read a recipe: a name of `NAMED`, or step names joined by ``+``, each with ``(parameter=value,…)`` where needed.

    Raises:
        UnknownNameError: a step, parameter or value is in no list; the nearest one is offered.
        RecipeError: the text has no such shape, or a number is out of range.
    """
    named = {known.name: known for known in NAMED}
    if text.strip() in named:
        found = named[text.strip()]
        plain = parse(found.text)
        return Recipe(plain.steps, plain.level, found.name)
    level = "field" if text.lstrip().startswith(_FIELDS) else "well"
    parts = split_outside(text.lstrip().removeprefix(_FIELDS), "+")
    if len(parts) > MOST_STEPS:
        message = (
            f"recipe {text[:40]!r}… has {len(parts)} steps, {MOST_STEPS} at most: is a step written twice?"
        )
        raise RecipeError(message)
    if [part.strip() for part in parts] == ["none"]:
        return Recipe((), level)
    return Recipe(tuple(_parse_step(part, text) for part in parts), level)


def lacking(
    recipe: Recipe, counts: pl.DataFrame, fitted: Collection[tuple[str, str]] = ()
) -> dict[tuple[str, str, str], str]:
    """Name the plates that a recipe cannot be fitted on: they, or their batch, have too few wells to fit a step.

    Args:
        recipe: the steps.
        counts: one row a plate with source, batch, plate, and its number of wells (or of fields, where the recipe
            corrects fields): all, controls, treated.
        fitted: batches (source, batch) that have a fit already, which their new plates will go by.

    Returns:
        Plate to reason. A step that is fitted on the whole set leaves no plate out: it fits, or says why not.
    """
    found: dict[tuple[str, str, str], str] = {}
    left = counts
    for step in recipe.steps:
        if step.scope == "all" or left.is_empty():
            continue
        by = KEYS[: {"plate": 3, "batch": 2}[step.scope]]
        counted = left.with_columns(pl.col(step.on).sum().over(by).alias("usable"))
        short = counted.filter(pl.col("usable") < step.minimum).select(*KEYS, "usable")
        if step.scope == "batch":
            short = short.filter([key not in fitted for key in short.select(KEYS[:2]).iter_rows()])
        kind = {"controls": "negative control(s)", "treated": "treated well(s)"}.get(
            step.on, f"{recipe.level}(s)"
        )
        for source, batch, plate, count in short.iter_rows():
            found[source, batch, plate] = (
                f"{step.name}: its {step.scope} has {count} {kind}, at least {step.minimum} needed"
            )
        left = left.join(short, on=KEYS, how="anti")
    return found


def _parse_step(part: str, text: str) -> Step:
    found = _CALL.fullmatch(part)
    if found is None or not found[1]:
        message = f"recipe {text!r}: {part!r} is no step: write NAME or NAME(parameter=value), joined by +"
        raise RecipeError(message)
    by_name = {step.name: step for step in STEPS}
    if found[1] == "none":
        message = f"recipe {text!r}: 'none' stands alone: leave it out beside other steps"
        raise RecipeError(message)
    if found[1] not in by_name:
        names = [*by_name, "none", *(known.name for known in NAMED)]
        if found[1] in names:
            message = (
                f"recipe {text!r}: {found[1]!r} is a whole recipe: write its steps to change or extend it"
            )
            raise RecipeError(message)
        raise unknown(found[1], "recipe or step", names)
    step = by_name[found[1]]
    types = {field.name.rstrip("_"): field for field in fields(step)}
    arguments: dict[str, str | float] = {}
    for item in (found[2] or "").split(",") if (found[2] or "").strip() else []:
        name, equals, value = (piece.strip() for piece in item.partition("="))
        if not equals or not value:
            message = f"recipe {text!r}: {item.strip()!r} in step {step.name}: write parameter=value"
            raise RecipeError(message)
        if name not in types:
            raise unknown(name, f"parameter of step {step.name}", types)
        if types[name].name in arguments:
            message = f"recipe {text!r}: parameter {name!r} of step {step.name} is given twice: keep one"
            raise RecipeError(message)
        arguments[types[name].name] = _value(types[name].type, name, value, text)
    return step(**arguments)  # type: ignore[arg-type]


def _value(kind: object, name: str, value: str, text: str) -> str | float:
    """Read a parameter: text, a number, or where it may be both, a number if it reads as one."""
    if kind is str:
        return value
    try:
        return float(value)
    except ValueError:
        if kind is not float:
            return value
        message = f"recipe {text!r}: {name}={value!r} is no number: write such as {name}=0.001"
        raise RecipeError(message) from None
