"""Names the values that would have been possible, next to the one that is not."""

from collections.abc import Iterable


def nearest(value: int, possible: Iterable[int]) -> str:
    """The closest possible values on either side of `value`, as "4 or 6"; empty where nothing is possible."""
    values = set(possible)
    below = max((n for n in values if n < value), default=None)
    above = min((n for n in values if n > value), default=None)
    return " or ".join(str(n) for n in (below, above) if n is not None)


def nearest_multiples(value: int, step: int, least: int = 1, most: int | None = None) -> str:
    """The closest multiples of `step` on either side of `value`, from `least` to `most`; empty where there is none."""
    first = -(-least // step) * step
    below = value // step * step
    candidates = (first, below, below + step)
    return nearest(value, (n for n in candidates if n >= first and (most is None or n <= most)))


def divisors(number: int) -> list[int]:
    """All divisors of a positive number in ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]
