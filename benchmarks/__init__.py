"""Benchmarks of Onward. Each module with a command writes a page beside it."""
