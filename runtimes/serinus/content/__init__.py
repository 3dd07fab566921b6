"""What a file is, by its bytes: a model, a mistake, a pickle."""
