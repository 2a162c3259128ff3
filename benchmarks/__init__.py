"""Benchmarks of model, service, index and reliability; docs/development/benchmarks.md lists their commands."""
