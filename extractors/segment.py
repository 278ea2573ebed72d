"""Nuclei from the DNA channel, and the cell around each nucleus."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.feature import peak_local_max
from skimage.filters import threshold_li, threshold_otsu
from skimage.segmentation import expand_labels, watershed

from extractors.base import CELL_GEOMETRY, Masks
from warehouse.errors import ImageError


@dataclass(frozen=True)
class SegmentSettings:
    """How nuclei and cells are found; lengths and areas in pixels of the image given.

    The defaults are set on 20× images of about 0.6 µm a pixel. Sizes, `min_distance_px` and leaving out
    nuclei that the border cuts are those of JUMP's CellProfiler pipeline for BR00116991 (its Experiment.csv).

    Args:
        smoothing_px: sd of the Gaussian taken before thresholding; suppresses noise of single pixels.
        background_px: side of the blocks whose 10th percentile, interpolated, is the background; wider than a
            clump of cells, narrower than the unevenness of the light.
        min_contrast: the threshold lies at least this many noise sds above the background, so that a field
            without cells gives none; the noise is what smoothing takes away.
        declump_px: sd of the Gaussian on the distance map whose peaks become nuclei; larger splits less.
        min_distance_px: two nuclei's peaks lie further apart than this.
        min_area_px: smaller objects are debris (diameter 15).
        max_area_px: larger objects are clumps or artefacts (diameter 90).
        keep_border_nuclei: also give nuclei cut by the image's border, whose size and shape are not known.
        distance_weight: what the distance from the nucleus weighs against intensity where two cells meet; 0
            follows intensity alone, which stops at the nucleus where the cell's rim is brightest (actin).
        max_cell_px: a cell reaches at most this far from its nucleus.
        expansion_px: how far a cell reaches from its nucleus where there is no channel for cells.
    """

    smoothing_px: float = 1.0
    background_px: int = 128
    min_contrast: float = 2.0
    declump_px: float = 2.0
    min_distance_px: int = 8
    min_area_px: int = 177
    max_area_px: int = 6362
    keep_border_nuclei: bool = False
    distance_weight: float = 0.3
    max_cell_px: float = 80.0
    expansion_px: float = 10.0


@dataclass(frozen=True)
class NucleiMatch:
    """Nuclei found against nuclei known: how many are the same, missed and too many.

    Args:
        pairs: (matched, 2) intp, index in the found and in the reference positions.
        matched: pairs within the tolerance.
        missed: reference nuclei without a partner.
        extra: found nuclei without a partner.
    """

    pairs: np.ndarray
    matched: int
    missed: int
    extra: int


#: A single-cell picture is one cell already chosen: a nucleus that reaches its edge is still that cell's.
CROP_SEGMENTATION = SegmentSettings(keep_border_nuclei=True)
#: Names of channels in which nuclei are found, and in which cells are found around them, the first that is there.
DNA_NAMES = ("DNA", "DAPI", "Hoechst")
CELL_NAMES = ("RNA", "AGP", "Actin", "Tubulin")


def segment(
    dna: np.ndarray, cell_channel: np.ndarray | None = None, settings: SegmentSettings | None = None
) -> tuple[pl.DataFrame, Masks]:
    """Find the nuclei of a field and the cell around each.

    Args:
        dna: (H, W) pixels of the DNA channel, any intensity scale.
        cell_channel: (H, W) pixels of a channel that fills the cell, or None: nuclei are expanded instead.
        settings: see `SegmentSettings`; None takes the defaults.

    Returns:
        The table of cells (columns of `CELL_GEOMETRY`, n rows, n may be 0) and the masks, label i + 1 = row
        i. Rows are in raster order of the nuclei's first pixels.

    Raises:
        ImageError: the images are not two-dimensional, differ in shape, or hold non-finite pixels.

    Source:
        Minimum cross-entropy threshold: Li & Lee 1993, doi:10.1016/0031-3203(93)90115-D. Otsu 1979,
        doi:10.1109/TSMC.1979.4310076. Seeded watershed of cells from nuclei: Carpenter et al. 2006,
        doi:10.1186/gb-2006-7-10-r100.
    """
    settings = settings or SegmentSettings()
    for name, image in (("DNA", dna), ("cell", cell_channel)):
        if image is not None and (image.ndim != 2 or image.shape != dna.shape):
            message = (
                f"cannot segment a {name} image of shape {image.shape} with DNA of shape {dna.shape}: "
                "give two images (H, W) of one shape"
            )
            raise ImageError(message)
        if image is not None and not np.isfinite(image).all():
            message = f"cannot segment a {name} image with {np.sum(~np.isfinite(image))} non-finite pixels"
            raise ImageError(message)
    objects = _objects(dna, settings)
    # Cells flood from every object, kept or not: a nucleus that is left out still holds its own cytoplasm,
    # which would otherwise be given to its neighbours.
    cells = _cells(objects, cell_channel, settings)
    kept = _kept(objects, settings)
    return _geometry(kept[objects], kept[cells])


def segment_central(dna: np.ndarray, cell_channel: np.ndarray | None = None) -> Masks:
    """Segment a single-cell picture and keep the object whose nucleus is nearest its centre.

    Args:
        dna: (H, W).
        cell_channel: as in `segment`.

    Returns:
        Label images with the one label 1; without any where no nucleus is found.

    Raises:
        ImageError: as `segment`.
    """
    _, masks = segment(dna, cell_channel, CROP_SEGMENTATION)
    if not masks.nuclei.any():
        return masks
    y, x = np.indices(masks.nuclei.shape)
    height, width = masks.nuclei.shape
    far = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2
    label = masks.nuclei.flat[np.argmin(np.where(masks.nuclei > 0, far, np.inf))]
    return Masks((masks.nuclei == label).astype(np.int32), (masks.cells == label).astype(np.int32))


def channel_of(names: Sequence[str], channels: Sequence[str]) -> str | None:
    """Find the channel that has the first of some names, in whatever case; None where none has any."""
    folded = {channel.casefold(): channel for channel in channels}
    return next((folded[name.casefold()] for name in names if name.casefold() in folded), None)


def match_nuclei(found_xy: np.ndarray, reference_xy: np.ndarray, tolerance_px: float) -> NucleiMatch:
    """Pair found with known nuclei, one to one: as many pairs as possible, then the shortest in sum.

    Args:
        found_xy: (n, 2) x and y in pixels.
        reference_xy: (m, 2) x and y in pixels.
        tolerance_px: the longest distance of a pair.
    """
    found, reference = (np.asarray(xy, dtype=float).reshape(-1, 2) for xy in (found_xy, reference_xy))
    distance = cdist(found, reference)
    # One pair out of tolerance costs more than all pairs within, so that the number of pairs goes first.
    forbidden = (min(distance.shape, default=0) + 1) * (tolerance_px + 1)
    rows, columns = linear_sum_assignment(np.where(distance <= tolerance_px, distance, forbidden))
    within = distance[rows, columns] <= tolerance_px
    pairs = np.column_stack([rows[within], columns[within]])
    return NucleiMatch(pairs, len(pairs), len(reference) - len(pairs), len(found) - len(pairs))


def _flatten(image: np.ndarray, settings: SegmentSettings) -> tuple[np.ndarray, float]:
    """Smooth, subtract the background; also give the noise's sd."""
    image = image.astype(np.float32)
    smooth = ndimage.gaussian_filter(image, settings.smoothing_px)
    residual = image - smooth
    noise = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    rows, columns = (max(1, round(side / settings.background_px)) for side in image.shape)
    grid = np.array(
        [
            [np.percentile(block, 10) for block in np.array_split(band, columns, axis=1)]
            for band in np.array_split(smooth, rows, axis=0)
        ]
    )
    # A block that a clump fills has no background of its own: the median of its neighbourhood stands in.
    grid = ndimage.median_filter(grid, size=3, mode="nearest")
    at = [
        (np.arange(side) + 0.5) / side * blocks - 0.5
        for side, blocks in zip(image.shape, (rows, columns), strict=True)
    ]
    background = ndimage.map_coordinates(grid, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
    return smooth - background, noise


def _objects(dna: np.ndarray, settings: SegmentSettings) -> np.ndarray:
    """Label everything that is bright in the DNA channel, clumps split, whatever its size."""
    empty = np.zeros(dna.shape, dtype=np.int32)
    if dna.size == 0 or dna.min() == dna.max():
        return empty
    flat, noise = _flatten(dna, settings)
    foreground = flat > max(float(threshold_li(flat)), settings.min_contrast * noise)
    # Nucleoli are dark: fill small holes, but not the gap inside a ring of touching nuclei.
    holes, _ = ndimage.label(~foreground)
    sizes = np.bincount(holes.ravel())
    sizes[np.unique(_rim(holes))] = foreground.size
    foreground |= (sizes <= settings.min_area_px)[holes]
    clumps, _ = ndimage.label(foreground, structure=np.ones((3, 3)))
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(foreground), settings.declump_px)
    peaks = peak_local_max(depth, min_distance=settings.min_distance_px, labels=clumps, exclude_border=False)
    seeds = empty.copy()
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return watershed(-depth, seeds, mask=foreground).astype(np.int32)


