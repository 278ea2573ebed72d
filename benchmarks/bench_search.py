"""Search of as many vectors as JUMP has perturbations against bare FAISS and DuckDB, and an index of 1,000,000 wells.

The vectors are 136,750 × 384. Each is the sum of its mechanism (one of 2,000 directions of one length), a background in
20 directions as batches leave it (the strongest 1.5 times that length, the weakest a tenth) and noise (1.2 times).
"""

import json
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import duckdb
import numpy as np
import polars as pl

from benchmarks import bench_views
from benchmarks.measure import Row, in_process, peak_mib, seconds
from warehouse import ingest, layouts
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.runs import Run
from warehouse.screens.model import ANNOTATIONS_SCHEMA
from warehouse.search import Index, structures

N, DIM, K = 136_750, 384, 20
SINGLE, BATCH, BATCHES = 31, 1000, 100
#: Plates of the lakes that are searched end to end, and indexed.
PLATES, MANY_PLATES = 372, 2605
#: Cells of the structure that is built from a file.
CELLS, CELL_DIM = 1_000_000, 128
FILTERS = {
    "no filter": None,
    "a filter that leaves 1 %": 0.01,
    "a filter that leaves 50 %": 0.5,
    "a filter that leaves 99.9 %": 0.999,
    "not the same compound": None,
    "not the same batch": None,
}
AS_FAISS = "≤ 1.2"


def run() -> list[Row]:
    """Measure each, those with much memory in a process of their own."""
    unit = vectors()
    rows = flat(unit) + approximate(unit)
    rows.append(against_duckdb(unit))
    del unit
    with tempfile.TemporaryDirectory() as folder:
        rows += on_a_lake(Path(folder) / "lake", PLATES)
    with tempfile.TemporaryDirectory() as folder:
        rows += million(Path(folder) / "lake", MANY_PLATES)
    rows.append(cells())
    return rows


def vectors(n: int = N) -> np.ndarray:
    """Make vectors of length 1; (n, 384) float32."""
    rng = np.random.default_rng(0)
    mechanisms = rng.standard_normal((2000, DIM), dtype=np.float32) / DIM**0.5
    directions = rng.standard_normal((20, DIM), dtype=np.float32) / DIM**0.5
    weights = rng.standard_normal((n, 20), dtype=np.float32) * np.geomspace(1.5, 0.1, 20, dtype=np.float32)
    made = rng.standard_normal((n, DIM), dtype=np.float32) * np.float32(1.2 / DIM**0.5)
    made += mechanisms[rng.integers(0, len(mechanisms), n)]
    made += weights @ directions
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def flat(unit: np.ndarray) -> list[Row]:
    """Ask single queries and a batch of 1,000, each filter in turn with bare FAISS, which has no filter."""
    import faiss

    bare = faiss.IndexFlatIP(DIM)
    bare.add(unit)
    index = Index(unit, _keys(len(unit)))
    rng = np.random.default_rng(1)
    asked = rng.choice(len(unit), BATCH, replace=False)
    rows = []
    works = _works(index, unit, rng, len(unit))
    for count, turns in ((1, SINGLE), (BATCH, 5)):
        for name, work in works.items():
            # In turn, so that both have the machine as it is just then.
            theirs, ours = [], []
            for turn in range(turns):
                queries = asked[[turn]] if count == 1 else asked
                theirs.append(_time(lambda: bare.search(unit[queries], K + 1)))  # noqa: B023
                ours.append(_time(lambda: work(queries)))  # noqa: B023
            what = "single query" if count == 1 else f"{count:,} queries at once"
            rows.append(
                Row(
                    f"flat search of {N:,} × {DIM}, {what}, {name}",
                    _shown(median(ours)) + (", asked < 40 ms" if (count, name) == (1, "no filter") else ""),
                    f"faiss.IndexFlatIP without filter {_shown(median(theirs))}",
                    median(ours) / median(theirs),
                    AS_FAISS,
                )
            )
    return rows


