"""Filters: steps that leave features out, and one that fills in what is missing.

The fit of a filter holds the mask ``keep`` and, under a name of its own, the figure of each feature that decided.
A feature without any value among the fitted wells is left out by every filter that looks at values.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from warehouse import feature_lists
from warehouse.errors import RecipeError
from warehouse.names import unknown
from warehouse.steps.base import Fit, Matrix, Step, Wells, mask, mean_of, median_of, present_and_count
from warehouse.steps.checks import check_number, column
from warehouse.steps.scaling import is_constant, quantiles_of, size_of, variance_of

#: CellProfiler features that are known to be unstable: overlap and rank-weighted colocalisation of two channels in
#: nuclei, and the coarsest granularities there, which lie beyond a nucleus' size.
UNSTABLE = r"Nuclei_(Correlation_(Manders|RWC)|Granularity_1[456])_.+"


@dataclass(frozen=True)
class Filter(Step):
    """A step that only leaves features out."""

    scope: str = "all"
    on: str = "all"

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return X itself: what `keep` leaves out goes afterwards."""
        return X


@dataclass(frozen=True)
class Variance(Filter):
    """Keep features whose variance (ddof 0) is above a threshold. NaN is skipped.

    Source: pycytominer 1.7.1 `feature_select(operation="variance_threshold")`; Kim et al. 2025 take 1e-5, once on the
    controls and once on the treated wells.
    """

    name: ClassVar[str] = "variance"
    paper: ClassVar[str] = "Kim et al. 2025"
    threshold: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "threshold", self.threshold, 0)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit variance and keep, each (d,)."""
        self.check_rows(X, wells)
        present, count = present_and_count(X)
        variance = variance_of(X, mean_of(X, present, count), count)
        # The mean of equal values is a rounding away from them: their variance is 0 all the same.
        variance[is_constant(X)] = 0.0
        return {"variance": variance, "keep": mask(variance > self.threshold)}


@dataclass(frozen=True)
class MadVariation(Filter):
    """Keep features whose MAD is above a share of their median's size, on every plate; a median of 0 does not pass.

    Source: the JUMP production recipe's selection of variant features (MAD not 0 and |MAD / median| > 0.001).
    """

    name: ClassVar[str] = "mad_variation"
    paper: ClassVar[str] = "Arevalo et al. 2024"
    scope: str = "plate"
    threshold: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "threshold", self.threshold, 0)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit variation (MAD over |median|; 0 where the median is) and keep, each (d,)."""
        self.check_rows(X, wells)
        _, count = present_and_count(X)
        median = median_of(X, count)
        mad = median_of(np.abs(X - median), count)
        variation = np.divide(mad, np.abs(median), out=np.zeros_like(mad), where=median != 0)
        return {"variation": variation, "keep": mask((mad > 0) & (variation > self.threshold))}


@dataclass(frozen=True)
class Frequency(Filter):
    """Keep features of many values, none of which is by far the most frequent.

    The second most frequent value must be at least `freq_cut` times as frequent as the first, and the share of
    different values among the wells at least `unique_cut`. NaN is no value, but the well counts.

    Source: pycytominer 1.7.1 `feature_select(operation="frequency_threshold")`.
    """

    name: ClassVar[str] = "frequency"
    freq_cut: float = 0.05
    unique_cut: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "freq_cut", self.freq_cut, 0, 1)
        check_number(self.name, "unique_cut", self.unique_cut, 0, 1)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit frequency (second over first), unique (different values over wells) and keep, each (d,)."""
        self.check_rows(X, wells)
        frequency, unique = np.zeros(X.shape[1]), np.zeros(X.shape[1])
        for number, values in enumerate(X.T):
            there = np.sort(values[~np.isnan(values)])
            starts = np.flatnonzero(np.concatenate((there[:1] == there[:1], there[1:] != there[:-1])))
            unique[number] = len(starts) / len(X)
            if len(starts) > 1:
                lengths = np.diff(starts, append=len(there))
                second, first = np.partition(lengths, -2)[-2:]
                frequency[number] = second / first
        keep = (frequency >= self.freq_cut) & (unique >= self.unique_cut) & (unique > 0)
        return {"frequency": frequency, "unique": unique, "keep": mask(keep)}


@dataclass(frozen=True)
class DropMissing(Filter):
    """Keep features that lack no more than a share of their values; cutoff 0 for those that lack none.

    Source: pycytominer 1.7.1 `feature_select(operation="drop_na_columns")`.
    """

    name: ClassVar[str] = "drop_missing"
    minimum: ClassVar[int] = 1
    cutoff: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "cutoff", self.cutoff, 0, 1)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit missing (a share) and keep, each (d,)."""
        self.check_rows(X, wells)
        missing = np.isnan(X).sum(axis=0) / len(X)
        return {"missing": missing, "keep": mask(missing <= self.cutoff)}