def _cells(objects: np.ndarray, cell_channel: np.ndarray | None, settings: SegmentSettings) -> np.ndarray:
    """Grow each object to its cell, which keeps the object's label."""
    if not objects.any():
        return objects.copy()
    if cell_channel is None or cell_channel.min() == cell_channel.max():
        return expand_labels(objects, settings.expansion_px).astype(np.int32)
    flat, noise = _flatten(cell_channel, settings)
    # Cytoplasm spans orders of magnitude: Otsu on logarithms keeps its dim rim. Below noise is background.
    brightness = np.log(np.maximum(flat, max(noise, float(np.finfo(np.float32).tiny))))
    edge, top = float(threshold_otsu(brightness)), float(brightness.max())
    distance = ndimage.distance_transform_edt(objects == 0)
    inside = ((brightness > edge) | (objects > 0)) & (distance <= settings.max_cell_px)
    # 0 at the cell's edge, 1 at the brightest pixel, so that the weight does not depend on the exposure.
    relief = ndimage.gaussian_filter((brightness - edge) / max(top - edge, 1e-6), 2.0)
    landscape = settings.distance_weight * distance / settings.max_cell_px - relief
    return watershed(landscape, objects, mask=inside).astype(np.int32)


def _kept(objects: np.ndarray, settings: SegmentSettings) -> np.ndarray:
    """Map every object's label to its final one, 1..n in raster order of first pixels; 0 where left out."""
    labels, first = np.unique(objects, return_index=True)
    area = np.bincount(objects.ravel())
    fits = (area >= settings.min_area_px) & (area <= settings.max_area_px)
    if not settings.keep_border_nuclei:
        fits[np.unique(_rim(objects))] = False
    order = [label for label in labels[np.argsort(first)] if label and fits[label]]
    final = np.zeros(len(area), dtype=np.int32)
    final[order] = np.arange(1, len(order) + 1)
    return final


