"""Where a predict runs, and what it costs."""
