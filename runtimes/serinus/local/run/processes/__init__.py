"""Processes of this machine: started, probed, logged, kept running, ended."""
