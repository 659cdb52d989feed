"""Measurements, each a command whose rows are kept in tests/benchmarks."""
