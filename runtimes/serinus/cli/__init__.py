"""The command `serinus`."""
