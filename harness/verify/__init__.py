"""Proves that a layout computes the same model as one process: a small copy of the user's run is trained both ways."""
