"""Numbers of JSON requests into arrays."""
