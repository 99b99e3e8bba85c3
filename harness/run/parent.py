"""Ties a process to its parent: no rank outlives its agent, and no component its supervisor, even after a kill -9."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send `number` to this process when `parent`, the process that started it, is gone. On Linux alone.

    Fit for `preexec_fn`. The kernel looks at the thread that started it: that must not end before the process is to.
    """
    if sys.platform != "linux":
        return
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
