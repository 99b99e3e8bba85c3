"""Ends of a run that are not success, each with its exit code."""

from harness.run.exit_codes import CONFIG, DISK_FULL, FENCED, NONFINITE


class RunEnds(Exception):
    """The process is to end with `code`; the message says why and what to do."""

    code = 1


class BadConfig(RunEnds):
    code = CONFIG


class NotFinite(RunEnds):
    code = NONFINITE


class Fenced(RunEnds):
    code = FENCED


class SaveFailed(RunEnds):
    code = DISK_FULL
