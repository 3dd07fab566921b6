"""Compiled models in their frameworks' place: tree ensembles and small dense networks, verified on the very file, and recorded."""
