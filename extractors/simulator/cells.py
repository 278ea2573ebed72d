"""Drawing cells: one small patch a cell, five channels, in photo-electrons before optics and camera."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from extractors.simulator.phenotypes import UNTREATED, CellParameters

#: Directions in which an outline is held; a lookup is several times faster than cosines of every pixel.
DIRECTIONS = 360
_ANGLES = (np.arange(DIRECTIONS) * (2 * np.pi / DIRECTIONS) - np.pi).astype(np.float32)


@dataclass(frozen=True)
class Nucleus:
    """One nucleus: centre relative to the cell's (px), mean radius (px), radius in each direction (px)."""

    dx: float
    dy: float
    radius: float
    outline: np.ndarray


@dataclass(frozen=True)
class Cell:
    """One cell to draw: centre in the field (px), axis (radians), outline and nuclei."""

    x_px: float
    y_px: float
    angle: float
    outline: np.ndarray
    nuclei: tuple[Nucleus, ...]
    is_mitotic: bool
    effect: float
    parameters: CellParameters


def _outline(
    rng: np.random.Generator, radius: float, elongation: float, irregularity: float, angle: float
) -> np.ndarray:
    """Radius in each direction: an ellipse with low-frequency noise, float32 (DIRECTIONS,), px."""
    along, across = np.cos(_ANGLES - angle), np.sin(_ANGLES - angle)
    ellipse = radius / np.sqrt(along**2 / elongation + across**2 * elongation)
    waves = np.arange(1, 8)
    sizes = rng.normal(0.0, 2.0 * irregularity, waves.size) / (waves + 1.0) ** 1.6
    noise = sizes @ np.cos(waves[:, None] * _ANGLES[None, :] + rng.uniform(0, 2 * np.pi, waves.size)[:, None])
    return np.asarray(ellipse * np.clip(1.0 + noise, 0.45, 1.6), np.float32)


def make_cell(
    rng: np.random.Generator, x_px: float, y_px: float, parameters: CellParameters, effect: float
) -> Cell:
    """Draw the shape of one cell at random around its mean parameters.

    Args:
        rng: source of chance.
        x_px: column of the centre of the cell's first nucleus.
        y_px: row of the same.
        parameters: the mean appearance.
        effect: effect size of this cell, kept for the truth.

    Returns:
        The cell, with one nucleus, several, or the chromosomes of a mitosis.
    """
    size, nuclear_size = np.exp(rng.normal(0.0, (0.12, 0.08)))
    angle = float(rng.uniform(0, np.pi))
    is_mitotic = bool(rng.random() < parameters.mitotic)
    is_multinucleated = bool(rng.random() < parameters.multinucleated) and not is_mitotic
    radius = parameters.nucleus_radius * nuclear_size
    if is_mitotic:
        # A cell in mitosis rounds up; its chromosomes form one plate, or two that part.
        outline = _outline(rng, 0.62 * parameters.cell_radius * size, 1.05, 0.04, angle)
        gap = 0.55 * radius * float(rng.random() < 0.35)
        sides = (-gap, gap) if gap else (0.0,)
        nuclei = tuple(
            Nucleus(
                dx=float(-side * np.sin(angle)),
                dy=float(side * np.cos(angle)),
                radius=0.58 * radius,
                outline=_outline(rng, 0.58 * radius, 2.4 if not gap else 3.0, 0.08, angle),
            )
            for side in sides
        )
    else:
        elongation = 1.0 + (parameters.cell_elongation - 1.0) * float(rng.gamma(6.0, 1 / 6.0))
        outline = _outline(rng, parameters.cell_radius * size, elongation, parameters.irregularity, angle)
        count = int(rng.integers(2, 4)) if is_multinucleated else 1
        ring = 0.0 if count == 1 else 0.84 * radius
        turn = rng.uniform(0, 2 * np.pi)
        each = radius * (1.0, 0.78, 0.7)[count - 1]
        nuclei = tuple(
            Nucleus(
                dx=float(ring * np.cos(turn + 2 * np.pi * i / count)),
                dy=float(ring * np.sin(turn + 2 * np.pi * i / count)),
                radius=each,
                outline=_outline(
                    rng, each, parameters.nucleus_elongation, 0.07, angle + rng.normal(0.0, 0.4)
                ),
            )
            for i in range(count)
        )
    return Cell(
        x_px - nuclei[0].dx, y_px - nuclei[0].dy, angle, outline, nuclei, is_mitotic, effect, parameters
    )


