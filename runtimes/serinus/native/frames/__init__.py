"""HTTP/2 frames that pass from clients to the native gRPC front, and what the front answers, outside the interpreter's lock."""
