"""Which cells a training takes, what its classes are, and which cells are held out; checked before anything is cut."""

import hashlib
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from extractors.training import samplers, splits
from extractors.training.data import Cells, codes
from extractors.training.settings import Settings
from warehouse import profiles
from warehouse.errors import TrainingError
from warehouse.lake import Lake
from warehouse.metrics.strength import treatment_strength

_PLATE = ("source", "batch", "plate")


@dataclass(frozen=True)
class Chosen:
    """The cells of a training, and what a person should know of the choice."""

    cells: Cells
    notes: tuple[str, ...]

    def fingerprint(self) -> list[object]:
        """Give what decides an epoch's plan, as a JSON value: cells, labels and split."""
        cells = self.cells
        arrays = (
            cells.rows,
            cells.labels,
            cells.compounds,
            cells.doses,
            cells.levels,
            cells.plates,
            cells.wells,
        )
        hasher = hashlib.blake2b(digest_size=16)
        for array in (*arrays, cells.is_control, cells.is_held_out):
            hasher.update(np.ascontiguousarray(array).tobytes())
        return [hasher.hexdigest(), list(cells.classes)]


def choose(lake: Lake, rows: pl.DataFrame, settings: Settings) -> Chosen:
    """Choose the cells of a training among those that are known.

    Args:
        lake: they are of; read where treatments are ranked by strength.
        rows: one a cell, as `warehouse.known_cells.KnownCells.rows`, in the order of the store.
        settings: of the method.

    Returns:
        The cells, classes in the order of their names.

    Raises:
        TrainingError: a class of one cell, fewer than two classes, or nothing left to validate on; with the names.
    """
    label = settings.label
    rows = rows.with_row_index("row")
    notes = []
    named = rows.filter(pl.col(label).is_not_null())
    if len(named) < len(rows):
        notes.append(f"{len(rows) - len(named)} cells of wells without a {label} are not trained on")
    if settings.strong_by:
        named, note = _strong(lake, named, settings)
        notes.append(note)
    if settings.control_wells:
        before = len(named)
        named = _few_controls(named, settings)
        if left := before - len(named):
            notes.append(
                f"{left} cells of negative controls beyond {settings.control_wells} wells a plate left out"
            )
    named, note = _large_classes(named, settings)
    notes += [note] if note else []
    cells = _cells(named, settings)
    if settings.holdout != "none":
        cells, note = _held_out(cells, settings)
        notes += [note] if note else []
    return Chosen(cells, tuple(notes))


def _large_classes(rows: pl.DataFrame, settings: Settings) -> tuple[pl.DataFrame, str | None]:
    counts = Counter(rows[settings.label].to_list())
    least = max(settings.least_cells, 2)
    few = sorted(name for name, count in counts.items() if count < least)
    note = None
    if few and not settings.least_cells:
        message = (
            f"{len(few)} {settings.label}s have one cell (first: {few[0]!r}), of which nothing can be learned: leave "
            "them out with --set least_cells=2, or with --where"
        )
        raise TrainingError(message)
    if few:
        left = sum(counts[name] for name in few)
        note = f"{len(few)} {settings.label}s with fewer than {least} cells left out ({left} cells; first: {few[0]!r})"
        rows = rows.filter(~pl.col(settings.label).is_in(few))
    kept = sorted(set(counts) - set(few))
    if len(kept) < 2:
        what = f"only {kept[0]!r}" if kept else "none"
        message = (
            f"training needs cells of two {settings.label}s or more, and there is {what} among {len(rows)} cells: "
            "widen --where, or lower least_cells"
        )
        raise TrainingError(message)
    return rows, note


