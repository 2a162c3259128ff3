"""Benchmarks of the model, the service, the index and their reliability, one command each; see docs/benchmarks.md."""
