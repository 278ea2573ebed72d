"""The index of a level: built from the lake, brought up to date plate by plate, found out when it is stale."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from warehouse import feature_sets, profiles
from warehouse.errors import SearchError
from warehouse.feature_sets import FeatureSet
from warehouse.lake import INDEX_FOLDER, Lake
from warehouse.names import unknown
from warehouse.nearest import controls, level_rows
from warehouse.nearest.level_rows import STORED, Marks, Plate
from warehouse.profiles import IDS, LEVELS, FittedRecipe
from warehouse.search import Index, store, structures
from warehouse.search.vectors import Rows, Vectors

#: Shares of rows that are gone, and that a structure does not cover, from which on an index is built anew.
_MOST_GONE, _MOST_LATE = 0.2, 0.2
_PLATE = ("source", "batch", "plate")
#: Levels of which rows without a cosine are left out; of others they are refused by name, as a recipe can mend them.
_LEFT_OUT = ("cell", "field")
#: Embeddings that are read at a time.
_BYTES = 32 << 20


@dataclass(frozen=True)
class IndexReport:
    """An index that was built or brought up to date.

    Attributes:
        feature_set: indexed.
        recipe: as in `wells__<recipe>`.
        level: of its rows.
        kind: flat, hnsw, ivf or ivf_pq.
        outcome: `built`, `updated` (plates were added or taken out) or `unchanged`.
        vectors: that it holds now.
        dim: their length.
        added: vectors that were written.
        left_out: cells or fields that miss a feature, or are all zeros.
        recall: share of the exact nearest 20 that it finds, measured when it was built; 1 for flat.
        path: of its card.
    """

    feature_set: str
    recipe: str
    level: str
    kind: str
    outcome: str
    vectors: int
    dim: int
    added: int
    left_out: int
    recall: float
    path: str


class Opened(NamedTuple):
    """A level, ready to be searched: its index, the metadata of its rows, control profiles, and what to tell."""

    vectors: Index
    rows: pl.DataFrame
    null: Vectors
    note: str | None


def build(
    lake: Lake,
    feature_set: str,
    *,
    recipe: str = "none",
    level: str = "treatment",
    kind: str | None = None,
    recall: float | None = None,
    rebuild: bool = False,
) -> IndexReport:
    """Make the index of a level, or bring it up to date; it is written whole, or the former one stays.

    Of cells, fields and wells only plates that are new or changed are read and added, unless a recipe was fitted anew.
    Levels above wells are read again whole when anything changed: controls, for one, are on every plate.

    Args:
        lake: an open lake.
        feature_set: its name.
        recipe: steps or name of a recipe that was fitted.
        level: of `profiles.LEVELS`.
        kind: of `structures.KINDS`; None for that of the index that is there, else `flat`.
        recall: that a structure is to reach, 0.99 by default; the one reached is in the report.
        rebuild: read everything anew.

    Raises:
        SearchError: no profile, a zero vector, or a missing element; the message names it. Or the lake is open as of
            an older snapshot, whose index would take the place of the newest one's.
        UnknownNameError: no such feature set, level or kind.
    """
    if lake.as_of is not None:
        message = f"{lake.address} is open as of {lake.as_of}: `nearest` searches it without an index; index the newest"
        raise SearchError(message)
    if kind is not None and kind not in structures.KINDS:
        raise unknown(kind, "kind of index", structures.KINDS)
    if recall is not None:
        structures.check_recall(recall)
    with lake.reading():
        target, fitted = resolved(lake, feature_set, recipe, level)
        place = _place(lake, target.name, fitted.name, level)
        former = None if rebuild else store.card(place)
        settings = _settings(former, kind, recall)
        marks = level_rows.marks(lake, target, fitted)
        about = settings | _about(lake, target, fitted, level, marks)
        if former is not None and all(former.get(name) == value for name, value in settings.items()):
            if _marks(former) == marks and not _is_worn(former, former["gone_rows"]):
                return _report(former, "unchanged", 0, place)
            if level in STORED and former["marks"]["whole"] == marks.whole:
                added = _update(lake, target, fitted, level, place, former, about, marks)
                if added is not None:
                    return _report(_card(place), "updated", added, place)
        _build(lake, target, fitted, level, place, about)
    made = _card(place)
    return _report(made, "built", int(made["rows"]), place)


def state(lake: Lake, feature_set: str, recipe: str, level: str = "treatment") -> str:
    """Tell whether there is an index: `none`, `fresh`, `damaged`, or `stale` where the profiles are newer.

    Raises:
        UnknownNameError: no such feature set or level.
        RecipeError: the recipe was never fitted.
    """
    target, fitted = _named(lake, feature_set, recipe, level)
    try:
        about = store.card(_place(lake, target.name, fitted.name, level))
        if about is None:
            return "none"
        return "fresh" if _marks(about) == level_rows.marks(lake, target, fitted) else "stale"
    except SearchError:
        return "damaged"


def opened(lake: Lake, target: FeatureSet, fitted: FittedRecipe, level: str, device: str) -> Opened:
    """Open the index where it is of these very profiles; otherwise read the lake itself, and say so."""
    place = _place(lake, target.name, fitted.name, level)
    about = store.card(place)
    if about is None:
        return _from_the_lake(lake, target, fitted, level, device, is_there=False)
    marks = level_rows.marks(lake, target, fitted)
    held = store.load(place, about) if _marks(about) == marks else None
    # A build may have renewed the files after the card was read.
    if held is None or _marks(held.card) != marks:
        return _from_the_lake(lake, target, fitted, level, device, is_there=True)
    keys = held.rows.select(IDS[level])
    index = Index(held.vectors, keys, gone=held.gone, structure=held.structure, device=device)
    return Opened(index, held.rows, held.null, _left_out_note(level, int(held.card["left_out"])))


def _from_the_lake(
    lake: Lake, target: FeatureSet, fitted: FittedRecipe, level: str, device: str, *, is_there: bool
) -> Opened:
    command = f"`wellhouse index {target.name} --recipe {shlex.quote(fitted.typed)} --level {level}`"
    if lake.as_of is not None:
        why = f"of other profiles than those as of {lake.as_of}" if is_there else ""
        note = f"the index is {why}" if is_there else "there is no index of an older snapshot"
        renew = ""
    elif is_there:
        note, renew = "the index is older than the profiles", f"; renew it with {command}"
    else:
        note, renew = "there is no index yet", f"; make one with {command}"
    frames, matrices, left_out = zip(*_batches(lake, target, fitted, level, None), strict=True)
    notes = [f"{note}: the lake itself was searched{renew}", _left_out_note(level, sum(left_out))]
    rows = pl.concat(frames).with_row_index("__row").sort(IDS[level])
    matrix = np.concatenate(matrices)[rows["__row"].to_numpy()]
    rows = rows.drop("__row")
    index = Index.of(matrix, rows.select(IDS[level]), device=device)
    null = _null(lake, target, fitted, level, _replicates(rows))
    return Opened(index, rows, null, "; ".join(filter(None, notes)))


def fitted_at(lake: Lake, target: FeatureSet, fitted: FittedRecipe) -> object:
    """Return what changes when a recipe is fitted anew: vectors of before and after are not to be compared."""
    query = "SELECT max(fitted_at) FROM main.recipes WHERE feature_set = ? AND recipe = ?"
    return lake.value(query, [target.name, fitted.name])


def resolved(lake: Lake, feature_set: str, recipe: str, level: str) -> tuple[FeatureSet, FittedRecipe]:
    """Find what is to be searched, and refuse what cannot be.

    Raises:
        UnknownNameError: no such feature set or level.
        RecipeError: the recipe was never fitted, or plates wait for it.
        SearchError: a recipe of cells or fields.
    """
    target, fitted = _named(lake, feature_set, recipe, level)
    if fitted.name != "none" and level in ("cell", "field"):
        message = f"recipe {recipe!r} corrects wells; {level}s are there as they came in: leave --recipe out"
        raise SearchError(message)
    profiles.refuse_waiting(lake, target.name, fitted)
    return target, fitted


def _named(lake: Lake, feature_set: str, recipe: str, level: str) -> tuple[FeatureSet, FittedRecipe]:
    if level not in LEVELS:
        raise unknown(level, "level to search", LEVELS)
    target = feature_sets.find(lake, feature_set)
    return target, profiles.find_recipe(lake, target, recipe)


def _build(
    lake: Lake, target: FeatureSet, fitted: FittedRecipe, level: str, place: Path, about: dict[str, Any]
) -> None:
    counts: list[pl.DataFrame] = []
    with store.writing(place) as writer:
        about["left_out"] = 0
        for rows, matrix, left_out in _batches(lake, target, fitted, level, None):
            writer.add(rows, matrix, IDS[level])
            about["left_out"] += left_out
            if "well_count" in rows.columns:
                counts.append(rows.select("well_count", "control_type"))
        wells = _replicates(pl.concat(counts)) if counts else 1
        null = _null(lake, target, fitted, level, wells)
        structure = None
        if about["kind"] != "flat":
            structure = structures.build(writer.vectors(), about["kind"], about["recall_asked"])
        writer.finish(about, IDS[level], null=null, structure=structure)


def _update(
    lake: Lake,
    target: FeatureSet,
    fitted: FittedRecipe,
    level: str,
    place: Path,
    former: dict[str, Any],
    about: dict[str, Any],
    marks: Marks,
) -> int | None:
    """Add plates that are new or changed, take out those that are gone; None where so much is that all is read anew."""
    known = _marks(former).plates
    changed = [key for key, mark in known.items() if marks.plates.get(key) != mark]
    wanted = [key for key, mark in marks.plates.items() if known.get(key) != mark]
    held = store.load(place, former)
    gone = _gone(held, changed)
    if _is_worn(former, len(gone)):
        return None
    with store.writing(place, onto=former) as writer:
        before = writer.rows
        if wanted:
            about["left_out"] = former["left_out"]  # those of plates that were replaced are counted still
            for rows, matrix, left_out in _batches(lake, target, fitted, level, wanted):
                writer.add(rows, matrix, IDS[level])
                about["left_out"] += left_out
        writer.finish(about, IDS[level], gone=gone)
        return writer.rows - before


def _gone(held: store.Stored, changed: list[tuple[str, str, str]]) -> Rows:
    """Number the rows that were gone before, and those of plates that changed."""
    plates = pl.DataFrame(changed, schema=dict.fromkeys(_PLATE, pl.String), orient="row")
    found = held.rows.select(_PLATE).with_row_index("row").join(plates, on=_PLATE, how="semi")
    return np.union1d(held.gone, found["row"].to_numpy().astype(np.int64))


def _replicates(rows: pl.DataFrame) -> int:
    """Return how many wells the median treated row is made of; 1 for rows that are wells or less."""
    if "well_count" not in rows.columns:
        return 1
    treated = rows.filter(pl.col("control_type").ne_missing("negative"))["well_count"]
    middle = (treated if len(treated) else rows["well_count"]).median()
    return max(1, round(float(middle))) if isinstance(middle, int | float) else 1


def _settings(former: dict[str, Any] | None, kind: str | None, recall: float | None) -> dict[str, Any]:
    before = former or {}
    chosen = kind or before.get("kind", "flat")
    asked = recall or before.get("recall_asked") or 0.99
    return {"kind": chosen, "recall_asked": asked if chosen != "flat" else None}


def _batches(
    lake: Lake, target: FeatureSet, fitted: FittedRecipe, level: str, plates: Sequence[Plate] | None
) -> Iterator[tuple[pl.DataFrame, np.ndarray, int]]:
    """Read a level; cells and fields that have no cosine are left out and counted, as no recipe can mend them.

    Raises:
        SearchError: nothing is left.
    """
    is_any = False
    for rows, matrix in level_rows.batches(lake, target, fitted, level, plates=plates, bytes_at_once=_BYTES):
        if level not in _LEFT_OUT:
            yield rows, matrix, 0
            continue
        usable = np.isfinite(matrix).all(axis=1) & matrix.any(axis=1)
        is_any |= bool(usable.any())
        yield rows.filter(pl.Series(usable, dtype=pl.Boolean)), matrix[usable], int((~usable).sum())
    if level in _LEFT_OUT and not is_any and plates is None:
        message = (
            f"no {level} of feature set {target.name!r} has all its features: there is nothing to compare"
        )
        raise SearchError(message)


def _left_out_note(level: str, left_out: int) -> str | None:
    return (
        f"{left_out} {level}s miss a feature, or are all zeros, and cannot be compared" if left_out else None
    )


def _null(lake: Lake, target: FeatureSet, fitted: FittedRecipe, level: str, wells: int) -> Vectors:
    """Make the control profiles of a level above wells; of others they are rows of the index."""
    if level in STORED:
        return np.empty((0, len(fitted.feature_names)), np.float32)
    return controls.control_profiles(lake, target, fitted, wells)


def _about(lake: Lake, target: FeatureSet, fitted: FittedRecipe, level: str, marks: Marks) -> dict[str, Any]:
    """Describe an index: of which profiles it is, so that a stale one is found out."""
    plates = [[*key, mark] for key, mark in sorted(marks.plates.items())]
    return {
        "feature_set": target.name,
        "recipe": fitted.name,
        "level": level,
        "marks": {"whole": marks.whole, "plates": plates},
        "snapshot": lake.snapshot(),
    }


def _marks(about: dict[str, Any]) -> Marks:
    """Read of a card which profiles an index is of.

    Raises:
        SearchError: the card is damaged.
    """
    held = about["marks"]
    try:
        plates = {(source, batch, plate): mark for source, batch, plate, mark in held["plates"]}
        return Marks(held["whole"], plates)
    except (KeyError, TypeError, ValueError) as error:
        message = f"the card of an index of {about['level']}s cannot be read ({error}): build it again with --rebuild"
        raise SearchError(message) from error


def _is_worn(about: dict[str, Any], gone: int) -> bool:
    """Tell whether so much is gone, or came after the structure was made, that an index is to be built anew."""
    structure = about["structure"]
    covered = about["rows"] if structure is None else int(structure["settings"]["covered"])
    return bool(gone > _MOST_GONE * about["rows"] or about["rows"] - covered > _MOST_LATE * covered)


def _card(place: Path) -> dict[str, Any]:
    about = store.card(place)
    if about is None:
        message = f"index {place} was taken away while it was built: build it again"
        raise SearchError(message)
    return about


def _report(about: dict[str, Any], outcome: str, added: int, place: Path) -> IndexReport:
    structure = about["structure"]
    return IndexReport(
        about["feature_set"], about["recipe"], about["level"], about["kind"], outcome,
        int(about["rows"]) - int(about["gone_rows"]), int(about["dim"]), added,
        int(about["left_out"]),
        1.0 if structure is None else float(structure["settings"]["recall"]), f"{place}.json",
    )  # fmt: skip


def _place(lake: Lake, feature_set: str, recipe: str, level: str) -> Path:
    return lake.folder / INDEX_FOLDER / feature_set / f"{level}__{recipe}"