def _works(
    index: Index, unit: np.ndarray, rng: np.random.Generator, n: int
) -> dict[str, Callable[[np.ndarray], object]]:
    """Make a search of each filter: a predicate as a mask, exclusions as arrays of rows."""
    batch = rng.integers(0, BATCHES, n)
    of_batch = [np.flatnonzero(batch == number) for number in range(BATCHES)]

    def compound(row: int) -> np.ndarray:
        first = row - row % 3
        return np.arange(first, min(first + 3, n))  # three doses

    def search(
        mask: np.ndarray | None, others: Callable[[int], list[np.ndarray]]
    ) -> Callable[[np.ndarray], object]:
        return lambda rows: index.search(
            unit[rows], K, mask, [[np.array([row]), *others(int(row))] for row in rows]
        )

    works = {}
    for name, share in FILTERS.items():
        mask = None if share is None else rng.random(n) < share
        works[name] = search(mask, lambda row: [])
    works["not the same compound"] = search(None, lambda row: [compound(row)])
    works["not the same batch"] = search(None, lambda row: [of_batch[batch[row]]])
    return works


def approximate(unit: np.ndarray) -> list[Row]:
    """Build HNSW and IVF for a recall of .99, and ask single queries of them and of flat search in turn."""
    import faiss

    bare = faiss.IndexFlatIP(DIM)
    bare.add(unit)
    exact = Index(unit, _keys(len(unit)))
    asked = np.random.default_rng(2).choice(len(unit), 200, replace=False)
    itself = [[np.array([row])] for row in asked]
    truth = exact.search(unit[asked], K, None, itself).rows
    rows = []
    for kind in ("hnsw", "ivf"):
        start = perf_counter()
        index = Index(unit, _keys(len(unit)), structure=structures.build(unit, kind, 0.99))
        built = perf_counter() - start
        times: dict[str, list[float]] = {"bare": [], "flat": [], kind: []}
        found = []
        for turn, row in enumerate(asked):
            query, own = unit[[row]], [itself[turn]]
            times[kind].append(_time(lambda: found.append(index.search(query, K, None, own).rows[0])))  # noqa: B023
            if turn < SINGLE:
                times["flat"].append(_time(lambda: exact.search(query, K, None, own)))  # noqa: B023
                times["bare"].append(_time(lambda: bare.search(query, K + 1)))  # noqa: B023
        recall = np.mean(
            [len(np.intersect1d(one, other)) / K for one, other in zip(found, truth, strict=True)]
        )
        took = {name: median(each) for name, each in times.items()}
        assert index.structure is not None
        rows.append(
            Row(
                f"{kind} search of {N:,} × {DIM}, single query",
                f"{_shown(took[kind])} at recall {recall:.3f} (said: {index.structure.settings.recall:.3f}); "
                f"built in {built:.0f} s",
                f"faiss.IndexFlatIP {_shown(took['bare'])}; our flat search {_shown(took['flat'])}, "
                f"{took['flat'] / took[kind]:.1f} times",
                took["bare"] / took[kind],
                "≥ 20 at recall ≥ .99",
            )
        )
    return rows


def against_duckdb(unit: np.ndarray) -> Row:
    """Ask DuckDB for the 20 nearest of the same vectors, in a table of its own in memory."""
    index = Index(unit, _keys(len(unit)))
    with duckdb.connect() as connection:
        frame = pl.DataFrame({"id": np.arange(len(unit)), "embedding": unit})
        connection.register("frame", frame.with_columns(pl.col("embedding").arr.to_list()))
        connection.execute("CREATE TABLE profiles AS FROM frame")
        connection.unregister("frame")
        query = (
            "SELECT id FROM profiles ORDER BY list_cosine_similarity(embedding, ?::FLOAT[]) DESC, id LIMIT ?"
        )
        theirs = seconds(lambda: connection.execute(query, [unit[7].tolist(), K]).fetchall(), 5)
        ours = seconds(lambda: index.search(unit[[7]], K), SINGLE)
        same = [row for (row,) in connection.execute(query, [unit[7].tolist(), K]).fetchall()]
    assert same == index.search(unit[[7]], K).rows[0].tolist()
    return Row(
        f"nearest {K} of {N:,} × {DIM}, flat search against SQL, both in memory",
        _shown(ours),
        f"DuckDB's list_cosine_similarity, ORDER BY … LIMIT {K}: {_shown(theirs)}",
        theirs / ours,
        "≥ 10",
    )


