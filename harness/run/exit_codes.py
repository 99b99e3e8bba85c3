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

MEANING = {
    CONFIG: "the config, the data or the model is wrong (see the log)",
    NONFINITE: "loss or gradients stayed NaN or Inf",
    CRASH_LOOP: "too many restarts in a row without a new step",
    FENCED: "a newer attempt of the run has taken over",
    DISK_FULL: "the last checkpoint could not be written",
}
"""What each says to a person."""

NOT_RETRIED = frozenset({CONFIG, NONFINITE, CRASH_LOOP, FENCED, DISK_FULL})
