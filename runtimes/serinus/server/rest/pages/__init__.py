"""Pages about the server: its OpenAPI document, and `/docs` for people."""
