"""Calls out: a transformer's way to its predictor."""
