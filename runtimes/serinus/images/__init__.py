"""An image of a model or a class of one's own: what goes in, its Dockerfile, the engine that builds it, its first answer."""
