"""Synthetic well profiles: numbers only, with treatment effects and batch effects that are known exactly."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from extractors.simulator.layout import POSITIVE_CONTROL, compounds, plan_wells, simulated_layout
from extractors.simulator.settings import SimulatorSettings, Stream
from warehouse.errors import ScreenError

#: Directions in which wells vary whatever their treatment, and in which a batch mixes features.
NUISANCE_RANK = 5
MIXING_RANK = 4


@dataclass(frozen=True)
class ProfileModel:
    """The truth behind simulated profiles.

    A well of batch b with true profile z reads ``gain_b * z + (z @ right_b) @ left_b + shift_b``.

    Args:
        names: the compounds; the last is the positive control.
        effects: (compounds, dim) change of the true profile z at effect size 1.
        nuisance: (NUISANCE_RANK, dim) directions of well-to-well variation, shared by all batches.
        gain: (batches, dim) factor of each feature.
        shift: (batches, dim) offset of each feature.
        left: (batches, MIXING_RANK, dim) and
        right: (batches, dim, MIXING_RANK) the mixing of features.
    """

    names: tuple[str, ...]
    effects: np.ndarray
    nuisance: np.ndarray
    gain: np.ndarray
    shift: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def through_batch(self, true: np.ndarray, batch: int) -> np.ndarray:
        """Turn true profiles (n, dim) into what the batch of this index reads, (n, dim)."""
        mixed: np.ndarray = (true @ self.right[batch]) @ self.left[batch]
        return np.asarray(self.gain[batch] * true + mixed + self.shift[batch])


def profile_model(settings: SimulatorSettings, dim: int, effect_strength: float = 1.2) -> ProfileModel:
    """Draw the effects and batch effects of simulated profiles.

    Args:
        settings: seed, phenotypes, compounds, batches and `batch_strength`.
        dim: number of features.
        effect_strength: length of a full effect over the length of a well's independent noise.

    Returns:
        The model. Compounds of one phenotype share its direction and each adds a quarter of its own.
    """
    if dim < 1:
        message = f"simulated profiles need at least 1 feature, but dim is {dim}"
        raise ScreenError(message)
    rng = settings.generator(Stream.PROFILE_EFFECT, dim)
    of_phenotype = rng.standard_normal((settings.phenotypes + 1, dim))
    known = compounds(settings)
    group = [i // settings.compounds_per_phenotype for i in range(len(known))] + [settings.phenotypes]
    own = rng.standard_normal((len(group), dim))
    nuisance = rng.standard_normal((NUISANCE_RANK, dim))
    strength = settings.batch_strength
    gain, shift, left, right = [], [], [], []
    for batch in range(settings.batches):
        of_batch = settings.generator(Stream.PROFILE_BATCH, batch, dim)
        gain.append(np.exp(0.2 * strength * of_batch.standard_normal(dim)))
        shift.append(strength * of_batch.standard_normal(dim))
        left.append(0.3 * strength * of_batch.standard_normal((MIXING_RANK, dim)))
        right.append(of_batch.standard_normal((dim, MIXING_RANK)) / np.sqrt(dim))
    return ProfileModel(
        names=(*(compound.name for compound in known), POSITIVE_CONTROL),
        effects=effect_strength * (of_phenotype[group] + 0.25 * own),
        nuisance=nuisance,
        gain=np.stack(gain),
        shift=np.stack(shift),
        left=np.stack(left),
        right=np.stack(right),
    )


def simulate_profiles(
    settings: SimulatorSettings,
    dim: int = 64,
    *,
    effect_strength: float = 1.2,
    nuisance_strength: float = 0.5,
) -> tuple[np.ndarray, pl.DataFrame]:
    """Simulate one profile a well, without images.

    Args:
        settings: the screen; `noise` is the standard deviation of a well's independent noise, and
            `batch_strength` scales the linear batch effect and the plates' offsets.
        dim: number of features.
        effect_strength: length of a full effect over the length of a well's independent noise.
        nuisance_strength: size of variation along directions shared by all wells, which sphering takes out.

    Returns:
        X, float32 (wells, dim), and one row of metadata a well in the same order: source, batch, plate, well,
        compound, concentration, unit, control_type, moa (null for vehicle). `profile_model` with the same
        settings, dim and strength gives the truth behind them.
    """
    model = profile_model(settings, dim, effect_strength)
    plans = plan_wells(settings)
    index = {name: i for i, name in enumerate(model.names)}
    profiles = np.empty((len(plans), dim), np.float32)
    wells = settings.wells_per_plate
    for first in range(0, len(plans), wells):
        plate = plans[first : first + wells]
        rng = settings.generator(Stream.PROFILE_PLATE, plate[0].batch, plate[0].plate, dim)
        true = settings.noise * rng.standard_normal((wells, dim))
        true += nuisance_strength * rng.standard_normal((wells, NUISANCE_RANK)) @ model.nuisance
        for row, plan in enumerate(plate):
            if plan.compound is not None:
                true[row] += plan.effect * model.effects[index[plan.compound.name]]
        offset = 0.2 * settings.batch_strength * rng.standard_normal(dim)
        profiles[first : first + wells] = model.through_batch(true, plate[0].batch) + offset
    moa = [None if plan.compound is None else plan.compound.phenotype.name for plan in plans]
    return profiles, simulated_layout(settings).with_columns(pl.Series("moa", moa, dtype=pl.String))
