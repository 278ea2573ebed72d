"""Microscope, staining and camera: what makes batches, plates and corners differ."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from extractors.simulator.settings import CHANNELS, PIXEL_TYPES, SimulatorSettings, Stream

_COUNT = len(CHANNELS)
#: Camera offset and the medium's glow, photo-electrons; read noise, photo-electrons (standard deviation).
OFFSET = 120.0
GLOW = 60.0
READ_NOISE = 6.0


@dataclass(frozen=True)
class Optics:
    """How one plate was stained and imaged; each array has one entry a channel, unless said otherwise.

    Args:
        gain: factor on all light.
        offset: camera offset, photo-electrons.
        blur: standard deviation of the point-spread function, px.
        haze: share of the light that is out of focus.
        bleed: (5, 5) share of each channel's light (column) that reaches a channel (row); diagonal 1.
        light: (5, H, W) illumination, 1 where it is brightest.
    """

    gain: np.ndarray
    offset: np.ndarray
    blur: np.ndarray
    haze: np.ndarray
    bleed: np.ndarray
    light: np.ndarray


def illumination(rng: np.random.Generator, size: int, strength: float) -> np.ndarray:
    """Vignetting of each channel: bright near the middle, `strength` of the light lost in the corners.

    Args:
        rng: source of chance for each channel's bright point and strength.
        size: width and height, px.
        strength: mean share of the light lost at a corner.

    Returns:
        float32 (5, size, size), at most 1.
    """
    axis = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    fields = []
    for _ in range(_COUNT):
        x0, y0 = rng.uniform(-0.15, 0.15, 2)
        loss = strength * rng.uniform(0.8, 1.0)
        distance = (axis[None, :] - x0) ** 2 + (axis[:, None] - y0) ** 2
        fields.append(1.0 - loss * distance / distance.max())
    return np.stack(fields).astype(np.float32)


def plate_optics(settings: SimulatorSettings, batch: int, plate: int) -> Optics:
    """Optics of one plate: the batch's, and a small change of gain from plate to plate."""
    strength = settings.batch_strength
    of_batch = settings.generator(Stream.BATCH, batch)
    gain = np.exp(0.30 * strength * of_batch.standard_normal(_COUNT))
    offset = OFFSET * np.exp(0.35 * strength * of_batch.standard_normal(_COUNT))
    blur = 0.75 + 0.35 * strength * np.abs(of_batch.standard_normal(_COUNT))
    haze = 0.10 + 0.06 * strength * np.abs(of_batch.standard_normal(_COUNT))
    bleed = np.eye(_COUNT)
    # Spectra overlap between neighbours only: ER and RNA most, then RNA and AGP, as in the assay.
    for row, column, share in ((1, 2, 0.10), (2, 1, 0.10), (2, 3, 0.06), (3, 2, 0.06)):
        bleed[row, column] = share * np.exp(0.5 * strength * of_batch.standard_normal())
    light = illumination(of_batch, settings.field_px, settings.illumination)
    of_plate = settings.generator(Stream.PLATE, batch, plate)
    gain = gain * np.exp(0.08 * strength * of_plate.standard_normal(_COUNT))
    return Optics(gain, offset, blur, haze, bleed, light)


def expose(
    rng: np.random.Generator, scene: np.ndarray, optics: Optics, noise: float, dtype: str, stain: np.ndarray
) -> np.ndarray:
    """Turn a scene into what the camera writes.

    Args:
        rng: source of chance for the noise.
        scene: float32 (5, H, W), photo-electrons, no background.
        optics: how the plate is imaged.
        noise: multiplier of shot and read noise; 0 = none.
        dtype: uint16 or uint8.
        stain: (5,) factor of each channel's staining in this well.

    Returns:
        (5, H, W) in `dtype`. Shot noise is Gaussian with the Poisson distribution's variance: with the offset
        and the medium's glow no pixel has so few photo-electrons that the two could be told apart.
    """
    size = scene.shape[1]
    largest, electrons = PIXEL_TYPES[dtype]
    mixed = np.tensordot(optics.bleed.astype(np.float32), scene, axes=1)
    image = np.empty(scene.shape, dtype)
    for channel in range(_COUNT):
        sharp = gaussian_filter(mixed[channel], optics.blur[channel], truncate=3.0)
        # Light out of focus is smooth: it is computed on every fourth pixel.
        wide = gaussian_filter(mixed[channel].reshape(-1, size)[::4, ::4], 3.0)
        wide = zoom(wide, (size / wide.shape[0], size / wide.shape[1]), order=1)
        haze = optics.haze[channel]
        light = optics.gain[channel] * optics.light[channel]
        signal = light * (stain[channel] * ((1.0 - haze) * sharp + haze * wide) + GLOW)
        if noise:
            spread = np.float32(noise) * np.sqrt(signal + READ_NOISE**2)
            signal = signal + spread * rng.standard_normal(signal.shape, dtype=np.float32)
        counts = (signal + optics.offset[channel]) / electrons
        image[channel] = np.clip(np.rint(counts), 0, largest).astype(dtype)
    return image
