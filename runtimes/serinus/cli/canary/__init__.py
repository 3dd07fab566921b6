"""`serinus canary` and its commands."""
