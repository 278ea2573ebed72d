"""The steps that recipes are made of: each a frozen dataclass, `STEPS` lists them all."""

from warehouse.steps.alignment import TVN, Coral
from warehouse.steps.base import COLUMNS, Fit, Matrix, Step, Wells, refuse_missing
from warehouse.steps.components import PCA
from warehouse.steps.correlation import Correlation
from warehouse.steps.filters import (
    Blocklist,
    DropMissing,
    Frequency,
    Impute,
    MadVariation,
    Noise,
    Outliers,
    Variance,
)
from warehouse.steps.harmony import Harmony
from warehouse.steps.ranks import InverseNormal
from warehouse.steps.regression import CellCount, WellPosition
from warehouse.steps.scaling import Center, MadRobustize, Robustize, Standardize
from warehouse.steps.sphering import Sphering

__all__ = ["COLUMNS", "STEPS", "Fit", "Matrix", "Step", "Wells", "refuse_missing"]

#: In the order in which `wellhouse recipes` lists them.
STEPS: tuple[type[Step], ...] = (
    Standardize, Robustize, MadRobustize, Center, InverseNormal,
    Variance, MadVariation, Frequency, Correlation, DropMissing, Impute, Outliers, Noise, Blocklist,
    WellPosition, CellCount,
    Sphering, PCA, TVN, Coral, Harmony,
)  # fmt: skip
