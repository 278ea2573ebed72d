"""Several processes on one lake, as in a night: writers that commit plates, readers that look for torn ones."""

import multiprocessing
import os
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from builders import commit, layout, wide

from warehouse.embeddings import to_column
from warehouse.ingest import PlateData
from warehouse.lake import Lake
from warehouse.runs import Run

SPAWN = multiprocessing.get_context("spawn")
WELLS = [f"{chr(ord('A') + row)}{column:02d}" for row in range(16) for column in range(1, 25)]
#: A process that has not ended by then hangs.
_PATIENCE_SECONDS = 600.0

#: Per plate what one snapshot holds: wells as counted at loading, profiles, wells of the layout.
_SEEN = """
    SELECT loads.plate, any_value(loads.wells_in) AS counted, count(DISTINCT w.well) AS wells,
        count(w.well) AS profiles, (SELECT count(*) FROM main.wells AS plan WHERE plan.plate = loads.plate) AS planned
    FROM main.plate_loads AS loads LEFT JOIN wide.wells AS w USING (source, batch, plate)
    GROUP BY loads.plate
"""


def big_plate(name: str, content: str = "h1", dim: int = 64) -> PlateData:
    """A plate of 384 wells with a layout; the profiles follow from its name."""
    rng = np.random.default_rng(list(name.encode()))
    key = ("s", "b", name)
    counts = (pl.lit(None, dtype=pl.Int32).alias(column) for column in ("field_count", "cell_count"))
    wells = pl.DataFrame({"well": WELLS}).with_columns(
        *counts, to_column(rng.normal(size=(len(WELLS), dim)).astype(np.float32))
    )
    plan = layout(key, [(well, f"c{number % 96}", 1.0, "none") for number, well in enumerate(WELLS)])
    return PlateData(key, content, plan, None, (), pl.DataFrame(), wells, pl.DataFrame())


@dataclass
class Night:
    """What several processes did.

    Attributes:
        errors: of writers and readers, each as its text.
        outcomes: of the commits.
        looks: how often a reader looked at the whole lake.
        torn: plates of which a reader saw a part.
        seconds: from the first start to the last end.
    """

    errors: list[str] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    looks: int = 0
    torn: list[Any] = field(default_factory=list)
    seconds: float = 0.0


def write(address: str, plates: list[str], content: str, barrier: Any, answers: Any) -> None:
    """Commit plates one after the other; with a barrier, each at the same moment as the other writers."""
    try:
        target, run = wide(64), Run("test", {})
        with Lake.open(address) as lake:
            for name in plates:
                if barrier is not None:
                    barrier.wait(_PATIENCE_SECONDS)
                answers.put(("outcome", commit(lake, big_plate(name, content), target, run=run)))
    except BaseException as error:
        answers.put(("error", f"{os.getpid()} writer: {error!r}"))
        if barrier is not None:
            barrier.abort()
    answers.put(("written", None))


def read(address: str, stop: Any, answers: Any) -> None:
    """Look at the whole lake again and again, in one query and in several of one snapshot, until told to stop."""
    looks, torn = 0, []
    try:
        with Lake.open(address, read_only=True) as lake:
            while not stop.is_set():
                seen = lake.frame(_SEEN).rows()
                torn += [row for row in seen if row[1:] != (384,) * 4]
                with lake.reading():
                    loaded = lake.value("SELECT count(*) FROM main.plate_loads")
                    profiles = lake.value("SELECT count(*) FROM wide.wells")
                    planned = lake.value("SELECT count(*) FROM main.wells")
                    plates = lake.value("SELECT count(*) FROM main.plates")
                if (profiles, planned, plates) != (loaded * 384, loaded * 384, loaded):
                    torn.append((loaded, profiles, planned, plates))
                looks += 1
    except BaseException as error:
        answers.put(("error", f"{os.getpid()} reader: {error!r}"))
    answers.put(("looks", (looks, torn)))


def night(address: str, writers: int, plates: int, readers: int) -> Night:
    """Let writers bring plates of their own in, beside readers; the lake must hold the feature set `wide`."""
    return run_together(
        [[f"w{writer}p{number}" for number in range(plates)] for writer in range(writers)],
        address,
        readers=readers,
    )


def run_together(
    plates: list[list[str]],
    address: str,
    *,
    readers: int = 0,
    contents: list[str] | None = None,
    is_in_step: bool = False,
) -> Night:
    """Start a writer for each list of plates, and readers; wait for all, and say what they did.

    Args:
        plates: names, per writer.
        address: of the lake.
        readers: how many look on.
        contents: content hash that each writer gives its plates; `h1` by default.
        is_in_step: let the writers commit their n-th plates at the same moment.
    """
    answers, stop = SPAWN.Queue(), SPAWN.Event()
    barrier = SPAWN.Barrier(len(plates)) if is_in_step else None
    contents = contents or ["h1"] * len(plates)
    started = time.monotonic()
    watching = [SPAWN.Process(target=read, args=(address, stop, answers)) for _ in range(readers)]
    writing = [
        SPAWN.Process(target=write, args=(address, names, content, barrier, answers))
        for names, content in zip(plates, contents, strict=True)
    ]
    done = Night()
    for process in (*watching, *writing):
        process.start()
    # A process ends only after its answers were taken out of the queue.
    writers, lookers = len(writing), len(watching)
    while writers or lookers:
        what, answer = answers.get(timeout=_PATIENCE_SECONDS)
        if what == "outcome":
            done.outcomes.append(answer)
        elif what == "error":
            done.errors.append(answer)
        elif what == "written":
            writers -= 1
            if not writers:
                stop.set()
        else:
            lookers -= 1
            done.looks += answer[0]
            done.torn += answer[1]
    for process in (*watching, *writing):
        process.join(_PATIENCE_SECONDS)
        if process.exitcode != 0:
            done.errors.append(f"exit code {process.exitcode}")
    done.seconds = time.monotonic() - started
    return done
