"""Settings of the simulator, and its random streams."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from extractors.simulator.phenotypes import PHENOTYPES
from warehouse.errors import ScreenError
from warehouse.wells import FORMATS

#: Channels of every simulated image, in the order in which files and arrays hold them.
CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")

#: Rows and columns of the plates that can be simulated.
PLATE_SHAPES = {size: FORMATS[size] for size in (96, 384, 1536)}

#: Largest value of each pixel type, and how many photo-electrons one grey level stands for.
PIXEL_TYPES = {"uint16": (65535, 1.0), "uint8": (255, 16.0)}


class Stream(IntEnum):
    """What a random stream is for: the first part of its key."""

    LAYOUT = 0
    COMPOUND = 1
    BATCH = 2
    PLATE = 3
    WELL = 4
    FIELD = 5
    PROFILE_EFFECT = 6
    PROFILE_BATCH = 7
    PROFILE_PLATE = 8


@dataclass(frozen=True)
class SimulatorSettings:
    """What to simulate. Strengths are multipliers: 0 switches an effect off, 1 is an ordinary screen."""

    #: Seed of everything; the same seed gives the same pixels.
    seed: int = 0
    #: Batches, each with staining and optics of its own.
    batches: int = 2
    #: Plates in each batch.
    plates_per_batch: int = 2
    #: Size of the plate in wells: 96, 384 or 1536.
    plate_format: int = 96
    #: Wells in use on each plate, a centred block that keeps off the edge where it can.
    wells_per_plate: int = 48
    #: Fields of view in each well.
    fields: int = 1
    #: Width and height of a field, pixels.
    field_px: int = 256
    #: Mean number of cells in an untreated field.
    cells_per_field: float = 10.0
    #: Phenotypes in use, the first so many of `PHENOTYPES`.
    phenotypes: int = 12
    #: Compounds that cause each phenotype.
    compounds_per_phenotype: int = 2
    #: Concentrations of each compound, uM, rising.
    doses: tuple[float, ...] = (0.5, 2.0, 8.0)
    #: Whether each compound stands in one batch only, as on BBBC021: what looks like it without being in its
    #: batch (NSB) is then a question with an answer. False: every treatment is in every batch.
    split_compounds: bool = False
    #: Wells with vehicle only on each plate (negative control).
    dmso_wells: int = 8
    #: Wells with the positive control on each plate.
    positive_wells: int = 2
    #: Whether the top dose of a toxic compound kills every cell: wells and images without cells.
    lethal_top_dose: bool = False
    #: Share of the light lost in a field's corners, 0 to below 1.
    illumination: float = 0.35
    #: Strength of differences between batches and plates (gain, offset, blur, staining).
    batch_strength: float = 1.0
    #: Strength of the noise: shot and read noise in images, well noise in profiles.
    noise: float = 1.0
    #: Pixel type: uint16 or uint8.
    dtype: str = "uint16"

    def __post_init__(self) -> None:
        """Refuse values that cannot be simulated, naming the value."""
        least = {
            "seed": 0, "batches": 1, "plates_per_batch": 1, "wells_per_plate": 1, "fields": 1, "field_px": 32,
            "cells_per_field": 0, "phenotypes": 1, "compounds_per_phenotype": 1, "dmso_wells": 0,
            "positive_wells": 0, "illumination": 0, "batch_strength": 0, "noise": 0,
        }  # fmt: skip
        for name, bound in least.items():
            if (value := getattr(self, name)) < bound:
                message = f"simulator setting {name} is {value!r}: give {bound} or more"
                raise ScreenError(message)
        most: dict[str, float] = {"phenotypes": len(PHENOTYPES), "illumination": 0.95}
        for name, limit in most.items():
            if (value := getattr(self, name)) > limit:
                message = f"simulator setting {name} is {value!r}: give {limit} or less"
                raise ScreenError(message)
        for name, known in (("plate_format", PLATE_SHAPES), ("dtype", PIXEL_TYPES)):
            if (value := getattr(self, name)) not in known:
                message = f"simulator setting {name} is {value!r}: give one of {', '.join(map(str, known))}"
                raise ScreenError(message)
        if not self.doses or list(self.doses) != sorted(set(self.doses)) or min(self.doses) <= 0:
            message = f"simulator setting doses is {self.doses!r}: give different values above 0 uM, rising"
            raise ScreenError(message)
        if self.wells_per_plate > self.plate_format:
            message = (
                f"simulator setting wells_per_plate is {self.wells_per_plate}, "
                f"but the plate has {self.plate_format}: give fewer wells or a larger plate_format"
            )
            raise ScreenError(message)
        if self.treatments > (room := self.plates_per_batch * self.treated_wells):
            message = (
                f"{self.treatments} treatments do not fit into the {room} wells that controls leave free "
                "in a batch: lower phenotypes, compounds_per_phenotype or doses, or give more wells or plates"
            )
            raise ScreenError(message)

    @property
    def treatments(self) -> int:
        """Number of treatments: compounds times doses."""
        return self.phenotypes * self.compounds_per_phenotype * len(self.doses)

    @property
    def treated_wells(self) -> int:
        """Wells of a plate that controls leave free."""
        return self.wells_per_plate - self.dmso_wells - self.positive_wells

    def generator(self, stream: Stream, *key: int) -> np.random.Generator:
        """Give the random numbers of one part of the screen, whatever was simulated before it.

        Args:
            stream: what they are for.
            key: indices of the part, for example of batch, plate, well and field.

        Returns:
            A generator that depends on the seed, the stream and the key only.
        """
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(int(stream), *key)))
