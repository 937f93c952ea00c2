"""Measurements of rightbatch itself: run, not asserted. ``python -m benchmarks`` lists them."""