def on_a_lake(path: Path, plates: int) -> list[Row]:
    """Ask a lake's treatments end to end: neighbours with labels, p-values and enrichment."""
    from warehouse.nearest import build

    _screen(path, plates)
    with Lake.open(path) as lake:
        took = _time(lambda: build(lake, "bench"))
    found = in_process("benchmarks.bench_search", "ask", str(path))
    return [
        Row(
            f"nearest {K} of {found['rows']:,.0f} treatments × {DIM} of a lake, with p-values, labels and enrichment",
            _shown(found["seconds"]),
            f"the search alone {_shown(found['search'])}; before that, once, opening the index {_shown(found['open'])} "
            f"and building it {_shown(took)}",
            found["seconds"] / found["search"],
            "< 40 ms",
        ),
        Row(
            f"nearest {K} of the lake's {found['wells']:,.0f} wells × {DIM}, flat search against SQL over the table",
            _shown(found["search_wells"]),
            f"list_cosine_similarity over bench.wells, ORDER BY … LIMIT {K}: {_shown(found['sql'])}",
            found["sql"] / found["search_wells"],
            "≥ 10",
        ),
    ]


def _screen(path: Path, plates: int) -> None:
    """Make a screen with a treatment a well, as JUMP's, beside 16 controls a plate; a tenth have a mechanism."""
    rng = np.random.default_rng(0)
    profiles = rng.standard_normal((bench_views.TREATMENTS, DIM), dtype=np.float32)
    run_of, treated = Run("bench", {}), len(bench_views.WELLS) - bench_views.CONTROLS
    with Lake.create(path) as lake:
        for number in range(plates):
            data = bench_views.plate(number, profiles, rng)
            assert data.layout is not None
            names = ["DMSO"] * bench_views.CONTROLS
            names += [f"compound-{number * treated + i:06d}" for i in range(treated)]
            layout = data.layout.with_columns(pl.Series("compound", names))
            ingest.commit_plate(lake, run_of, _feature_set(), replace(data, layout=layout))
        labels = [
            (f"compound-{i:06d}", None, None, "moa", f"moa-{i % 900}") for i in range(0, plates * treated, 10)
        ]
        layouts.put_annotations(lake, run_of, pl.DataFrame(labels, schema=ANNOTATIONS_SCHEMA, orient="row"))


def ask(path: str) -> dict[str, float]:
    """Open a searcher, and ask it for the neighbours of treatments, each once."""
    from warehouse.nearest import Filters, Searcher

    with Lake.open(Path(path), read_only=True) as lake:
        start = perf_counter()
        searcher = Searcher(lake, "bench")
        opened = perf_counter() - start
        chosen = np.random.default_rng(0).choice(len(searcher.rows), SINGLE + 1, replace=False)
        queries = [searcher.query(searcher.rows["treatment"][int(row)]) for row in chosen]
        filters = Filters(not_same_compound=True)
        searcher.nearest(queries.pop(), K, filters)  # labels are read once
        whole = median(_time(lambda: searcher.nearest(query, K, filters)) for query in queries)  # noqa: B023
        index = searcher.index
        alone = median(_time(lambda: index.search(query.vector[None, :], K)) for query in queries)  # noqa: B023
        wells = Searcher(lake, "bench", level="well").index
        text = "SELECT plate, well FROM bench.wells ORDER BY list_cosine_similarity(embedding, ?::FLOAT[]) DESC LIMIT ?"
        vector = queries[0].vector
        return {
            "seconds": whole,
            "search": alone,
            "open": opened,
            "rows": float(len(searcher.rows)),
            "wells": float(len(wells)),
            "search_wells": seconds(lambda: wells.search(vector[None, :], K), SINGLE),
            "sql": seconds(lambda: lake.connection.execute(text, [vector.tolist(), K]).fetchall(), 5),
        }


def _feature_set() -> FeatureSet:
    return FeatureSet("bench", "import", "1", None, {}, (), tuple(f"f{i}" for i in range(DIM)), "well")


