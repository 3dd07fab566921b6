"""Several processes that share the ports: their supervisor, and each as one of them."""
