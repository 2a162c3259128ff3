"""Measurements of the service and its parts, one command each; `docs/benchmarks.md` has their tables."""
