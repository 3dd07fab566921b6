"""Documents about models, and values of any kind, as JSON."""
