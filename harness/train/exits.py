"""Ends of a run that are not success, each with its exit code."""

from harness.run.exit_codes import CONFIG, DISK_FULL, FENCED, NONFINITE


class RunEnds(Exception):
    """The process is to end with `code`; the message says why and what to do."""

    code = 1
    on_all_ranks = True
    """Whether all ranks end for the same reason."""


class BadConfig(RunEnds):
    code = CONFIG


class DataLost(RunEnds):
    """Data that this rank needs can't be read, or is damaged."""

    code = CONFIG
    on_all_ranks = False


class NotFinite(RunEnds):
    code = NONFINITE


class Fenced(RunEnds):
    code = FENCED


class SaveFailed(RunEnds):
    code = DISK_FULL