@dataclass(frozen=True)
class Outliers(Filter):
    """Keep features with no |x| above a cutoff: those that scaling blew up.

    With `quantile` below 1 it is that quantile of |x| which must not be above: a few outliers are then let pass.

    Source: pycytominer 1.7.1 `feature_select(operation="drop_outliers")`; the JUMP production recipe takes
    ``outliers(cutoff=100,quantile=0.99)``.
    """

    name: ClassVar[str] = "outliers"
    minimum: ClassVar[int] = 1
    cutoff: float = 500.0
    quantile: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "cutoff", self.cutoff, 0)
        check_number(self.name, "quantile", self.quantile, 0, 1)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit largest (|x|, or its quantile) and keep, each (d,)."""
        self.check_rows(X, wells)
        _, count = present_and_count(X)
        largest = size_of(X) if self.quantile == 1 else quantiles_of(np.abs(X), count, (self.quantile,))[0]
        return {"largest": largest, "keep": mask((largest <= self.cutoff) & (count > 0))}


@dataclass(frozen=True)
class Noise(Filter):
    """Keep features that replicates agree on: the mean, over treatments, of the sd within one is at most a cutoff.

    Profiles must be scaled before, so that one cutoff suits all features. The sd has ddof 0, so a treatment with
    one well has sd 0. Wells without a treatment are left aside. `by` may be ``compound``.

    Source: pycytominer 1.7.1 `feature_select(operation="noise_removal")`.
    """

    name: ClassVar[str] = "noise"
    cutoff: float = 0.8
    by: str = "treatment"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "cutoff", self.cutoff, 0)
        if self.by not in ("treatment", "compound"):
            raise unknown(self.by, f"grouping (by=) of step {self.name}", ("treatment", "compound"))

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit noise (the mean sd) and keep, each (d,)."""
        self.check_rows(X, wells)
        labels = column(wells, self.by, self.name)
        known = labels.is_not_null().to_numpy()
        group = labels.drop_nulls().rank("dense").to_numpy().astype(np.intp) - 1
        sizes = np.bincount(group)
        if not (sizes > 1).any():
            message = (
                f"{self.name}: no {self.by} has two wells in {wells.place} ({len(sizes)} have one, {(~known).sum()} "
                f"wells have none): bring a layout with replicates, or leave {self.name} out of the recipe"
            )
            raise RecipeError(message)
        order = np.argsort(group, kind="stable")
        ordered = X[known][order]
        starts = np.cumsum(sizes) - sizes
        present = ~np.isnan(ordered)
        count = np.add.reduceat(present, starts, axis=0, dtype=np.intp)
        ordered[~present] = 0.0
        mean = np.add.reduceat(ordered, starts, axis=0) / np.maximum(count, 1)
        ordered -= np.repeat(mean, sizes, axis=0)
        ordered[~present] = 0.0
        sd = np.sqrt(np.add.reduceat(np.square(ordered, out=ordered), starts, axis=0) / np.maximum(count, 1))
        groups = (count > 0).sum(axis=0)
        noise = sd.sum(axis=0) / np.maximum(groups, 1)
        return {"noise": noise, "keep": mask((noise <= self.cutoff) & (groups > 0))}


@dataclass(frozen=True)
class Blocklist(Filter):
    """Leave out features by name: those of a file, those that match a pattern, or both.

    Without either it is CellProfiler's features that are known to be unstable, which pycytominer's own list names
    for five channels: Nuclei_Correlation_Manders_*, Nuclei_Correlation_RWC_* and Nuclei_Granularity_14 to 16.
    The file is read when the step is fitted; later plates follow the fit. In a recipe's text neither may hold a
    comma.

    Attributes:
        file: text, one feature a line; names that no feature has mean nothing.
        pattern: a regular expression that a whole name matches.

    Source: Way 2019, doi:10.6084/m9.figshare.10255811, as in pycytominer 1.7.1 `feature_select(operation="blocklist")`.
    """

    name: ClassVar[str] = "blocklist"
    minimum: ClassVar[int] = 0
    paper: ClassVar[str] = "Way 2019"
    file: str = ""
    pattern: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.pattern)
        except re.error as error:
            message = (
                f"{self.name}(pattern={self.pattern}): no regular expression, {error}: write such as Image_.*"
            )
            raise RecipeError(message) from None

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit keep (d,)."""
        if len(wells.features) != X.shape[1]:
            message = (
                f"{self.name}: the {X.shape[1]} features of {wells.place} have no names to compare with the list: "
                f"leave {self.name} out of the recipe, or import the profiles with names"
            )
            raise RecipeError(message)
        listed = self._listed()
        pattern = self.pattern or ("" if self.file else UNSTABLE)
        expression = re.compile(pattern) if pattern else None
        is_blocked = [
            name in listed or (expression is not None and expression.fullmatch(name) is not None)
            for name in wells.features
        ]
        return {"keep": mask(~np.array(is_blocked, dtype=bool))}

    def _listed(self) -> frozenset[str]:
        if not self.file:
            return frozenset()
        try:
            text = Path(self.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            message = (
                f"{self.name}(file={self.file}): {reason}: give a text file with one feature name a line"
            )
            raise RecipeError(message) from None
        return frozenset(feature_lists.from_text(text))


@dataclass(frozen=True)
class Impute(Step):
    """Fill a missing element with the feature's median over the fitted wells, as sphering cannot do without.

    A value that was missing is an estimate afterwards, and nothing in the profile tells it from a measured one; the
    fit holds how many there were. Leave out features that lack many first (`drop_missing`). A feature without any
    value is marked 0 in ``keep``.
    """

    name: ClassVar[str] = "impute"
    minimum: ClassVar[int] = 1
    scope: str = "all"
    on: str = "all"

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit median, missing (elements among the fitted wells) and keep, each (d,)."""
        self.check_rows(X, wells)
        _, count = present_and_count(X)
        missing = (len(X) - count).astype(np.float64)
        return {"median": median_of(X, count), "missing": missing, "keep": mask(count > 0)}

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return X with the median where an element is missing."""
        return np.where(np.isnan(X), fit["median"], X)

    def notes(self, fit: Fit) -> tuple[str, ...]:
        """Say how many elements became estimates."""
        filled = fit["missing"] * (fit["keep"] > 0)
        if not filled.any():
            return ()
        return (f"{filled.sum():.0f} missing elements of {(filled > 0).sum()} features are estimates",)
