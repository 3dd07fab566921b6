"""Which requests are predicted together, and when."""
