"""What stops an export."""


class ExportError(Exception):
    """Nothing was exported; the message says why and what to do."""
