"""InferenceGraphs: their values, and the paths of their conditions."""
