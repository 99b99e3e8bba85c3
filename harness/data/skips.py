"""Which batches a run leaves out, and which batch each step trains on instead: pure arithmetic on a few ranges.

Batch n is what step n would train on if nothing were left out. The order of the batches never changes; steps after a
range just stand further along in it.
"""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from math import inf

from harness.data.errors import DataError

Range = tuple[int, int]
"""First and last batch, both included, counted from 1."""


class Skips:
    """The batches that a run never trains on. Every question costs O(number of ranges).

    Ranges may come in any order, touch and overlap: they are put together. Raises DataError where one is no range.
    """

    def __init__(self, ranges: Iterable[Sequence[int]] = ()) -> None:
        given = list(ranges)
        if problems := skip_problems(given):
            raise DataError("\n".join(problems))
        self.ranges = _merge(given)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skips) and self.ranges == other.ranges

    def __hash__(self) -> int:
        return hash(self.ranges)

    def __repr__(self) -> str:
        return f"Skips({[list(found) for found in self.ranges]})"

    def batch_of_step(self, step: int) -> int:
        """The batch that optimizer step `step` trains on: number `step` of those that are not left out."""
        batch = step
        for first, last in self.ranges:
            if first > batch:
                break
            batch += last - first + 1
        return batch

    def steps_before(self, batch: int) -> int:
        """Steps that train on batches below `batch`."""
        return batch - 1 - sum(min(last, batch - 1) - first + 1 for first, last in self.ranges if first < batch)

    def history(self, step: int) -> list[Range]:
        """The ranges that the first `step` steps passed over. Two runs with one history have trained on the same batches."""
        batch = self.batch_of_step(step)
        return [(first, last) for first, last in self.ranges if last < batch]

    def agrees(self, step: int, history: Sequence[Sequence[int]]) -> bool:
        """Whether a run that has done `step` steps and passed over `history` has trained on the same batches as this."""
        return Skips(history) == Skips(self.history(step))

    def common_steps(self, history: Sequence[Sequence[int]]) -> int | None:
        """Steps from the start on that train on the same batches here as in a run that passes over `history`; None: all."""
        for ours, theirs in zip_longest(self._edges(), Skips(history)._edges(), fillvalue=inf):
            if ours != theirs:  # the lower of the two begins or ends a range here and not there
                return self.steps_before(int(min(ours, theirs)))
        return None

    def _edges(self) -> list[int]:
        """Where ranges begin and where training goes on, in rising order."""
        return [edge for first, last in self.ranges for edge in (first, last + 1)]


def skip_problems(ranges: Iterable[Sequence[int]]) -> list[str]:
    """One sentence for each entry of `train.skip` that is no range of batches."""
    return [
        f"train.skip={list(entry)}: give [from, to], the first and the last batch to leave out, counted from 1"
        for entry in ranges
        if len(entry) != 2 or not 1 <= entry[0] <= entry[1]
    ]


def _merge(ranges: Sequence[Sequence[int]]) -> tuple[Range, ...]:
    """Sorted, without overlaps, and with those that touch made one: equal sets of batches become equal tuples."""
    merged: list[Range] = []
    for first, last in sorted((int(first), int(last)) for first, last in ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


NO_SKIPS = Skips()
"""Trains on every batch."""
