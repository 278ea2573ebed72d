"""The tables that metrics read: profiles of a level, what is known of their rows, one value a row for each need."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse import profiles
from warehouse.errors import EvaluationError
from warehouse.evaluation.inputs import Inputs, assays_of, clusters_of, folds_of, pairs_of
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.nearest.labels import labelled
from warehouse.profiles import LABEL_KINDS, Profiles

#: What a batch is, for metrics that leave out, or look for, the same batch.
BATCH_KEYS = ("batch", "plate", "source")
_STORED = ("cell", "field", "well")
#: What a need is read from, for the message where a level does not have it.
_COLUMNS = {"treatments": "treatment", "compounds": "compound", "controls": "control_type"}


#: Whatever a metric can ask for.
NEEDS = (
    *_COLUMNS,
    "labels",
    "batches",
    "sources",
    "plates",
    "clusters",
    "folds",
    "pairs",
    "assays",
    "assay_names",
)
#: Kinds of label: annotations, and what a row is.
KINDS = (*LABEL_KINDS, "treatment", "compound")


@dataclass
class Table:
    """One level of one feature set, as metrics are given it.

    Attributes:
        profiles: the rows, labels and layout among their columns, and the matrix.
        labels: kind of label that is asked for.
        batch_key: of `BATCH_KEYS`.
        inputs: files that a user brought.
        notes: what to tell of the files.
        read: of the files, by need, what was read.
    """

    profiles: Profiles
    labels: str
    batch_key: str
    inputs: Inputs
    notes: list[str] = field(default_factory=list)
    read: dict[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For messages: the level and the feature set."""
        return f"{self.profiles.level} of feature set {self.profiles.feature_set.name!r}"

    def needs(self, asked: tuple[str, ...], label_kind: str | None) -> dict[str, object]:
        """Give what a metric asks for, by name.

        Args:
            asked: names of needs.
            label_kind: of `LABEL_KINDS`, or `treatment` or `compound` where the metric says so itself; None: as asked.

        Raises:
            EvaluationError: the level has no such thing, or the user has to bring a file for it.
        """
        return {need: self._need(need, label_kind or self.labels) for need in asked}

    def _need(self, need: str, label_kind: str) -> object:
        rows = self.profiles.rows
        if need == "labels":
            return self._labels(label_kind)
        if need in ("batches", "sources"):
            return self._sets(self.batch_key if need == "batches" else "source")
        if need == "plates":
            if self.profiles.level not in _STORED:
                message = (
                    f"a {self.profiles.level} is of many plates; this goes plate by plate: use --level well"
                )
                raise EvaluationError(message)
            return rows.select(pl.concat_str("source", "batch", "plate", separator="/")).to_series().to_list()
        if need in _COLUMNS:
            column = self._column(_COLUMNS[need])
            return (
                (column == "negative").fill_null(False).to_list() if need == "controls" else column.to_list()
            )
        return self._brought(need)

    def _brought(self, need: str) -> object:
        """What files say: each is read once for all metrics."""
        if need not in self.read:
            self.read |= self._from_file(need)
        return self.read[need]

    def _from_file(self, need: str) -> dict[str, object]:
        rows, inputs = self.profiles.rows, self.inputs
        if need == "clusters":
            if inputs.clusters is None:
                return {need: None}
            clusters, lost = clusters_of(inputs.clusters, rows)
            self._tell_lost(lost, inputs.clusters)
            return {need: clusters}
        if need == "folds":
            if inputs.folds is None:
                return {need: None}
            folds, lost = folds_of(inputs.folds, rows)
            self._tell_lost(lost, inputs.folds)
            self._tell_parted(folds, inputs.folds)
            return {need: folds}
        if need == "pairs":
            path = _given(inputs.pairs, "pairs")
            pairs, lost = pairs_of(path, rows)
            what = "1 pair names" if lost == 1 else f"{lost} pairs name"
            self._tell(f"{what} a row that is not there: {path}" if lost else None)
            return {need: pairs}
        if need in ("assays", "assay_names"):
            path = _given(inputs.assays, "assays")
            matrix, names, lost = assays_of(path, rows)
            self._tell_lost(lost, path)
            return {"assays": matrix, "assay_names": names}
        raise unknown(need, "need of a metric", NEEDS)

    def _tell(self, note: str | None) -> None:
        if note is not None and note not in self.notes:
            self.notes.append(note)

    def _tell_lost(self, lost: int, path: Path) -> None:
        what = "1 line names" if lost == 1 else f"{lost} lines name"
        self._tell(f"{what} no {self.profiles.level} of those scored: {path}" if lost else None)

    def _tell_parted(self, folds: NDArray[np.int64], path: Path) -> None:
        """Tell of compounds that are trained on and tested: a split by treatment flatters a method."""
        if "compound" not in self.profiles.rows.columns:
            return
        split = self.profiles.rows.select("compound", fold=pl.Series(folds)).filter(pl.col("fold") >= 0)
        parted = (
            split.drop_nulls().group_by("compound").agg(pl.col("fold").n_unique()).filter(pl.col("fold") > 1)
        )
        what = "1 compound is" if len(parted) == 1 else f"{len(parted)} compounds are"
        self._tell(f"{what} in several folds, and so trained on and tested: {path}" if len(parted) else None)

    def _column(self, name: str) -> pl.Series:
        if name not in self.profiles.rows.columns:
            message = f"a {self.profiles.level} has no {name}: score another level with --level"
            raise EvaluationError(message)
        return self.profiles.rows[name]

    def _labels(self, kind: str) -> list[set[str]]:
        """Labels a row; negative controls are no examples of a mechanism, nor of a replicated treatment."""
        if kind in LABEL_KINDS:
            found = [set(row or ()) for row in self._column(kind).to_list()]
        else:
            found = [set() if name is None else {name} for name in self._column(kind).to_list()]
        controls = self._column("control_type").to_list()
        return [set() if control == "negative" else own for own, control in zip(found, controls, strict=True)]

    def _sets(self, key: str) -> list[set[str]]:
        rows = self.profiles.rows
        many = {"batch": "batches", "plate": "plates", "source": "sources"}[key]
        if many in rows.columns:
            return [set(found or ()) for found in rows[many].to_list()]
        parts = {"source": ("source",), "batch": ("source", "batch"), "plate": ("source", "batch", "plate")}[
            key
        ]
        return [{name} for name in rows.select(pl.concat_str(parts, separator="/")).to_series()]