def _relative(outline: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance from the centre as a share of the outline's radius there, and that radius: (h, w) each."""
    direction = (np.arctan2(y, x) + np.float32(np.pi)) * np.float32(DIRECTIONS / (2 * np.pi))
    radius = outline[direction.astype(np.int16) % DIRECTIONS]
    return np.sqrt(x * x + y * y) / radius, radius


def _spots(x: np.ndarray, y: np.ndarray, centres: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Sum of round Gaussian spots of height 1: x (w,), y (h,), centres (k, 2) as x, y; (h, w)."""
    scale = (-0.5 / radius**2).astype(np.float32)[:, None]
    across = np.exp(scale * (x[None, :] - centres[:, :1]) ** 2)
    down = np.exp(scale * (y[None, :] - centres[:, 1:]) ** 2)
    return np.asarray(down.T @ across, np.float32)


@dataclass(frozen=True)
class Textures:
    """Smooth unit-variance noise over a field, float32 (H, W), by scale: about 1, 2, 3 and 9 pixels."""

    grain: np.ndarray
    fine: np.ndarray
    medium: np.ndarray
    coarse: np.ndarray

    @classmethod
    def make(cls, rng: np.random.Generator, size: int) -> "Textures":
        """Draw the four textures for a field of `size` × `size` pixels."""
        layers = []
        for scale in (0.9, 1.5, 2.3):
            smooth = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), scale, mode="wrap")
            layers.append(smooth / smooth.std())
        # A wide blur is as good at a quarter of the size, and ten times faster.
        small = gaussian_filter(rng.standard_normal((size // 4 + 1,) * 2, dtype=np.float32), 2.2, mode="wrap")
        coarse = np.repeat(np.repeat(small / small.std(), 4, axis=0), 4, axis=1)[:size, :size]
        layers.append(gaussian_filter(coarse, 2.0))
        return cls(*layers)


def _window(cell: Cell, size: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The part of the field around a cell, and its pixels' offsets from the cell's centre: x (w,), y (h,)."""
    reach = float(cell.outline.max()) + 3.0
    left, right = max(int(cell.x_px - reach), 0), min(int(cell.x_px + reach) + 1, size)
    top, bottom = max(int(cell.y_px - reach), 0), min(int(cell.y_px + reach) + 1, size)
    x = np.arange(left, right, dtype=np.float32) - np.float32(cell.x_px)
    y = np.arange(top, bottom, dtype=np.float32) - np.float32(cell.y_px)
    return (slice(top, bottom), slice(left, right)), x, y


def draw_cells(rng: np.random.Generator, cells: list[Cell], size: int) -> np.ndarray:
    """Draw cells into a field; where two meet, each pixel belongs to the cell it lies deeper in.

    Args:
        rng: source of chance for textures and organelles.
        cells: the cells.
        size: width and height of the field, px.

    Returns:
        float32 (5, size, size), photo-electrons, channels in the order of `CHANNELS`, no background.
    """
    image = np.zeros((5, size, size), np.float32)
    if not cells:
        return image
    textures = Textures.make(rng, size)
    owner_depth = np.full((size, size), np.inf, np.float32)
    shapes = []
    for cell in cells:
        window, x, y = _window(cell, size)
        depth, radius = _relative(cell.outline, x[None, :], y[:, None])
        owner_depth[window] = np.minimum(owner_depth[window], depth)
        shapes.append((cell, window, x, y, depth, radius))
    for cell, window, x, y, depth, radius in shapes:
        is_inside = (depth < 1.0) & (depth <= owner_depth[window])
        local = Textures(*(layer[window] for layer in vars(textures).values()))
        image[(slice(None), *window)] += _draw_cell(rng, cell, x, y, depth, radius, is_inside, local)
    return image


def _draw_cell(
    rng: np.random.Generator,
    cell: Cell,
    x: np.ndarray,
    y: np.ndarray,
    depth: np.ndarray,
    radius: np.ndarray,
    is_inside: np.ndarray,
    texture: Textures,
) -> np.ndarray:
    """Five channels of one cell on its window: float32 (5, h, w), photo-electrons."""
    p = cell.parameters
    stain = np.exp(rng.normal(0.0, 0.12, 5)).astype(np.float32)
    inside = is_inside.astype(np.float32)
    thickness = np.sqrt(np.clip(1.0 - depth * depth, 0.0, 1.0))

    nucleus = np.zeros_like(depth)
    from_nucleus = np.full_like(depth, np.inf)
    nucleoli = np.zeros_like(depth)
    for one in cell.nuclei:
        share, _ = _relative(one.outline, x[None, :] - one.dx, y[:, None] - one.dy)
        edge = (share - 1.0) * one.radius
        nucleus = np.maximum(nucleus, np.clip(0.5 - 0.8 * edge, 0.0, 1.0))
        from_nucleus = np.minimum(from_nucleus, np.maximum(edge, 0.0))
        count = 0 if cell.is_mitotic else int(rng.poisson(max(p.nucleoli - 1.0, 0.0)) + 1)
        if count:
            place = np.add(_inside_disc(rng, count, 0.7 * one.radius), (one.dx, one.dy))
            nucleoli += _spots(x, y, place, p.nucleolus_radius * rng.uniform(0.7, 1.3, count))
    nucleoli = np.minimum(nucleoli, 1.2) * nucleus
    cytoplasm = inside * (1.0 - nucleus)

    # DNA content is kept when a nucleus swells (in part) or condenses.
    dilution = (UNTREATED.nucleus_radius / max(p.nucleus_radius, 1.0)) ** 0.8
    condensed = 1.0 if cell.is_mitotic else p.condensation
    chromatin = 1.0 + (0.10 + 0.35 * p.condensation) * (0.6 * texture.fine + 0.7 * texture.medium)
    dna = 1500.0 * stain[0] * dilution * (1.0 + 1.0 * condensed)
    dna = dna * nucleus * np.clip(chromatin, 0.25, 2.5) * (1.0 - 0.35 * nucleoli / 1.2)

    reticulum = np.exp(-((texture.fine / 0.55) ** 2))
    er = 0.16 + np.exp(-from_nucleus / p.er_reach)
    er = 1150.0 * stain[1] * p.er_intensity * er * (0.45 + 0.75 * reticulum) * (0.3 + 0.7 * thickness)
    er = er * (cytoplasm + 0.22 * nucleus)

    body = (0.25 + 0.75 * thickness) * (1.0 + 0.14 * texture.fine + 0.12 * texture.medium)
    rna = 620.0 * stain[2] * p.rna_intensity * body * (cytoplasm + 0.75 * nucleus)
    rna = rna + 1100.0 * stain[2] * nucleoli

    across = y[:, None] * np.cos(cell.angle) - x[None, :] * np.sin(cell.angle)
    # Fibres run along the cell, wander, come in bundles and end before they cross it.
    fibres = np.cos(np.float32(2 * np.pi / 4.6) * across + 2.4 * texture.coarse)
    bundles = np.cos(np.float32(2 * np.pi / 23.0) * across + 1.5 * texture.coarse + rng.uniform(0, 2 * np.pi))
    ends = np.clip(0.8 + 0.8 * texture.medium, 0.0, 2.0) * np.clip(0.9 + 0.7 * bundles, 0.0, 1.6)
    fibres = np.maximum(fibres, 0.0) ** 6 * ends
    cortex = np.exp(-(((1.0 - depth) * radius / 2.2) ** 2)) * np.clip(0.75 + 0.45 * texture.coarse, 0.1, 2.2)
    membrane = 0.28 * body + 0.75 * cortex + 0.75 * p.actin_fibres * fibres * (1.0 - 0.6 * nucleus)
    agp = 820.0 * stain[3] * membrane * inside
    agp = agp + 1300.0 * stain[3] * _golgi(rng, cell, x, y) * inside * (1.0 - 0.5 * nucleus)

    threads = np.exp(-((texture.medium / 0.28) ** 2)) * np.clip(0.9 + 0.6 * texture.grain, 0.2, 2.0)
    puncta = np.clip(1.9 * (texture.fine - 0.95), 0.0, 2.2)
    # A network breaks up part by part, so half fragmented is half of the cell, not a blend of the two.
    order = 0.5 + 0.5 * np.tanh(0.8 * texture.coarse)
    broken = np.clip(5.0 * (p.mito_fragmentation - order) + 0.5, 0.0, 1.0)
    shape = (1.0 - broken) * threads + broken * puncta
    reach = 0.13 + np.exp(-from_nucleus / (0.42 * p.cell_radius)) * (depth < 0.93)
    mito = 1500.0 * stain[4] * p.mito_intensity * (0.08 + shape) * reach * cytoplasm
    return np.stack([dna, er, rna, agp, mito]).astype(np.float32)


def _golgi(rng: np.random.Generator, cell: Cell, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The Golgi apparatus: a group of vesicles beside the nucleus, or scattered over the cell; (h, w)."""
    p = cell.parameters
    scatter = 1.0 if cell.is_mitotic else p.golgi_dispersion
    count = int(8 + 14 * scatter)
    side = rng.uniform(0, 2 * np.pi)
    nucleus = cell.nuclei[0]
    distance = 1.15 * p.nucleus_radius * (1.0 - scatter)
    beside = np.array((nucleus.dx + distance * np.cos(side), nucleus.dy + distance * np.sin(side)))
    tight = beside + rng.normal(0.0, 2.4, (count, 2))
    loose = _inside_disc(rng, count, 0.75 * p.cell_radius)
    place = np.where(rng.random((count, 1)) < scatter, loose, tight)
    height = 0.55 - 0.1 * scatter
    return height * _spots(x, y, place, rng.uniform(1.0, 1.8, count))


def _inside_disc(rng: np.random.Generator, count: int, radius: float) -> np.ndarray:
    """Points spread evenly over a disc: float64 (count, 2), x and y from its centre."""
    distance, angle = radius * np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)
