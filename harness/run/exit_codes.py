"""Exit codes by which ranks, launcher and agent tell each other what happened."""

OK = 0
CONFIG = 2
"""The config, the data or the model is wrong: starting again can't help."""
NONFINITE = 66
"""Loss or gradients stayed NaN or Inf: starting again can't help."""
CRASH_LOOP = 67
"""Too many restarts in a row without one new step."""
FENCED = 68
"""A newer attempt of the run exists; this one must not go on."""
DISK_FULL = 69
"""The last checkpoint could not be written."""

JOB_FAILED = 70
"""The batch script's own: the job ends, for a reason that has no code of its own here."""

MEANING = {
    CONFIG: "the config, the data or the model is wrong (see the log)",
    NONFINITE: "loss or gradients stayed NaN or Inf",
    CRASH_LOOP: "too many restarts in a row without a new step",
    FENCED: "a newer attempt of the run has taken over",
    DISK_FULL: "the last checkpoint could not be written",
}
"""What each says to a person."""

NOT_RETRIED = frozenset({CONFIG, NONFINITE, CRASH_LOOP, FENCED, DISK_FULL})

BATCH_CODES = frozenset({OK, NONFINITE, CRASH_LOOP, FENCED, DISK_FULL, JOB_FAILED})
"""What the batch script's Python ends with on purpose. Any other status means that it did not get to decide, and the shell does
what is left to do; so none of them is a status that Python or a shell ends with by itself (1, 2, 126, 127, 128 + signal)."""
