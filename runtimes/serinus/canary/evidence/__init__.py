"""Evidence that is valid at every look: e-processes and confidence sequences. Pure: counts in, numbers out; no I/O, no clock."""
