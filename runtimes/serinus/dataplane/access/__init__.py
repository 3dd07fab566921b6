"""Who may ask what: tokens of requests, and loads and unloads by request."""
