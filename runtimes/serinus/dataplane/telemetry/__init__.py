"""What the data plane counts, and how it is shown."""
