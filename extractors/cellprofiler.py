"""CellProfiler's measurements of nuclei, cells and cytoplasm, computed by cp_measure."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from itertools import combinations

import numpy as np
from threadpoolctl import threadpool_limits

from extractors.base import FieldSample, SettingError
from extractors.segment import CROP_SEGMENTATION, segment_central
from warehouse.errors import ImageError
from warehouse.names import unknown

COMPARTMENTS = ("Nuclei", "Cells", "Cytoplasm")
#: Steps of the granularity spectrum.
STEPS = 16

# Where a cell lies in its image says nothing of its phenotype.
_POSITIONS = ("Center_", "BoundingBoxMinimum_", "BoundingBoxMaximum_", "Location_")
# Scale-invariant moments are defined from order 2 on; below it the value is NaN for every object.
_UNDEFINED = frozenset({"NormalizedMoment_0_0", "NormalizedMoment_0_1", "NormalizedMoment_1_0"})

Measured = Iterator[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Args:
        intensity: Intensity, per channel.
        sizeshape: AreaShape: sizes, axes, radii, moments.
        zernike: AreaShape_Zernike, degree 9.
        feret: AreaShape_MinFeretDiameter and MaxFeretDiameter.
        texture: Texture (Haralick, 256 grey levels), per channel, at each of `texture_scales`.
        texture_scales: distances of the co-occurring pixels, pixels. CellProfiler's 10 is left out: it is undefined
            in objects thinner than that, so small, condensed nuclei would be rejected for it, and a phenotype lost.
        granularity: Granularity, 16 steps, per channel.
        granularity_sampling: scale of the image for granularity, and of its background against that; 0.5 as
            in JUMP's pipelines, where cp_measure's own 0.25 gives other features under the same names.
        radial_distribution: RadialDistribution in 4 rings, per channel.
        radial_zernikes: RadialDistribution_ZernikeMagnitude, degree 9, per channel. Phases are left out: an
            angle wraps, so its mean over cells means nothing.
        pearson: Correlation_Correlation and Correlation_Slope, per pair of channels.
        manders_fold: Correlation_Manders, per pair of channels.
        rwc: Correlation_RWC, per pair of channels.
        costes: Correlation_Costes, per pair of channels; doubles the time, hence off.
        maximum: intensity that becomes 1; None takes the dtype's largest value, and 1 for float32. A 12-bit
            camera writing 16-bit files needs 4095, or texture sees too few grey levels.
        nuclei_channel: channel that shows nuclei, needed for single-cell crops only.
        cell_channel: channel that fills the cell, for single-cell crops only; None expands the nucleus.
    """

    intensity: bool = True
    sizeshape: bool = True
    zernike: bool = True
    feret: bool = True
    texture: bool = True
    texture_scales: tuple[int, ...] = (3, 5)
    granularity: bool = True
    granularity_sampling: float = 0.5
    radial_distribution: bool = True
    radial_zernikes: bool = True
    pearson: bool = True
    manders_fold: bool = True
    rwc: bool = True
    costes: bool = False
    maximum: float | None = None
    nuclei_channel: str = "DNA"
    cell_channel: str | None = None


def _checked(settings: Settings) -> Settings:
    """Refuse values of the wrong kind; lists become tuples, as they come from JSON."""

    def positive(value: object, kinds: type | tuple[type, ...]) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < float("inf")  # type: ignore[operator]

    scales, size = settings.texture_scales, settings.granularity_sampling
    kinds = {
        field.name: (isinstance(getattr(settings, field.name), bool), "true or false")
        for field in fields(Settings)
        if isinstance(field.default, bool)
    } | {
        "texture_scales": (
            isinstance(scales, list | tuple) and all(positive(scale, int) for scale in scales),
            "a list of whole pixels such as [3,5,10]",
        ),
        "granularity_sampling": (positive(size, (int, float)) and size <= 1, "a number above 0, up to 1"),
        "maximum": (
            settings.maximum is None or positive(settings.maximum, (int, float)),
            "a number above 0, such as 4095",
        ),
    }
    for name, (fits, wanted) in kinds.items():
        if not fits:
            message = f"cellprofiler: {name} is {getattr(settings, name)!r}: give {wanted}"
            raise SettingError(message)
    return replace(settings, texture_scales=tuple(scales))


