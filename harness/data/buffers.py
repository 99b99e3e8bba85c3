"""Memory that is used again: an array's memory comes back by itself once nobody holds the array any more."""

import ctypes
import weakref
from collections import deque
from collections.abc import Callable
from math import prod

import numpy as np

Allocate = Callable[[int], np.ndarray]
"""Bytes -> writable uint8 array of so many, contiguous. A trainer on GPUs gives one that pins the memory."""


def pageable(size: int) -> np.ndarray:
    """Ordinary memory."""
    return np.empty(size, dtype=np.uint8)


class BufferPool:
    """Hands out int32 arrays of one shape. Safe to use from several threads."""

    def __init__(self, shape: tuple[int, ...], allocate: Allocate = pageable) -> None:
        self._shape = shape
        self._allocate = allocate
        self._type = ctypes.c_char * (4 * prod(shape))
        self._free: deque[np.ndarray] = deque()
        self.allocated = 0
        """Arrays' worth of memory allocated so far."""

    def take(self) -> np.ndarray:
        """An array whose content is left over from its last use. Views of it, and tensors over it, hold it too."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._allocate(ctypes.sizeof(self._type))
            self.allocated += 1
        lease = self._type.from_buffer(memory.data)
        weakref.finalize(lease, self._free.append, memory).atexit = False
        return np.frombuffer(memoryview(lease), dtype=np.int32).reshape(self._shape)
