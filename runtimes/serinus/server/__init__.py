"""Sockets: REST, gRPC and the life of the process around them."""