class CellProfiler:
    """Measures each cell as CellProfiler 4 does, in its names: `Cells_Intensity_MeanIntensity_DNA`.

    Args:
        channels: names of the channels, in the order of the pixels.
        settings: see `Settings`.

    Raises:
        UnknownNameError: a setting or a channel named in one is not known.
        SettingError: a setting is of another kind than its default.
        ImageError: channels are missing or repeated, or nothing is to be measured.

    Source:
        CellProfiler 4: Stirling et al. 2021, doi:10.1186/s12859-021-04344-9. Computed by cp_measure
        (Muñoz et al. 2025), with CellProfiler's own convention for quantiles.
    """

    name = "cellprofiler"
    weights: str | None = None

    def __init__(self, channels: tuple[str, ...], **settings: object) -> None:
        known = [field.name for field in fields(Settings)]
        for key in settings:
            if key not in known:
                raise unknown(key, "setting of cellprofiler", known)
        self.channels = tuple(channels)
        if not self.channels or len(set(self.channels)) != len(self.channels):
            message = f"channels of cellprofiler are {self.channels}: expected at least one, each once"
            raise ImageError(message)
        self.settings = _checked(Settings(**settings))  # type: ignore[arg-type]
        for key in ("nuclei_channel", "cell_channel"):
            if settings.get(key) is not None and settings[key] not in self.channels:
                raise unknown(str(settings[key]), "channel", self.channels)
        self.version = f"1+cp_measure.{version('cp_measure')}"
        self.parameters: dict[str, object] = asdict(self.settings) | {
            "texture_scales": list(self.settings.texture_scales),
            "crop_segmentation": asdict(CROP_SEGMENTATION),
        }
        # The names come from the measurements themselves, on a probe that is the same every time.
        probe = np.random.default_rng(0).uniform(0.1, 1, (len(self.channels), 64, 64))
        labels = np.zeros((64, 64), dtype=np.int32)
        labels[8:40, 8:40] = 1
        self._names = tuple(name for name, _ in self._measure(labels, probe))
        if self.settings.granularity:
            self._names += tuple(f"Granularity_{k}_{c}" for c in self.channels for k in range(1, STEPS + 1))
        if not self._names:
            message = "nothing to measure: every group of cellprofiler is off"
            raise ImageError(message)
        self.feature_names = tuple(f"{part}_{name}" for part in COMPARTMENTS for name in self._names)
        self.dim = len(self.feature_names)

    def extract(self, samples: Sequence[FieldSample]) -> list[np.ndarray]:
        """Measure the cells of each sample.

        Args:
            samples: fields with masks, or single-cell crops, which are segmented here and measured on the
                object nearest their centre.

        Returns:
            One float32 array (n_cells, dim) a sample. NaN stands where a feature is undefined: all features
            of a compartment without pixels (a nucleus that fills its cell leaves no cytoplasm), all of a crop
            without an object, texture at a scale wider than the object, correlation of a constant channel.

        Raises:
            ImageError: channels, masks or intensities are not what this extractor was made for.
        """
        # BLAS would spread products of 256 × 256 matrices over all cores: twice the work in the same time.
        with threadpool_limits(limits=1, user_api="blas"):
            return [self._extract(sample) for sample in samples]

    def _extract(self, sample: FieldSample) -> np.ndarray:
        if tuple(sample.channels) != self.channels:
            message = f"sample has channels {sample.channels}: expected {self.channels}"
            raise ImageError(message)
        n = sample.cells.height
        rows = np.full((n, self.dim), np.nan, dtype=np.float32)
        if n == 0:
            return rows
        nuclei, cells = self._masks(sample)
        pixels = self._scaled(sample.pixels)
        compartments = (nuclei, cells, np.where(nuclei > 0, 0, cells))
        blocks = rows.reshape(n, len(COMPARTMENTS), -1)
        for part, labels in enumerate(compartments):
            # cp_measure wants labels 1..m without gaps, and gives 0, not NaN, where one is absent.
            present = np.unique(labels[labels > 0])
            dense = np.zeros(n + 1, dtype=np.int32)
            dense[present] = np.arange(1, len(present) + 1)
            if len(present):
                measured = [values for _, values in self._measure(dense[labels], pixels)]
                blocks[present - 1, part, : len(measured)] = np.array(measured).T
        if self.settings.granularity:
            spectra = self._granularity(compartments, pixels, n)
            blocks[:, :, -spectra.shape[2] :] = spectra
        return rows

    def _masks(self, sample: FieldSample) -> tuple[np.ndarray, np.ndarray]:
        """Give the sample's label images, or those of a crop's central object."""
        n, shape = sample.cells.height, sample.pixels.shape[1:]
        if sample.masks is None and sample.is_crop:
            if n != 1:
                message = f"a single-cell crop has {n} cells: expected 1"
                raise ImageError(message)
            return self._central(sample.pixels)
        if sample.masks is None:
            message = f"a field of {n} cells has no masks: segment it first"
            raise ImageError(message)
        nuclei, cells = sample.masks.nuclei, sample.masks.cells
        highest = max(int(nuclei.max()), int(cells.max()))
        if nuclei.shape != shape or cells.shape != shape or highest > n:
            message = (
                f"masks of shape {nuclei.shape} and {cells.shape} with labels to {highest} do not fit pixels "
                f"of shape {shape} and {n} cells"
            )
            raise ImageError(message)
        return nuclei, cells

    def _central(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment a crop and keep the object nearest its centre."""
        wanted = self.settings.nuclei_channel, self.settings.cell_channel
        for channel in wanted:
            if channel is not None and channel not in self.channels:
                raise unknown(channel, "channel to segment crops by", self.channels)
        dna, cell = (None if c is None else pixels[self.channels.index(c)] for c in wanted)
        masks = segment_central(dna, cell)
        return masks.nuclei, masks.cells

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        """Bring pixels to [0, 1], which cp_measure asks for."""
        top = self.settings.maximum
        if top is None:
            top = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1.0
        scaled = pixels.astype(np.float64) / top
        if not (scaled.min() >= 0 and scaled.max() <= 1):
            message = (
                f"pixels range from {pixels.min()} to {pixels.max()} in {pixels.dtype}: expected 0 to "
                f"{top:g}; set `maximum` to the camera's largest intensity"
            )
            raise ImageError(message)
        return scaled

    def _measure(self, labels: np.ndarray, pixels: np.ndarray) -> Measured:
        """Measure every object of one compartment: yields (name without compartment, (m,) values)."""
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # Undefined values stay NaN, which says it; hundreds of lines of warnings would say it no better.
            warnings.simplefilter("ignore")
            for key, values in self._raw(labels, pixels):
                yield key, np.asarray(values, dtype=np.float64)

    def _raw(self, labels: np.ndarray, pixels: np.ndarray) -> Measured:
        # Imported here: cp_measure takes seconds, and naming this extractor must not.
        from cp_measure.core import measurecolocalization as colocalization
        from cp_measure.core.measureobjectintensity import get_intensity
        from cp_measure.core.measureobjectintensitydistribution import (
            get_radial_distribution,
            get_radial_zernikes,
        )
        from cp_measure.core.measureobjectsizeshape import get_feret, get_sizeshape, get_zernike
        from cp_measure.core.measuretexture import get_texture

        on = self.settings
        shape = ((on.sizeshape, get_sizeshape), (on.zernike, get_zernike), (on.feret, get_feret))
        for wanted, function in shape:
            for key, values in function(labels, None).items() if wanted else ():
                if not key.startswith(_POSITIONS) and key not in _UNDEFINED:
                    yield f"AreaShape_{key}", values
        for channel, image in zip(self.channels, pixels, strict=True):
            if on.intensity:
                for key, values in get_intensity(labels, image, legacy=True).items():
                    if not key.startswith(_POSITIONS):
                        yield f"{key}_{channel}", values
            for scale in on.texture_scales if on.texture else ():
                for key, values in get_texture(labels, image, scale=scale).items():
                    feature, parameters = key.split("_", 1)
                    yield f"Texture_{feature}_{channel}_{parameters}", values
            radial: dict[str, np.ndarray] = {}
            if on.radial_distribution:
                radial |= get_radial_distribution(labels, image)
            if on.radial_zernikes:
                radial |= get_radial_zernikes(labels, image)
            for key, values in radial.items():
                category, feature, parameters = key.split("_", 2)
                if feature != "ZernikePhase":
                    yield f"{category}_{feature}_{channel}_{parameters}", values
        yield from self._pairs(labels, pixels, colocalization)

    def _granularity(self, compartments: Sequence[np.ndarray], pixels: np.ndarray, n: int) -> np.ndarray:
        """Measure the granularity of all compartments: (n, compartments, channels × steps).

        The spectrum is the work of the whole image, not of its objects: so each image is opened once, with
        labels for every overlap of nucleus and cell, and a compartment's value is the mean of its overlaps
        weighted by their intensity, which is what measuring it alone would give.
        """
        from cp_measure.core.measuregranularity import get_granularity

        nuclei, cells, _ = compartments
        codes, overlaps = np.unique(nuclei.astype(np.int64) * (n + 1) + cells, return_inverse=True)
        overlaps = overlaps.reshape(nuclei.shape).astype(np.int32) + int(codes[0] != 0)
        area = np.bincount(overlaps.ravel())[1:]
        sampling = self.settings.granularity_sampling

        def lost(image: np.ndarray) -> np.ndarray:
            """Give what each step takes from each overlap and, last, what it had: (m, steps + 1)."""
            had = np.bincount(overlaps.ravel(), weights=image.ravel())[1:]
            start = np.maximum(had / area, np.finfo(float).eps) * area
            spectrum = get_granularity(
                overlaps,
                image,
                subsample_size=sampling,
                image_sample_size=sampling,
                granular_spectrum_length=STEPS,
            )
            return np.column_stack([*(values / 100 * start for values in spectrum.values()), start])

        # The opening runs outside Python's lock: in threads, two cores halve its time.
        with ThreadPoolExecutor(min(len(pixels), os.cpu_count() or 1, 4)) as pool:
            channels = list(pool.map(lost, pixels))
        nucleus, cell = np.divmod(codes[codes != 0], n + 1)
        spectra = np.empty((n, len(COMPARTMENTS), len(channels) * STEPS))
        for part, row in enumerate((nucleus, cell, np.where(nucleus > 0, 0, cell))):
            for k, values in enumerate(channels):
                total = np.zeros((n + 1, STEPS + 1))
                np.add.at(total, row, values)
                # 0 / 0 where the compartment has no pixel: undefined, so NaN.
                with np.errstate(invalid="ignore"):
                    spectra[:, part, k * STEPS : (k + 1) * STEPS] = 100 * total[1:, :-1] / total[1:, -1:]
        return spectra

    def _pairs(self, labels: np.ndarray, pixels: np.ndarray, colocalization: object) -> Measured:
        """Measure each pair of channels, named in alphabetical order as in CellProfiler's pipelines."""
        on = self.settings
        measured = [group for group in ("pearson", "manders_fold", "rwc", "costes") if getattr(on, group)]
        for first, second in combinations(sorted(self.channels), 2):
            one, two = (pixels[self.channels.index(channel)] for channel in (first, second))
            for group in measured:
                function: Callable[..., dict[str, np.ndarray]] = getattr(
                    colocalization, f"get_correlation_{group}"
                )
                # Costes searches thresholds on the grid of a 16-bit image.
                extra = {"scale_max": 65535} if group == "costes" else {}
                for key, values in function(pixels_1=one, pixels_2=two, masks=labels, **extra).items():
                    # A value for one direction carries _1 (first on second) or _2 (second on first).
                    feature = key.replace("Pearson", "Correlation")
                    if feature.endswith("_2"):
                        yield f"{feature[:-2]}_{second}_{first}", values
                    else:
                        yield f"{feature.removesuffix('_1')}_{first}_{second}", values
