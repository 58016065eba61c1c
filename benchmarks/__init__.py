"""Benchmarks: ratios measured in one run, written to a table. `make bench` runs all of them."""
