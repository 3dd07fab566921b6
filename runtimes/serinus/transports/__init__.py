"""What serinus makes up for in the transports of event loops."""
