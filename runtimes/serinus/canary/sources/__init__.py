"""Where a canary's counts come from: the runtimes' own pages, Prometheus, business metrics."""