def _geometry(nuclei: np.ndarray, cells: np.ndarray) -> tuple[pl.DataFrame, Masks]:
    """Describe each cell; see `CELL_GEOMETRY`."""
    n = int(nuclei.max(initial=0))
    centres = np.array(ndimage.center_of_mass(nuclei > 0, nuclei, np.arange(1, n + 1))).reshape(n, 2)
    boxes = ndimage.find_objects(cells, max_label=n)
    on_rim = set(np.unique(_rim(cells)).tolist())
    frame = pl.DataFrame(
        {
            "cell": [str(label) for label in range(1, n + 1)],
            "x_px": centres[:, 1],
            "y_px": centres[:, 0],
            "box_left_px": [box[1].start for box in boxes],
            "box_top_px": [box[0].start for box in boxes],
            "box_right_px": [box[1].stop for box in boxes],
            "box_bottom_px": [box[0].stop for box in boxes],
            "nucleus_area_px": np.bincount(nuclei.ravel(), minlength=n + 1)[1:],
            "cell_area_px": np.bincount(cells.ravel(), minlength=n + 1)[1:],
            "is_border": [label in on_rim for label in range(1, n + 1)],
        },
        schema=dict(CELL_GEOMETRY),
        strict=False,
    )
    return frame, Masks(nuclei, cells)


def _rim(labels: np.ndarray) -> np.ndarray:
    """Give the labels along the image's four sides."""
    return np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
