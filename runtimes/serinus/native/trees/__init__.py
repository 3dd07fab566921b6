"""Tree ensembles over flat arrays."""
