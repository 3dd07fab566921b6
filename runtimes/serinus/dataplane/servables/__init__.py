"""A model is served by what it answers: arrays, or whole requests."""
