"""What people and pipelines ask over HTTP: a run's page, live or in a file, and the judge."""
