"""Which compound stands in which well, and what it is known to do."""

from dataclasses import dataclass, fields

import numpy as np
import polars as pl

from extractors.simulator.phenotypes import PHENOTYPES, CellParameters, Phenotype, hill
from extractors.simulator.settings import PLATE_SHAPES, SimulatorSettings, Stream
from warehouse import wells

SOURCE = "synthetic"
VEHICLE = "DMSO"
POSITIVE_CONTROL = "synthol-positive"
#: The positive control's concentration (uM) and phenotype; its effect is full.
POSITIVE_DOSE = 10.0
POSITIVE_PHENOTYPE = next(phenotype for phenotype in PHENOTYPES if phenotype.name == "mitotic-arrest")

_LAYOUT_SCHEMA = {
    "source": pl.String,
    "batch": pl.String,
    "plate": pl.String,
    "well": pl.String,
    "compound": pl.String,
    "concentration": pl.Float64,
    "unit": pl.String,
    "control_type": pl.String,
}


@dataclass(frozen=True)
class Compound:
    """A made-up compound: its phenotype, its potency, and how it departs from others of that phenotype."""

    name: str
    phenotype: Phenotype
    half_effect: float
    efficacy: float
    quirk: np.ndarray

    def effect(self, concentration: float) -> float:
        """Effect size at a concentration (uM): 0 = none, 1 = the phenotype in full."""
        return self.efficacy * hill(concentration, self.half_effect)


@dataclass(frozen=True)
class WellPlan:
    """What one well holds: `position` counts the plate's wells by rows; vehicle has no compound."""

    batch: int
    plate: int
    position: int
    well: str
    compound: Compound | None
    concentration: float | None
    control_type: str

    @property
    def effect(self) -> float:
        """Effect size meant for this well, before well-to-well variation."""
        if self.compound is None or self.concentration is None:
            return 0.0
        return self.compound.effect(self.concentration)


def batch_name(batch: int) -> str:
    """Name of the batch of this index."""
    return f"SYNTH-B{batch + 1}"


def plate_name(batch: int, plate: int) -> str:
    """Name of the plate of this index in its batch."""
    return f"SYNTH-B{batch + 1}-P{plate + 1}"


def well_name(row: int, column: int) -> str:
    """Name of the well in a 0-based row and column: B02, AF48."""
    return wells.well_name(row + 1, column + 1)


def compounds(settings: SimulatorSettings) -> list[Compound]:
    """List the screen's compounds, those of one phenotype together."""
    listed = []
    for index in range(settings.phenotypes * settings.compounds_per_phenotype):
        rng = settings.generator(Stream.COMPOUND, index)
        listed.append(
            Compound(
                name=f"synthol-{index + 1:02d}",
                phenotype=PHENOTYPES[index // settings.compounds_per_phenotype],
                half_effect=float(np.exp(rng.normal(0.0, 0.2))),
                efficacy=float(rng.uniform(0.9, 1.1)),
                quirk=rng.normal(0.0, 0.04, len(fields(CellParameters))),
            )
        )
    return listed


def used_positions(settings: SimulatorSettings) -> list[tuple[int, int]]:
    """Rows and columns (0-based) in use: a centred block, off the plate's edge where it fits there."""
    rows, columns = PLATE_SHAPES[settings.plate_format]
    wells = settings.wells_per_plate
    margin = 1 if wells <= (rows - 2) * (columns - 2) else 0
    height = rows - 2 * margin
    width = -(-wells // height)
    left = (columns - width) // 2
    return [(margin + i // width, left + i % width) for i in range(width * height)][:wells]


def plan_wells(settings: SimulatorSettings) -> list[WellPlan]:
    """Place every treatment at random: on every plate where it fits, else at least once in every batch.

    With `split_compounds` the compounds of a phenotype take turns over the batches, each in one of them.

    Returns:
        One entry a well, by batch, plate and position. A batch's plan does not depend on how many there are.
    """
    positive = Compound(
        POSITIVE_CONTROL, POSITIVE_PHENOTYPE, 1e-6, 1.0, np.zeros(len(fields(CellParameters)))
    )
    used = used_positions(settings)
    columns = PLATE_SHAPES[settings.plate_format][1]
    plans = []
    for batch in range(settings.batches):
        treatments = [(compound, dose) for compound in _in_batch(settings, batch) for dose in settings.doses]
        deck = settings.generator(Stream.LAYOUT, batch).permutation(len(treatments))
        for plate in range(settings.plates_per_batch):
            # The deck goes round in one order, so a hand as large as the deck holds every treatment.
            first = plate * settings.treated_wells
            hand = [treatments[deck[(first + i) % len(deck)]] for i in range(settings.treated_wells)]
            content: list[tuple[Compound | None, float | None, str]] = [
                (None, None, "negative")
            ] * settings.dmso_wells
            content += [(positive, POSITIVE_DOSE, "positive")] * settings.positive_wells
            content += [(compound, dose, "none") for compound, dose in hand]
            order = settings.generator(Stream.LAYOUT, batch, plate).permutation(len(content))
            for (row, column), pick in zip(used, order, strict=True):
                plans.append(
                    WellPlan(batch, plate, row * columns + column, well_name(row, column), *content[pick])
                )
    return plans


def _in_batch(settings: SimulatorSettings, batch: int) -> list[Compound]:
    listed = compounds(settings)
    return listed[batch % settings.batches :: settings.batches] if settings.split_compounds else listed


def simulated_layout(settings: SimulatorSettings) -> pl.DataFrame:
    """Give the screen's layout, one row a well, columns as in `layout.csv`."""
    rows = [
        (
            SOURCE,
            batch_name(plan.batch),
            plate_name(plan.batch, plan.plate),
            plan.well,
            VEHICLE if plan.compound is None else plan.compound.name,
            plan.concentration,
            None if plan.concentration is None else "uM",
            plan.control_type,
        )
        for plan in plan_wells(settings)
    ]
    return pl.DataFrame(rows, schema=_LAYOUT_SCHEMA, orient="row")


def simulated_annotations(settings: SimulatorSettings) -> pl.DataFrame:
    """Give the labels of the screen's compounds, one row a label; they hold at every concentration.

    Returns:
        Kind `moa`: the phenotype's name, for every compound. Kind `target`: a made-up gene shared by the
        compounds of every second phenotype, so that some compounds have none.
    """
    known = compounds(settings)
    rows = [(compound.name, None, None, "moa", compound.phenotype.name) for compound in known]
    if settings.positive_wells:
        rows.append((POSITIVE_CONTROL, None, None, "moa", POSITIVE_PHENOTYPE.name))
    for index, compound in enumerate(known):
        phenotype = index // settings.compounds_per_phenotype
        if phenotype % 2 == 0:
            rows.append((compound.name, None, None, "target", f"SYNGENE{phenotype // 2 + 1}"))
    schema = {
        "compound": pl.String,
        "concentration": pl.Float64,
        "unit": pl.String,
        "kind": pl.String,
        "label": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")
