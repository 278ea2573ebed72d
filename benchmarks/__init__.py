"""Benchmarks: speed and memory as ratios within one run. `make bench` runs them; no test is timed."""
