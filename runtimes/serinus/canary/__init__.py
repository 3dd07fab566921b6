"""Canaries that decide: evidence, valid at every look, and a judge that rolls back, promotes, advances a step or holds."""
