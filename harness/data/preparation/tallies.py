"""What each step of a preparation let through and why it dropped the rest, added up from datatrove's stats of all tasks."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.data.documents.passed_over import PassedOver, counts, sentence
from harness.data.errors import DataError
from harness.data.preparation.job import Job

ENCODE = "Tokens: Encode"
"""`harness.data.preparation.encode.EncodeDocuments` in datatrove's stats."""


class NothingLeftError(DataError):
    """No document is left to tokenise: with these options there is nothing to go on with."""


@dataclass
class Tally:
    """One step: reading, or something that drops documents."""

    step: str
    documents_in: int = 0
    characters_in: int = 0
    documents: int = 0
    """Let through."""
    characters: int = 0
    """Of what was let through; some filters also drop lines."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> documents."""
    languages: dict[str, int] = field(default_factory=dict)
    """Language -> documents let through; of the step `language` alone."""


def read_tallies(job: Job, stages: list[str]) -> list[Tally]:
    """The tallies of the steps in these stages, in order, over all tasks that are complete."""
    found: list[Tally] = []
    for stage in stages:
        before: dict[str, Any] | None = None
        for step in _merged(job, stage):
            if step["name"].startswith("Tally: "):
                found.append(_tally(step, before, found[-1] if found else None))
            else:
                before = step
    return found


def read_account(job: Job) -> list[PassedOver]:
    """The rows of the input that the tasks passed over, by file and reason."""
    entries: list[PassedOver] = []
    for file in sorted(job.account.glob("*.json")):
        entries += [PassedOver(**record) for record in json.loads(file.read_text(encoding="utf-8"))]
    return entries


def encoding_stats(job: Job) -> Counter[str]:
    """What `EncodeDocuments` counted in all tasks."""
    found: Counter[str] = next(s["stats"] for s in _merged(job, "tokenise") if s["name"] == ENCODE)
    return found


def refuse_lost_documents(job: Job, documents: int) -> None:
    """Raises DataError unless what was read, less what was dropped for a reason, is what lies in the token files."""
    stages = ["filter", "tokenise"] if job.recipe.drops else ["tokenise"]
    tallies = read_tallies(job, stages)
    checks = [(tallies[-1].documents, documents, "token files")]
    if job.recipe.drops:
        kept = read_tallies(job, ["filter"])[-1].documents
        checks.insert(0, (kept, _merged(job, "tokenise")[0]["stats"]["documents"], f"{job.work}/kept"))
    for expected, found, where in checks:
        if found != expected:
            raise DataError(
                f"--output {job.output}: {where} hold {found:,} documents, expected {expected:,}: files in {job.folder} were "
                "damaged or changed while it was made. Prepare again with --restart."
            )


def refuse_if_nothing_is_left(job: Job) -> None:
    """Raises NothingLeftError, with what each step did, where the stages so far dropped every document."""
    stages = ["filter", "tokenise"] if job.recipe.drops else ["tokenise"]
    tallies = read_tallies(job, stages)
    if not tallies or tallies[0].documents == 0:
        passed_over = sentence(counts([*job.inputs.passed_over, *read_account(job)]))
        raise NothingLeftError(f"--input {job.input}: no text in it, so there is nothing to tokenise ({passed_over})")
    if tallies[-1].documents == 0:
        steps = "\n".join(f"  {describe(tally)}" for tally in tallies)
        raise NothingLeftError(f"--recipe drops every document:\n{steps}")


def describe(tally: Tally) -> str:
    """One line for people."""
    if tally.step == "read":
        return f"read: {tally.documents:,} documents"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in list(tally.dropped.items())[:6])
    more = f" and {len(tally.dropped) - 6} more reasons" if len(tally.dropped) > 6 else ""
    why = f" (dropped: {reasons}{more})" if reasons else ""
    return f"{tally.step}: {tally.documents:,} of {tally.documents_in:,} documents kept{why}"


def as_manifest(tallies: list[Tally]) -> list[dict[str, Any]]:
    """As the manifest holds them: without empty entries."""
    return [{key: value for key, value in asdict(tally).items() if value not in ({}, None)} for tally in tallies]


def _tally(step: dict[str, Any], before: dict[str, Any] | None, previous: Tally | None) -> Tally:
    stats = step["stats"]
    tally = Tally(
        step["name"].removeprefix("Tally: "),
        documents_in=previous.documents if previous else stats["documents"],
        characters_in=previous.characters if previous else stats["characters"],
        documents=stats["documents"],
        characters=stats["characters"],
        languages=_prefixed(stats, "language_"),
    )
    if before and previous and (gone := previous.documents - tally.documents):
        reasons = _prefixed(before["stats"], "contaminated_") or _prefixed(before["stats"], "dropped_")
        tally.dropped = reasons or {"duplicate": gone}
    return tally


def _prefixed(stats: Counter[str], prefix: str) -> dict[str, int]:
    """Most frequent first."""
    found = {key.removeprefix(prefix): value for key, value in stats.items() if key.startswith(prefix)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _merged(job: Job, stage: str) -> list[dict[str, Any]]:
    """Name and summed metrics of each step of a stage's pipeline."""
    merged: list[dict[str, Any]] = []
    for file in sorted((job.logs(stage) / "stats").glob("*.json")):
        for number, step in enumerate(json.loads(file.read_text(encoding="utf-8"))):
            if number == len(merged):
                merged.append({"name": step["name"], "stats": Counter()})
            for key, metric in step["stats"].items():
                merged[number]["stats"][key] += int(metric["total"] if isinstance(metric, dict) else metric)
    return merged
