"""Checkpoints that are complete or absent, and loading the newest one that is valid."""
