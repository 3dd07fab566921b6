"""Connections as both transports have them: taken in, their handshakes, what the kernel holds of them, answers that wait for slow readers."""
