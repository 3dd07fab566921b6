"""Whose traffic a canary moves: an InferenceService in a cluster, or one that `serinus up` runs."""
