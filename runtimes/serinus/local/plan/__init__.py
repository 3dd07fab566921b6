"""From YAML to what would run. Pure: no process, no socket."""
