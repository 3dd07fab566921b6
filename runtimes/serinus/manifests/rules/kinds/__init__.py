"""Rules for kinds beside the InferenceService: graphs, language models, runtimes, Kubernetes' own."""
