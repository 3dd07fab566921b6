"""Connections between the native engine's clients and its front: outside the interpreter's lock, and in Python for what wants judgement."""
