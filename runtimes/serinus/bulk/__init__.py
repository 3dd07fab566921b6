"""Predictions of whole files of rows, by the data plane that a server has."""
