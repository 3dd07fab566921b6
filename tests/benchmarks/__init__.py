"""Benchmarks against other model servers: `make bench` (`python -m benchmarks --help`)."""
