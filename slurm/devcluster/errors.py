"""What can go wrong, each with the exit code of the command line."""


class ClusterError(Exception):
    """The command cannot be done; the message says why and what to do."""

    exit_code = 1


class MissingError(ClusterError):
    """This machine lacks a package or the user lacks root."""

    exit_code = 3