def read(
    lake: Lake,
    feature_set: str,
    recipe: str,
    level: str,
    where: str | None,
    labels: str,
    batch_key: str,
    inputs: Inputs,
) -> Table:
    """Read a level with layout and labels; cells, fields and wells get those of their well and treatment.

    Raises:
        UnknownNameError: no such feature set, level, kind of label or batch key.
        RecipeError: the recipe was never fitted, or plates wait for it.
        ProfileError: the predicate is not one.
        EvaluationError: no row, or a row misses an element.
    """
    if labels not in KINDS:
        raise unknown(labels, "kind of label", KINDS)
    if batch_key not in BATCH_KEYS:
        raise unknown(batch_key, "batch key", BATCH_KEYS)
    found = profiles.read(lake, feature_set, recipe=recipe, level=level, where=where)
    if found.rows.is_empty():
        message = f"feature set {feature_set!r} has no {level} to score: look at --where"
        raise EvaluationError(message)
    _refuse_missing(found)
    rows = found.rows
    if level in ("cell", "field"):
        layout = lake.frame(
            "SELECT source, batch, plate, well, treatment, compound, concentration, unit, control_type FROM main.wells"
        )
        keys = ["source", "batch", "plate", "well"]
        rows = rows.join(layout, on=keys, how="left", maintain_order="left", validate="m:1")
    if level in _STORED:
        rows = labelled(lake, rows)
    made = Profiles(found.feature_set, found.recipe, level, rows, found.matrix, found.feature_names)
    return Table(made, labels, batch_key, inputs)


def cell_counts(rows: pl.DataFrame) -> NDArray[np.float64]:
    """Cells a well of each row, (n,) float64; NaN where that is not known."""
    if "cell_count" not in rows.columns:
        return np.full(len(rows), np.nan)
    counts = rows["cell_count"].cast(pl.Float64)
    if "well_count" in rows.columns:
        counts = counts / rows["well_count"]
    return counts.fill_null(np.nan).to_numpy()


def permuted(need: str, values: object, order: NDArray[np.int64]) -> object:
    """Deal what is known of rows to other rows: row i then has what row order[i] had.

    Clusters that a method brings itself are made of the profiles, and stay with them.
    """
    if need in ("assay_names", "clusters") or values is None:
        return values
    if need == "pairs":
        place = np.argsort(order)
        return place[np.asarray(values)]
    if isinstance(values, np.ndarray):
        return values[order]
    assert isinstance(values, list)
    return [values[row] for row in order]


def _refuse_missing(found: Profiles) -> None:
    """Refuse missing elements by name: an average over fewer features would be another similarity."""
    missing = np.isnan(found.matrix)
    if missing.any():
        row, feature = np.argwhere(missing)[0]
        message = (
            f"{found.names()[row]} has no value for feature {found.feature_names[feature]!r} "
            f"({int(missing.any(axis=1).sum())} of {len(missing)} {found.level}s miss one): correct the feature "
            "set with a recipe that deals with missing values"
        )
        raise EvaluationError(message)


def _given(path: Path | None, name: str) -> Path:
    if path is None:
        message = f"this metric needs a file of {name}: give it with --{name}"
        raise EvaluationError(message)
    return path
