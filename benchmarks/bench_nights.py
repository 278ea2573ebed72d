"""Cost of a plate's commit as the lake grows: the 500th plate of 384 wells × 384 against the 5th, on both catalogs.

The first 20 plates of a second, new lake are committed in turn with the last ones, so that a drift of the machine
meets both.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.bench_commit import DIM, plate
from benchmarks.measure import Row
from benchmarks.servers import postgres_server
from warehouse import ingest
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.runs import Run

PLATES = 500
#: Plates 5 to 24 of the young lake, in turn with the last 20 of the old one.
YOUNG, COUNTED = 4, 20


class _Night:
    """A lake that plates are committed to, one after the other."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        names = tuple(f"f{i}" for i in range(DIM))
        self._target = FeatureSet("bench", "import", "1", None, {}, (), names, "well")
        self._run, self._rng, self._count = Run("bench", {}), np.random.default_rng(0), 0

    def commit(self) -> float:
        """Commit the next plate and return how long it took, in seconds."""
        data = plate(self._count, self._rng)
        self._count += 1
        start = perf_counter()
        ingest.commit_plate(self.lake, self._run, self._target, data)
        return perf_counter() - start


@contextmanager
def _lakes(catalog: str) -> Iterator[tuple[Lake, Lake]]:
    """Make two lakes with their data on the local disk."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if catalog == "SQLite":
            made = [Lake.create(folder / name) for name in ("young", "old")]
        else:
            server = stack.enter_context(postgres_server(is_durable=True))
            places = [(f"postgres:{server.new_database()}", folder / name) for name in ("young", "old")]
            made = [Lake.create(address, data=data) for address, data in places]
        young, old = (stack.enter_context(lake) for lake in made)
        yield young, old


def run() -> list[Row]:
    """Measure both catalogs."""
    rows = []
    for catalog in ("SQLite", "Postgres"):
        with _lakes(catalog) as (first, second):
            young, old = _Night(first), _Night(second)
            for _ in range(PLATES - COUNTED):
                old.commit()
            for _ in range(YOUNG):
                young.commit()
            pairs = [(young.commit(), old.commit()) for _ in range(COUNTED)]
        early, late = (median(column) for column in zip(*pairs, strict=True))
        rows.append(
            Row(
                f"commit of plate {PLATES}, {catalog}",
                f"{late * 1e3:.0f} ms",
                f"plate 5: {early * 1e3:.0f} ms",
                late / early,
                "≤ 1.2",
            )
        )
    return rows
