"""This library's models under other projects' servers: stock KServe and stock MLServer. Nothing here imports it."""
