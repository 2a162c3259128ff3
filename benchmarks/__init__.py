"""Benchmarks of the model, the service, the index and reliability; see docs/development/benchmarks.md."""
