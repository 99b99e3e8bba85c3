"""One preparation: all that its tasks need to know, in a file that they read, here or on any node."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.data.documents.passed_over import PassedOver
from harness.data.errors import DataError
from harness.data.preparation.inputs import Inputs
from harness.data.preparation.recipe import Recipe, recipe_from_dict
from harness.run.files import write_json

JOB = "job.json"
TOKENIZER_NAME = "tokenizer/tokenizer.json"
MANIFEST = "manifest.json"
WORK = "work"
PASSED_OVER = "passed_over.jsonl"
"""In the output: a line for each file, and for the rows of each file, that were not read, with the reason."""


@dataclass(frozen=True)
class Job:
    """What is made, in which folder."""

    folder: Path
    """Where it is made; becomes `output` when it is complete."""
    output: Path
    input: str
    """As the user gave it; several joined by --input."""
    inputs: Inputs
    recipe: Recipe
    vocab_size: int | None
    """Of the tokenizer to train; None: one was given, and lies in the folder already."""
    keep_removed: int
    """Removed documents to keep for each reason, in each task."""
    max_bad_lines: int
    made_from: dict[str, Any]
    """All that the output depends on."""

    @property
    def tokenizer(self) -> Path:
        """Where the tokenizer lies, or will."""
        return self.folder / TOKENIZER_NAME

    @property
    def work(self) -> Path:
        """What only the stages need; removed at the end."""
        return self.folder / WORK

    @property
    def account(self) -> Path:
        """Where the tasks that read the input list the rows that they passed over."""
        return self.work / "passed_over"

    def logs(self, stage: str) -> Path:
        """datatrove's folder for a stage: completions, stats, logs."""
        return self.folder / "logs" / stage

    def progress(self, stage: str) -> Path:
        """Where the tasks of a stage count what they have done."""
        return self.work / "progress" / stage


def write_job(job: Job) -> None:
    """Write it into its folder."""
    content = asdict(job) | {"folder": str(job.folder), "output": str(job.output)}
    write_json(job.folder / JOB, content)


def read_job(folder: Path) -> Job:
    """The job of a folder. Raises OSError where there is none, and DataError for one that is damaged or of another version."""
    try:
        return _job(folder, json.loads((folder / JOB).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / JOB}: damaged, or written by another version of the harness ({error!r}). Prepare again with --restart."
        ) from None


def _job(folder: Path, content: dict[str, Any]) -> Job:
    inputs = content["inputs"]
    passed_over = tuple(PassedOver(**entry) for entry in inputs["passed_over"])
    stats = tuple((size, modified_ns) for size, modified_ns in inputs["stats"])
    inputs |= {"files": tuple(inputs["files"]), "stats": stats, "passed_over": passed_over}
    return Job(
        **content
        | {
            "folder": folder,
            "output": Path(content["output"]),
            "inputs": Inputs(**inputs),
            "recipe": recipe_from_dict(content["recipe"]),
        }
    )


def read_made_from(folder: Path) -> dict[str, Any]:
    """What the job of a folder was made from, whatever version wrote it; empty: it is damaged. Raises OSError where there is none."""
    try:
        made_from = json.loads((folder / JOB).read_text(encoding="utf-8"))["made_from"]
    except (ValueError, KeyError, TypeError):
        return {}
    return made_from if isinstance(made_from, dict) else {}
