"""`serinus serve`: its options, what they mean, and the models it starts with."""
