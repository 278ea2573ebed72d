"""Sphering of 960,000 wells × 1,000 features, fitted on 20,000 controls, block by block, against the bare product.

The wells are made block by block in a process of its own, so that its memory is what one block needs.
"""

import json
import sys
import tracemalloc
from time import perf_counter

import numpy as np

from benchmarks.measure import Row, in_process
from warehouse.steps import Wells, refuse_missing
from warehouse.steps.sphering import Sphering

CONTROLS, WELLS, DIM = 20_000, 960_000, 1_000
#: Rows of a block: 48 MB of float64, and as much again for the result.
ROWS = 6_000


def run() -> list[Row]:
    """Fit and transform at full size."""
    found = in_process("benchmarks.bench_sphering", "1")
    fitted, sphered, product = found["fit_s"], found["transform_s"], found["product_s"]
    return [
        Row(
            f"sphering, fit on {CONTROLS:,} × {DIM:,} and transform of {WELLS:,} wells in blocks of {ROWS:,}",
            f"fit {fitted:.1f} s, transform with the look for missing values {sphered:.1f} s",
            f"X @ W of the same blocks {product:.1f} s",
            (fitted + sphered) / product,
            "≤ 1.5",
        ),
        Row(
            f"sphering, arrays at once beside the fit and a block of {ROWS:,} wells",
            f"{found['transform_mib']:.0f} MiB",
            f"the block {found['block_mib']:.0f} MiB, all wells {WELLS * DIM * 8 / 2**20:,.0f} MiB",
            found["transform_mib"] / found["block_mib"],
            "bounded by the block",
        ),
    ]


def measure(share: float) -> dict[str, float]:
    """Measure a share of the wells; times are sums over all blocks, each block measured both ways in turn."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((DIM, DIM)) / DIM**0.5
    controls = rng.standard_normal((max(2 * DIM, int(CONTROLS * share)), DIM)) @ mixing + 5
    step, wells = Sphering(), Wells()
    started = perf_counter()
    fit = step.fit(controls, wells)
    fit_s = perf_counter() - started
    del controls

    block = rng.standard_normal((ROWS, DIM)) @ mixing + 5
    matrix = np.ascontiguousarray(rng.standard_normal((DIM, DIM)))
    transform_s = product_s = 0.0
    tracemalloc.start()
    for number in range(int(WELLS * share) // ROWS):
        block[number % ROWS] += 1  # another block, at no cost to either
        started = perf_counter()
        block @ matrix
        product_s += perf_counter() - started
        started = perf_counter()
        refuse_missing(step.name, block, wells)
        step.transform(block, wells, fit)
        transform_s += perf_counter() - started
    return {
        "fit_s": fit_s,
        "transform_s": transform_s,
        "product_s": product_s,
        "transform_mib": tracemalloc.get_traced_memory()[1] / 2**20,
        "block_mib": block.nbytes / 2**20,
    }


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]))))
