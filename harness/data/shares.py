"""Which source each sample of a block comes from, so that no source ever runs ahead of its share or falls behind it.

A source with the share w of the samples has its draw number k (from 0) somewhere in the places floor(k / w) to
ceil((k + 1) / w) - 1 of the stage: a stretch of 1 / w samples for each draw. That is the same as saying that the first n
samples hold less than one sample more or fewer than n * w of it, for every n. Such schedules are known as Pfair (Baruah et
al., "Proportionate progress", 1996): on one processor, earliest deadline first finds one.

That one has a rigid rhythm: with two equal shares, every second rank would see one source only. So draws then move at random,
as far as their stretches allow.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from harness.data.permutation import ROUNDS, scramble

LARGEST_TOTAL = 1 << 46
"""Of weights as whole numbers: as exact as numbers of type double, and 64 bits hold its products with the places of a block."""


@dataclass(frozen=True)
class Draws:
    """The draws of a block, in an order that keeps all shares. Places count from the start of the block."""

    sources: np.ndarray
    """Number of the source of each draw: int32 [places]."""
    earliest: np.ndarray
    """First place that the draw may have: int32 [places]."""
    latest: np.ndarray
    """Last place that the draw may have: int32 [places]."""


def apportion(weights: Sequence[int], draws: int) -> list[int]:
    """How many of the first `draws` each source has, within one of exact or hardly more. None has fewer of more draws.

    Halves share the draws by rounding, then their halves: rounding all shares on their own would not add up, and rounding
    their sums could take from a small share what it had.
    """
    found = [0] * len(weights)
    parts = [(draws, sorted((s for s in range(len(weights)) if weights[s]), key=lambda s: (weights[s], s)))]
    while parts:
        count, members = parts.pop()
        if len(members) == 1:
            found[members[0]] = count
            continue
        sums = list(accumulate(weights[s] for s in members))
        middle = min(range(1, len(members)), key=lambda at: abs(2 * sums[at - 1] - sums[-1]))
        low = (2 * count * sums[middle - 1] + sums[-1]) // (2 * sums[-1])
        parts += [(low, members[:middle]), (count - low, members[middle:])]
    return found


def schedule(weights: Sequence[int], begin: int, taken: Sequence[int], until: Sequence[int]) -> Draws:
    """Earliest deadline first over the places from `begin` on of a stage, about half a microsecond for each.

    `weights` are whole numbers, one for each source, and sum to LARGEST_TOTAL at most; `taken` and `until` say how many draws
    of each source come before the block and before the next one, and so how long it is.
    """
    sources, earliest, latest = _stretches(weights, begin, taken, until)
    count = len(sources)
    by_start = np.argsort(earliest, kind="stable")
    starts = earliest[by_start].tolist()
    deadlines = (latest * count + np.arange(count))[by_start].tolist()  # with the number of the draw
    ready: list[int] = []
    chosen: list[int] = []
    released = 0
    for place in range(count):
        # If nothing may come yet, what may come soonest does: rounding at the block's ends can ask for that.
        while released < count and (starts[released] <= place or not ready):
            heapq.heappush(ready, deadlines[released])
            released += 1
        chosen.append(heapq.heappop(ready) % count)
    return Draws(*(of[chosen].astype(np.int32) for of in (sources, earliest, latest)))


def _stretches(
    weights: Sequence[int], begin: int, taken: Sequence[int], until: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, first and last place of each draw of a block, source after source: int64 [places] each."""
    total = sum(weights)
    members = [s for s in range(len(weights)) if until[s] > taken[s]]
    # (taken + j) * total / weight - begin is where draw j of the block begins: whole and rest, in Python's unlimited numbers
    divided = [divmod(taken[s] * total - begin * weights[s], weights[s]) for s in members]
    draws = np.array([until[s] - taken[s] for s in members])
    whole, rest, weight = (
        np.repeat(np.array(of, dtype=np.int64), draws)
        for of in ([q for q, _ in divided], [r for _, r in divided], [weights[s] for s in members])
    )
    number = np.arange(len(whole)) - np.repeat(np.cumsum(draws) - draws, draws)
    earliest = np.maximum(whole + (rest + number * total) // weight, 0)
    latest = np.minimum(whole + (rest + (number + 1) * total - 1) // weight, len(whole) - 1)
    return np.repeat(np.array(members), draws), earliest, np.maximum(latest, 0)


def mixed(draws: Draws, key: np.ndarray) -> np.ndarray:
    """The sources of the block's places, int32 [places], after draws have moved at random as `key` says (uint64 [ROUNDS]).

    Over distances of ..., 8, 4, 2, 1 places, from the longest that any draw may move: in each stretch of twice the distance the
    draw with the most room moves to a random place, and those in between make way for it by one place; then every two draws
    at the distance trade places with probability one half. All as far as the draws' own stretches allow.
    """
    columns = [draws.sources.copy(), draws.earliest.copy(), draws.latest.copy()]
    count = len(draws.sources)
    places = np.arange(count, dtype=np.int32)
    furthest = min(int((draws.latest - draws.earliest).max(initial=0)), count // 2)
    for power in reversed(range(furthest.bit_length())):
        distance = 1 << power
        coins = scramble(places.astype(np.uint64) + key[power % ROUNDS])
        for offset in (0, distance):
            pairs = (count - offset) // (2 * distance)
            span = slice(offset, offset + 2 * distance * pairs)
            place, coin, *moving = (of[span].reshape(pairs, 2 * distance) for of in (places, coins, *columns))
            if power and offset == 0:
                _move_one(place, coin[:, 0], moving)
            _trade(distance, places[span], coins[span] & np.uint64(1) == 1, [of[span] for of in columns])
    return columns[0]


def _move_one(place: np.ndarray, coin: np.ndarray, columns: list[np.ndarray]) -> None:
    """Moves one draw in each row. `place` and the columns of `Draws` are [rows, length]; `coin` is random, uint64 [rows]."""
    _, earliest, latest = columns
    length = place.shape[1]
    at = np.arange(length, dtype=np.int32)
    mover = (latest - earliest).argmax(axis=1)[:, None]
    # The others can't make way where one is as late as it may be, or as early.
    low = np.where((latest == place) & (at < mover), at, -1).max(axis=1, keepdims=True) + 1
    high = np.where((earliest == place) & (at > mover), at, length).min(axis=1, keepdims=True) - 1
    low = np.maximum(low, np.take_along_axis(earliest, mover, 1) - place[:, :1])
    high = np.minimum(high, np.take_along_axis(latest, mover, 1) - place[:, :1])
    chance = ((coin >> np.uint64(11)) * 2.0**-53)[:, None]
    target = np.where(low < high, low + (chance * (high - low + 1)).astype(np.int64), mover)
    origin = np.where(at == target, mover, at - ((at > target) & (at <= mover)) + ((at >= mover) & (at < target)))
    for of in columns:
        of[...] = np.take_along_axis(of, origin, axis=1)


def _trade(distance: int, place: np.ndarray, coin: np.ndarray, columns: list[np.ndarray]) -> None:
    """Lets every two draws at the distance trade places where the first one's `coin`, bool [places], says so."""
    _, earliest, latest = columns
    first, second = (np.arange(len(place)).reshape(-1, 2, distance)[:, side].reshape(-1) for side in (0, 1))
    trade = coin[first] & (latest[first] >= place[second]) & (earliest[second] <= place[first])
    first, second = first[trade], second[trade]
    for of in columns:
        of[first], of[second] = of[second], of[first]
