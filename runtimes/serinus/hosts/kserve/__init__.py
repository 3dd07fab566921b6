"""Classes written for KServe as models of this library."""
