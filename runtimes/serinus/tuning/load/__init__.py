"""Load for a server under test, and what it answered."""