def million(path: Path, plates: int) -> list[Row]:
    """Index 1,000,000 wells of a lake, then add one plate."""
    bench_views.build(path, plates)
    found = in_process("benchmarks.bench_search", "build", str(path), str(plates))
    held = found["rows"] * DIM * 4 / 2**20
    what = f"index of {found['rows']:,.0f} wells × {DIM}"
    return [
        Row(
            f"{what} built from the lake",
            f"{found['seconds']:.0f} s",
            f"reading the wells alone (DuckDB to Arrow) {found['read']:.0f} s",
            found["seconds"] / found["read"],
            "< 60 s",
        ),
        Row(
            f"{what}, peak of the process that builds it",
            f"{found['mib']:,.0f} MiB",
            f"the vectors {held:,.0f} MiB; the process before {found['before']:,.0f} MiB",
            found["mib"] / held,
            "≤ 1.3",
        ),
        Row(
            f"{what}, one plate of 384 wells added",
            f"{found['added']:.2f} s",
            f"built whole {found['seconds']:.0f} s",
            found["added"] / found["seconds"],
            "< 1 s",
        ),
    ]


def measure_build(path: str, plates: str) -> dict[str, float]:
    """Build the index, commit one more plate, and build again; then read all wells, for comparison."""
    from warehouse.nearest import build

    rng = np.random.default_rng(1)
    profiles = rng.standard_normal((bench_views.TREATMENTS, DIM), dtype=np.float32)
    with Lake.open(Path(path)) as lake:
        before = peak_mib()
        start = perf_counter()
        report = build(lake, "bench", level="well")
        took = perf_counter() - start
        mib = peak_mib()
        ingest.commit_plate(
            lake, Run("bench", {}), _feature_set(), bench_views.plate(int(plates), profiles, rng)
        )
        added = _time(lambda: build(lake, "bench", level="well"))
        reader = lake.connection.execute("SELECT embedding FROM bench.wells").to_arrow_reader(10_000)
        read = _time(lambda: sum(batch.num_rows for batch in reader))
    rows = float(report.vectors)
    return {"seconds": took, "mib": mib, "before": before, "added": added, "read": read, "rows": rows}


def cells() -> Row:
    """Pack cells that lie in a file to a few bytes each: what is held grows with these, not with the vectors."""
    found = in_process("benchmarks.bench_search", "cells")
    return Row(
        f"ivf_pq of {CELLS:,} cells × {CELL_DIM} from a memory map, memory that is no file's",
        f"{found['held']:,.0f} MiB in {found['seconds']:.0f} s; {found['bytes'] / CELLS:.0f} bytes a cell stay "
        f"(100,000,000: {1e8 * found['bytes'] / CELLS / 2**30:.1f} GiB); recall {found['recall']:.3f}",
        f"the vectors {4 * CELLS * CELL_DIM / 2**20:,.0f} MiB",
        found["held"] / (4 * CELLS * CELL_DIM / 2**20),
        "blocks",
    )


def measure_cells() -> dict[str, float]:
    """Write vectors to a file block by block, and build over it."""
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((3000, CELL_DIM), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.f32"
        with path.open("wb") as file:
            for _ in range(0, CELLS, 100_000):
                block = kinds[rng.integers(0, len(kinds), 100_000)]
                block += 0.8 * rng.standard_normal(block.shape, dtype=np.float32)
                block /= np.linalg.norm(block, axis=1, keepdims=True)
                block.tofile(file)
        unit = np.memmap(path, dtype=np.float32, mode="r", shape=(CELLS, CELL_DIM))
        before, most, ended = _anonymous_mib(), [0.0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.05):
                most[0] = max(most[0], _anonymous_mib())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = perf_counter()
        made = structures.build(unit, "ivf_pq", 0.95)
        took = perf_counter() - start
        ended.set()
        watcher.join()
        made.save(Path(folder) / "structure")
        size = (Path(folder) / "structure").stat().st_size
    return {"held": most[0] - before, "seconds": took, "bytes": size, "recall": made.settings.recall}


def _anonymous_mib() -> float:
    """Memory of this process that is no file's: pages of a memory map are given back when others need them."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def _keys(n: int) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"t{i:06d}" for i in range(n)]})


def _time(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def _shown(took: float) -> str:
    return f"{1e3 * took:.1f} ms" if took < 1 else f"{took:.2f} s"


if __name__ == "__main__":
    work = {"ask": ask, "build": measure_build, "cells": measure_cells}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])))
