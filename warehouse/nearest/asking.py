"""What a search is asked with on the command line: exactly one of a name, a well, wells, a vector, or pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from warehouse.errors import SearchError

if TYPE_CHECKING:
    from warehouse.nearest.filters import Query
    from warehouse.nearest.searcher import Searcher


@dataclass(frozen=True)
class Asked:
    """The ways to ask; one is given, the others are None or empty.

    Attributes:
        name: of a row of the level, a treatment say.
        well: `source/batch/plate/well`.
        wells: an SQL predicate over wells, whose profile is made on the spot.
        vector: a file (`.npy`, `.json`) or a JSON list, in the space of the recipe.
        images: as the extractors' `profile_of_images` takes them, which makes their query.
        plate: `source/batch/plate` that the images are of.
        settings: of the extractor that reads the images.
    """

    name: str | None = None
    well: str | None = None
    wells: str | None = None
    vector: str | None = None
    images: Sequence[str] = ()
    plate: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse none, and more than one.

        Raises:
            SearchError: which were given, and which there are.
        """
        ways = {
            "TREATMENT": self.name, "--well": self.well, "--wells": self.wells, "--vector": self.vector,
            "--image": self.images or None,
        }  # fmt: skip
        given = [way for way, value in ways.items() if value is not None]
        if len(given) != 1:
            found = " and ".join(given) + " were given" if given else "nothing to search with was given"
            message = f"{found}: give exactly one of {', '.join(ways)}"
            raise SearchError(message)
        if (self.plate is not None or self.settings) and not self.images:
            option = "--set" if self.plate is None else "--plate"
            message = f"{option} tells of a picture: give --image too, or leave it out"
            raise SearchError(message)

    def query(self, searcher: "Searcher") -> "Query":
        """Make the query of anything but images: what reads those is no part of this package.

        Raises:
            UnknownNameError: there is no such treatment, well or plate.
            SearchError: the vector is none, or does not fit.
        """
        if self.name is not None:
            return searcher.query(self.name)
        if self.well is not None:
            return searcher.well(self.well)
        if self.wells is not None:
            return searcher.wells(self.wells)
        text = (self.vector or "").strip()
        return searcher.vector(read_vector(text), "vector" if text.startswith("[") else Path(text).name)


def read_vector(text: str) -> np.ndarray:
    """Read a vector as a person gives it.

    Args:
        text: a JSON list of numbers, or a file that holds one (`.json`) or a NumPy array of one row (`.npy`).

    Returns:
        (d,) float32.

    Raises:
        SearchError: it is neither, or not one row of numbers.
    """
    shown = text if len(text) <= 60 else f"{text[:60]}…"
    try:
        if text.startswith("["):
            found = np.array(json.loads(text), dtype=np.float32)
        elif text.endswith(".json"):
            found = np.array(json.loads(Path(text).read_text(encoding="utf-8")), dtype=np.float32)
        else:
            found = np.asarray(np.load(text, allow_pickle=False), dtype=np.float32)
    except OSError as error:
        message = f"--vector {shown}: cannot be read: {error.strerror or error}; name a .npy or .json file, or a list"
        raise SearchError(message) from error
    except (ValueError, TypeError, EOFError, OverflowError, RecursionError) as error:
        message = (
            f"--vector {shown}: is no list of numbers ({error}): give a .npy or .json file, or [0.1, 0.2, …]"
        )
        raise SearchError(message) from error
    if found.ndim == 2 and len(found) == 1:
        found = found[0]
    if found.ndim != 1:
        message = f"--vector {shown}: has shape {found.shape}: give one vector, a list of d numbers"
        raise SearchError(message)
    return found
