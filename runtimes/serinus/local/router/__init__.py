"""The router of an InferenceGraph: one process, what KServe's router does."""
