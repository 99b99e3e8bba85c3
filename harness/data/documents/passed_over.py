"""What a reader of documents passed over, by reason: nothing that a user put into the input disappears without a line."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

BAD_ROW = "bad row"
EMPTY_TEXT = "empty text"
LISTED = 100
"""Rows of one file and reason of which the place is kept, at most; all are counted."""


@dataclass
class PassedOver:
    """A file that was not read (`rows` is 0), or rows of a file that were not."""

    file: str
    reason: str
    """`hidden`, `unknown suffix`, `empty file`, ...; of rows `bad row` or `empty text`."""
    rows: int = 0
    where: list[str] = field(default_factory=list)
    """Where the first `LISTED` rows are, and what is wrong with them."""


def printable(path: str) -> str:
    """A path as it can be printed and kept in UTF-8: names of files need not be text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def as_record(entry: PassedOver) -> dict[str, Any]:
    """As a line of JSON: without what does not apply to files."""
    return {key: value for key, value in asdict(entry).items() if value not in (0, [])}


def counts(entries: Iterable[PassedOver]) -> dict[str, dict[str, int]]:
    """`files` and `rows`, each reason -> how many; the most frequent first."""
    files: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for entry in entries:
        if entry.rows:
            rows[entry.reason] += entry.rows
        else:
            files[entry.reason] += 1
    return {"files": dict(files.most_common()), "rows": dict(rows.most_common())}


def sentence(found: dict[str, dict[str, int]]) -> str:
    """What `counts` returned, for people: `passed over 2 files (hidden 2) and 1 row (empty text 1)`."""
    parts = []
    for noun in ("file", "row"):
        if reasons := found[noun + "s"]:
            total = sum(reasons.values())
            why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
            parts.append(f"{total:,} {noun}{'s' * (total != 1)} ({why})")
    return f"passed over {' and '.join(parts)}" if parts else "nothing passed over"


def examples(entries: Iterable[PassedOver], count: int = 3) -> Iterator[str]:
    """The first files for each reason, a line each."""
    seen: Counter[str] = Counter()
    for entry in entries:
        seen[entry.reason] += 1
        if seen[entry.reason] <= count:
            yield f"{entry.file}: {entry.reason}"
