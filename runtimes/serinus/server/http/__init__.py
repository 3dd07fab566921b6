"""HTTP: what a request and its answer are (`exchange`), two transports (`thin`, `asgi`), and the REST application."""
