"""A model in its forms: made, compared, the fastest that agrees kept."""
