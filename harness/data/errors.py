"""The error that every part of `harness.data` raises for bad input."""


class DataError(ValueError):
    """Something about the data is wrong. The message names the config key or file, its value, and what would be right."""
