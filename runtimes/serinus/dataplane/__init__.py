"""What a request means: registry, plane, batcher, executor, metrics, statistics. No transport."""
