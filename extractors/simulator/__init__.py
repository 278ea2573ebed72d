"""A synthetic Cell Painting screen: images, layout, annotations and the truth behind them.

Nothing here is a measurement. Plates are called `SYNTH-…`, compounds `synthol-…`, the source `synthetic`.
"""

from extractors.simulator.layout import (
    POSITIVE_CONTROL,
    SOURCE,
    VEHICLE,
    simulated_annotations,
    simulated_layout,
)
from extractors.simulator.phenotypes import PHENOTYPES, Phenotype
from extractors.simulator.profiles import ProfileModel, profile_model, simulate_profiles
from extractors.simulator.screen import SimulatedScreen, simulate_screen
from extractors.simulator.settings import CHANNELS, SimulatorSettings

__all__ = [
    "CHANNELS",
    "PHENOTYPES",
    "POSITIVE_CONTROL",
    "SOURCE",
    "VEHICLE",
    "Phenotype",
    "ProfileModel",
    "SimulatedScreen",
    "SimulatorSettings",
    "profile_model",
    "simulate_profiles",
    "simulate_screen",
    "simulated_annotations",
    "simulated_layout",
]
