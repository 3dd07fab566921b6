"""Mutation testing: whether the quick tests of a room notice a change of one of its modules (`make mutants`)."""
