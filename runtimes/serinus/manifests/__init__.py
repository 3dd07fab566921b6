"""KServe's YAML: read, checked against its admission rules, linted. Offline; starts no process."""
