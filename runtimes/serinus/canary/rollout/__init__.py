"""A run of a canary: looks taken and judged, traffic moved, what is told and kept of it."""
