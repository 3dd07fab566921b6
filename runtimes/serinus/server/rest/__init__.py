"""The REST application: one file an API, over the HTTP transports."""
