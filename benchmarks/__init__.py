"""Benchmarks of the model, the service, the index and their reliability, one command each; docs/development/benchmarks.md."""
