"""The commands for people, one a file."""
