"""Phenotypes: what a compound changes in a cell, and how much of it at a concentration."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True)
class CellParameters:
    """What a cell looks like on average; the defaults are an untreated cell at about 0.6 µm a pixel."""

    #: Mean radius of the nucleus, px.
    nucleus_radius: float = 12.0
    #: Long over short axis of the nucleus.
    nucleus_elongation: float = 1.25
    #: Mean radius of the cell, px.
    cell_radius: float = 30.0
    #: Long over short axis of the cell.
    cell_elongation: float = 1.35
    #: Size of the outline's low-frequency noise, share of the radius.
    irregularity: float = 0.30
    #: Share of cells with two or three nuclei.
    multinucleated: float = 0.03
    #: Share of cells in mitosis.
    mitotic: float = 0.04
    #: Chromatin condensation, 0 to 1.
    condensation: float = 0.0
    #: Staining of each channel over the cell, 1 = untreated.
    er_intensity: float = 1.0
    rna_intensity: float = 1.0
    mito_intensity: float = 1.0
    #: Distance over which the ER's stain falls off from the nucleus, px.
    er_reach: float = 10.0
    #: Mean number of nucleoli in a nucleus.
    nucleoli: float = 3.0
    #: Radius of a nucleolus, px.
    nucleolus_radius: float = 2.1
    #: Strength of actin stress fibres.
    actin_fibres: float = 0.35
    #: Golgi apparatus: 0 = one compact spot, 1 = scattered over the cell.
    golgi_dispersion: float = 0.08
    #: Mitochondria: 0 = a network, 1 = separate puncta.
    mito_fragmentation: float = 0.1
    #: Share of cells that live.
    survival: float = 1.0


#: Parameters that are shares, and so end at 1.
SHARES = frozenset(
    {"multinucleated", "mitotic", "condensation", "golgi_dispersion", "mito_fragmentation", "survival"}
)
UNTREATED = CellParameters()


@dataclass(frozen=True)
class Phenotype:
    """A named change of cells: the value of each changed parameter at full effect (effect size 1)."""

    name: str
    at_full_effect: Mapping[str, float]


#: All phenotypes; a screen uses the first `SimulatorSettings.phenotypes` of them.
PHENOTYPES = (
    Phenotype("large-nuclei", {"nucleus_radius": 17.5, "cell_radius": 35.0}),
    Phenotype("small-cells", {"cell_radius": 21.0, "nucleus_radius": 10.5}),
    Phenotype("round-cells", {"cell_radius": 23.0, "irregularity": 0.03, "cell_elongation": 1.03}),
    Phenotype("elongated-cells", {"cell_elongation": 3.0, "nucleus_elongation": 1.8}),
    Phenotype("multinucleated", {"multinucleated": 0.9, "cell_radius": 36.0}),
    Phenotype("condensed-chromatin", {"condensation": 1.0, "nucleus_radius": 9.5}),
    Phenotype("er-stress", {"er_intensity": 2.2, "er_reach": 18.0}),
    Phenotype("nucleolar-fragmentation", {"nucleoli": 10.0, "nucleolus_radius": 1.3, "rna_intensity": 0.7}),
    Phenotype("stress-fibres", {"actin_fibres": 2.4, "cell_elongation": 1.7}),
    Phenotype("golgi-dispersal", {"golgi_dispersion": 1.0}),
    Phenotype("mito-fragmentation", {"mito_fragmentation": 1.0, "mito_intensity": 1.5}),
    Phenotype("toxic", {"survival": 0.2, "cell_radius": 25.0, "condensation": 0.35}),
    Phenotype("mitotic-arrest", {"mitotic": 0.75, "survival": 0.7}),
    Phenotype("mito-loss", {"mito_intensity": 0.3}),
)


def hill(concentration: float, half_effect: float, slope: float = 1.5) -> float:
    """Share of the full effect at a concentration.

    Args:
        concentration: uM.
        half_effect: concentration of half the effect (EC50), uM, above 0.
        slope: Hill coefficient.

    Returns:
        A value from 0 to 1.

    Source:
        Hill 1910; c^h / (EC50^h + c^h).
    """
    return float(concentration**slope / (half_effect**slope + concentration**slope))


def parameters_at(
    phenotype: Phenotype | None, effect: float, quirk: np.ndarray | None = None
) -> CellParameters:
    """Mean appearance of a cell under a phenotype of a given effect size.

    Args:
        phenotype: the change, or None for none.
        effect: 0 = untreated, 1 = full effect; changes are linear in it.
        quirk: (number of parameters,) log-factors by which one compound's cells differ from its phenotype's,
            applied in proportion to `effect`.

    Returns:
        The parameters; none below 0, and no share above 1.
    """
    changes = {} if phenotype is None else dict(phenotype.at_full_effect)
    values = {}
    for position, entry in enumerate(fields(CellParameters)):
        base = getattr(UNTREATED, entry.name)
        value = base + effect * (changes.get(entry.name, base) - base)
        if quirk is not None:
            value *= float(np.exp(effect * quirk[position]))
        if entry.name.endswith("elongation"):
            value = max(value, 1.0)
        values[entry.name] = min(max(value, 0.0), 1.0) if entry.name in SHARES else max(value, 0.0)
    return replace(UNTREATED, **values)
