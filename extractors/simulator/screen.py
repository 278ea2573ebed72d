"""Writing a synthetic screen: images first, the manifest last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from extractors.simulator.cells import Cell, draw_cells, make_cell
from extractors.simulator.layout import (
    SOURCE,
    WellPlan,
    batch_name,
    plan_wells,
    plate_name,
    simulated_annotations,
    simulated_layout,
)
from extractors.simulator.optics import Optics, expose, plate_optics
from extractors.simulator.phenotypes import parameters_at
from extractors.simulator.settings import CHANNELS, SimulatorSettings, Stream
from warehouse.errors import ScreenError

_TRUTH_SCHEMA = {
    "source": pl.String,
    "batch": pl.String,
    "plate": pl.String,
    "well": pl.String,
    "field": pl.String,
    "x_px": pl.Float64,
    "y_px": pl.Float64,
    "nucleus_radius_px": pl.Float64,
    "nuclei": pl.Int32,
    "is_mitotic": pl.Boolean,
    "phenotype": pl.String,
    "effect": pl.Float64,
}
#: Tries to find a free place for a cell; a field so full that all fail gets one cell fewer.
_TRIES = 60


@dataclass(frozen=True)
class SimulatedScreen:
    """Where a synthetic screen was written: its folder and the four tables in it."""

    folder: Path
    manifest: Path
    layout: Path
    annotations: Path
    truth: Path


def place_cells(rng: np.random.Generator, plan: WellPlan, effect: float, count: int, size: int) -> list[Cell]:
    """Put cells at random into a field without nuclei that overlap.

    Args:
        rng: source of chance.
        plan: what the well holds.
        effect: effect size in this well; cells vary around it.
        count: how many cells to place, where there is room for them.
        size: width and height of the field, px.

    Returns:
        The cells; the first nucleus of each has its centre inside the field.
    """
    phenotype = plan.compound.phenotype if plan.compound else None
    quirk = plan.compound.quirk if plan.compound else None
    cells: list[Cell] = []
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(count):
        of_cell = max(0.0, effect * float(rng.normal(1.0, 0.15)))
        parameters = parameters_at(phenotype, of_cell, quirk)
        for _ in range(_TRIES):
            x, y = (float(value) for value in rng.uniform(2.0, size - 2.0, 2))
            near = (
                np.hypot(x - other_x, y - other_y)
                < max(0.6 * (parameters.cell_radius + cell), 1.45 * (parameters.nucleus_radius + nucleus))
                for other_x, other_y, cell, nucleus in taken
            )
            if not any(near):
                taken.append((x, y, parameters.cell_radius, parameters.nucleus_radius))
                cells.append(make_cell(rng, x, y, parameters, of_cell))
                break
    return cells


def simulate_field(
    settings: SimulatorSettings, plan: WellPlan, field: int, optics: Optics
) -> tuple[np.ndarray, list[Cell]]:
    """Simulate one field of view.

    Args:
        settings: what to simulate.
        plan: the well.
        field: index of the field in the well.
        optics: how the well's plate is stained and imaged.

    Returns:
        Pixels (5, H, W) in `settings.dtype`, and the cells drawn in them.
    """
    key = (plan.batch, plan.plate, plan.position)
    of_well = settings.generator(Stream.WELL, *key)
    effect = plan.effect * float(np.exp(of_well.normal(0.0, 0.08)))
    density = float(np.exp(of_well.normal(0.0, 0.12)))
    stain = np.exp(of_well.normal(0.0, 0.05, len(CHANNELS)))
    phenotype = plan.compound.phenotype if plan.compound else None
    survival = parameters_at(phenotype, effect).survival
    is_toxic = plan.compound is not None and plan.compound.phenotype.name == "toxic"
    if settings.lethal_top_dose and is_toxic and plan.concentration == settings.doses[-1]:
        survival = 0.0
    rng = settings.generator(Stream.FIELD, *key, field)
    count = int(rng.poisson(settings.cells_per_field * density * survival))
    cells = place_cells(rng, plan, effect, count, settings.field_px)
    scene = draw_cells(rng, cells, settings.field_px)
    return expose(rng, scene, optics, settings.noise, settings.dtype, stain), cells


def simulate_screen(
    folder: Path, settings: SimulatorSettings, progress: Callable[[int, int], None] | None = None
) -> SimulatedScreen:
    """Write a synthetic screen: one LZW-compressed TIFF a field and channel, and four CSV tables.

    Args:
        folder: an empty folder, or one to be made.
        settings: what to simulate.
        progress: called after each field with the fields done and the fields in all.

    Returns:
        The folder and its tables. `manifest.csv` is written last, in one step: a run that was interrupted
        has none. Its paths are relative to the folder.

    Raises:
        ScreenError: the folder is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or next(folder.iterdir(), None) is not None):
        what = "holds files already" if folder.is_dir() else "is a file"
        message = f"cannot simulate a screen into {folder}: it {what}; give an empty folder or a new one"
        raise ScreenError(message)
    written = SimulatedScreen(
        folder, *(folder / f"{name}.csv" for name in ("manifest", "layout", "annotations", "truth"))
    )
    folder.mkdir(parents=True, exist_ok=True)
    plans = plan_wells(settings)
    total = len(plans) * settings.fields
    optics: Optics | None = None
    last_plate: tuple[int, int] | None = None
    fields, truth = [], []
    for plan in plans:
        if optics is None or (plan.batch, plan.plate) != last_plate:
            optics = plate_optics(settings, plan.batch, plan.plate)
            last_plate = (plan.batch, plan.plate)
        ids = (SOURCE, batch_name(plan.batch), plate_name(plan.batch, plan.plate), plan.well)
        for field in range(settings.fields):
            pixels, cells = simulate_field(settings, plan, field, optics)
            paths = _write_images(folder, ids[2], f"{plan.well}_f{field + 1}", pixels)
            fields.append((*ids, str(field + 1), *paths))
            truth.extend(_truth_rows((*ids, str(field + 1)), plan, cells))
            if progress:
                progress(len(fields), total)
    simulated_layout(settings).write_csv(written.layout)
    simulated_annotations(settings).write_csv(written.annotations)
    pl.DataFrame(truth, schema=_TRUTH_SCHEMA, orient="row").write_csv(written.truth, float_precision=3)
    columns = ["source", "batch", "plate", "well", "field", *(f"path_{channel}" for channel in CHANNELS)]
    unfinished = folder / "manifest.csv.unfinished"
    pl.DataFrame(fields, schema=dict.fromkeys(columns, pl.String), orient="row").write_csv(unfinished)
    unfinished.replace(written.manifest)
    return written


def _write_images(folder: Path, plate: str, stem: str, pixels: np.ndarray) -> list[str]:
    """Write one file a channel; give their paths relative to the screen's folder, with forward slashes."""
    # Only images need tifffile: the simulated layout and profiles work without the `extract` extra.
    import tifffile

    place = folder / "images" / plate
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for channel, plane in zip(CHANNELS, pixels, strict=True):
        path = place / f"{stem}_{channel}.tif"
        tifffile.imwrite(path, plane, compression="lzw", predictor=True, metadata=None, software=False)
        paths.append(path.relative_to(folder).as_posix())
    return paths


def _truth_rows(ids: Sequence[str], plan: WellPlan, cells: Sequence[Cell]) -> list[tuple[object, ...]]:
    """One row a cell; the position is the first nucleus's, so that it lies in DNA."""
    phenotype = plan.compound.phenotype.name if plan.compound else "none"
    return [
        (
            *ids,
            cell.x_px + cell.nuclei[0].dx,
            cell.y_px + cell.nuclei[0].dy,
            cell.nuclei[0].radius,
            len(cell.nuclei),
            cell.is_mitotic,
            phenotype,
            cell.effect,
        )
        for cell in cells
    ]
