"""A model of one's own to start from: class, test, sample request, manifests, canary policy."""