def _cells(rows: pl.DataFrame, settings: Settings) -> Cells:
    classes = tuple(rows[settings.label].unique().sort().to_list())
    number = {name: position for position, name in enumerate(classes)}
    labels = np.array([number[name] for name in rows[settings.label]], dtype=np.int64)
    compounds = codes(rows, ["compound"])
    doses, levels = samplers.dose_ranks(
        compounds, rows["concentration"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    )
    is_control = _is_control(rows)
    if settings.shuffle_labels:  # all that is known of a cell's treatment goes together
        dealt = np.random.default_rng([settings.seed, 2**30]).permutation(len(rows))
        labels, compounds, doses, levels, is_control = (
            each[dealt] for each in (labels, compounds, doses, levels, is_control)
        )
    return Cells(
        rows["row"].to_numpy().astype(np.int64), labels, compounds, doses, levels, codes(rows, _PLATE),
        codes(rows, [*_PLATE, "well"]), is_control, np.zeros(len(rows), dtype=bool), classes,
    )  # fmt: skip


def _is_control(rows: pl.DataFrame) -> np.ndarray:
    return (rows["control_type"] == "negative").fill_null(value=False).to_numpy()


def _held_out(cells: Cells, settings: Settings) -> tuple[Cells, str | None]:
    """Hold cells out; where labels are not shuffled, each class keeps cells to train on."""
    rng = np.random.default_rng([settings.seed, 2**30 + 1])
    note = None
    if settings.holdout == "cells":
        held = splits.leave_cells_out(cells.wells, settings.holdout_share, rng)
    else:
        held, missed = splits.leave_plates_out(cells.labels, cells.plates, settings.holdout_share, rng)
        if missed:
            note = (
                f"{missed} of {len(cells.classes)} classes stand on one plate only, and are not validated on"
            )
    if not held.any():
        message = (
            f"holdout={settings.holdout} leaves nothing out of {len(cells)} cells of {len(np.unique(cells.plates))} "
            "plates: use more cells or plates, or holdout=none"
        )
        raise TrainingError(message)
    return replace(cells, is_held_out=held), note


def _few_controls(rows: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    rng = np.random.default_rng([settings.seed, 2**30 + 2])
    keep = splits.cap_control_wells(
        codes(rows, _PLATE), codes(rows, [*_PLATE, "well"]), _is_control(rows), settings.control_wells, rng
    )
    return rows.filter(pl.Series(keep))


def _strong(lake: Lake, rows: pl.DataFrame, settings: Settings) -> tuple[pl.DataFrame, str]:
    """Keep the treatments of Moshkov's combined set, by the strength of their wells; negative controls stay."""
    feature_set, _, recipe = settings.strong_by.partition(":")
    wells = profiles.read(lake, feature_set, recipe=recipe or "none", level="well")
    table = wells.rows.with_row_index("at")
    plates = table.select(pl.concat_str(_PLATE, separator="/")).to_series()
    strengths: dict[tuple[str, str], float] = {}
    for (source,), part in table.group_by("source", maintain_order=True):
        at = part["at"].to_numpy()
        score = treatment_strength(
            wells.matrix[at], part["treatment"].to_list(), plates[at].to_list(), _is_control(part)
        )
        assert score.per_group is not None
        found = score.per_group.select("treatment", "value").iter_rows()
        strengths |= {(str(source), name): value for name, value in found}
    is_control = pl.Series(_is_control(rows))
    treated = rows.filter(~is_control).group_by("source", "treatment").len().sort("source", "treatment")
    choice = splits.combined(
        codes(treated, ["source"]),
        codes(treated, ["treatment"]),
        np.array([strengths.get(key, np.nan) for key in treated.select("source", "treatment").iter_rows()]),
        treated["len"].to_numpy().astype(np.int64),
        strongest=settings.strongest,
        shared_first=settings.shared_first,
        least_cells=settings.least_cells,
    )
    chosen = treated.filter(pl.Series(choice.is_chosen)).select("source", "treatment")
    strong = rows.filter(~is_control).join(chosen, on=chosen.columns, how="semi")
    kept = pl.concat([rows.filter(is_control), strong]).sort("row")
    reasons = ", ".join(f"{count} {reason}" for reason, count in choice.left_out.items())
    note = (
        f"{chosen['treatment'].n_unique()} of {treated['treatment'].n_unique()} treatments are trained on, by strength "
        f"in {settings.strong_by}; left out: {reasons or 'none'}"
    )
    return kept, note
