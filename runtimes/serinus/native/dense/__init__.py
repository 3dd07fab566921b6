"""Small dense networks over few rows."""
