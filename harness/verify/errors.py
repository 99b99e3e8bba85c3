"""What keeps a verification from starting."""


class VerifyError(Exception):
    """Nothing was verified; the message says why and what to do."""
