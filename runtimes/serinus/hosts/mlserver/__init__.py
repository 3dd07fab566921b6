"""Classes written for MLServer as models of this library."""
