"""A shuffle of [0, n) that is computed, not stored: a keyed bijection with O(1) memory and O(1) time per element.

A Feistel network permutes the smallest power-of-two range that holds [0, n); values that land outside are sent through
again until they land inside (cycle walking, fewer than two passes on average). That is a bijection on [0, n) for any n.
"""

import hashlib
import json

import numpy as np

ROUNDS = 8
"""Feistel rounds. Each needs one 64-bit key, and eight are what one blake2b digest gives."""
MAX_SIZE = 2**62


def derive_key(*parts: int | str) -> np.ndarray:
    """The round keys that belong to `parts`: uint64 [ROUNDS], the same on every machine and Python version."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permute(index: np.ndarray, size: int | np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where each element of `index` goes in the shuffle of [0, size) that `key` names.

    `index` is int64 [n] with 0 <= index < size <= 2**62. `size` is one number or int64 [n]; `key` is uint64 [ROUNDS] or
    [n, ROUNDS]: elements may belong to different shuffles. Returns int64 [n].
    """
    index = np.asarray(index, dtype=np.int64)
    sizes = np.broadcast_to(np.asarray(size, dtype=np.int64), index.shape)
    if index.size and not (index.min() >= 0 and (index < sizes).all() and sizes.max() <= MAX_SIZE):
        raise ValueError(f"index must lie in [0, size) and size in [1, {MAX_SIZE}]")
    keys = np.broadcast_to(key, (*index.shape, ROUNDS))
    # Bits of size - 1. Above 2**53 the float may round up to one bit more, which only costs another pass.
    bits = np.frexp((sizes - 1).astype(np.float64))[1].astype(np.uint64)
    result = _feistel(index.astype(np.uint64), bits, keys).astype(np.int64)
    outside = np.flatnonzero(result >= sizes)
    while outside.size:
        walked = _feistel(result[outside].astype(np.uint64), bits[outside], keys[outside]).astype(np.int64)
        result[outside] = walked
        outside = outside[walked >= sizes[outside]]
    return result


def _feistel(value: np.ndarray, bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A bijection on [0, 2**bits): the two halves of the number take turns in scrambling each other."""
    one = np.uint64(1)
    low_bits = bits >> one
    low_mask = (one << low_bits) - one
    high_mask = (one << (bits - low_bits)) - one
    high, low = value >> low_bits, value & low_mask
    for number in range(0, ROUNDS, 2):
        high = high ^ (scramble(low + keys[:, number]) & high_mask)
        low = low ^ (scramble(high + keys[:, number + 1]) & low_mask)
    return (high << low_bits) | low


def scramble(value: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every input bit flips each output bit with probability one half."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
