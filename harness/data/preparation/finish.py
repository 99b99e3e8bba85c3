"""The last step of a preparation: the manifest, and the rename that makes the output appear."""

import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.data.documents.passed_over import BAD_ROW, PassedOver, as_record, counts
from harness.data.preparation.decontamination import read_eval_facts
from harness.data.preparation.encode import encoding_facts
from harness.data.preparation.folder import LOCK
from harness.data.preparation.job import JOB, MANIFEST, PASSED_OVER, TOKENIZER_NAME, WORK, Job
from harness.data.preparation.steps import file_entry, read_sums
from harness.data.preparation.tallies import (
    as_manifest,
    encoding_stats,
    read_account,
    read_tallies,
    refuse_if_nothing_is_left,
    refuse_lost_documents,
)
from harness.data.token_files import open_source
from harness.data.tokenizer.encoder import open_encoder, remarks
from harness.data.tokenizer_files import read_tokenizer
from harness.run.files import fsync_folder, write_atomic, write_json


def finish(job: Job) -> dict[str, Any]:
    """Check what all tasks made, describe it in the manifest, and rename the folder. Returns the manifest.

    Raises NothingLeftError where no document is left, and DataError where files are damaged.
    """
    refuse_if_nothing_is_left(job)
    manifest = _manifest(job)
    write_json(job.folder / MANIFEST, manifest)
    publish(job.folder, job.output)
    return manifest


def publish(partial: Path, output: Path) -> None:
    """Remove from a folder with its manifest what only the tasks needed, and rename it. May be called again after a kill."""
    shutil.rmtree(partial / WORK, ignore_errors=True)
    for pattern in (JOB, "slurm.json", "slurm_options.json", "logs/*/executor.pik"):
        for file in partial.glob(pattern):
            file.unlink()
    fsync_folder(partial)
    os.rename(partial, output)
    (output / LOCK).unlink(missing_ok=True)  # not before: until then no other call may take the folder over
    fsync_folder(output.parent)


def _manifest(job: Job) -> dict[str, Any]:
    source = open_source("prepared", job.folder)
    facts = read_tokenizer(job.tokenizer)
    encoder = open_encoder(job.tokenizer, facts.eos_token)
    documents = sum(file.stat().st_size // 8 for file in job.folder.glob("*.ds.index"))
    refuse_lost_documents(job, documents)
    tallies = read_tallies(job, ["filter", "tokenise"] if job.recipe.drops else ["tokenise"])
    passed_over = [*job.inputs.passed_over, *read_account(job)]
    found = counts(passed_over)
    evals = read_eval_facts(job.work / "evals") if job.recipe.decontaminate else None
    tokenizer_files = sorted(path for path in job.tokenizer.parent.rglob("*") if path.is_file())
    return {
        "input": job.input,
        "made_from": job.made_from,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tokens": source.tokens,
        "documents": documents,
        "token_size": source.token_size,
        "tokenizer": TOKENIZER_NAME,
        "vocab_size": facts.size,
        "eos_token": facts.eos_token,
        "eos_token_id": facts.eos_token_id,
        "steps": as_manifest(tallies),
        "frame": {"before": encoder.names(encoder.before), "after": encoder.names(encoder.after)},
        "remarks": [*remarks(job.tokenizer, encoder), *_eval_remarks(evals or {})],
        **encoding_facts(encoding_stats(job)),
        "passed_over": found,
        "bad_lines": found["rows"].get(BAD_ROW, 0),
        **({"evals": evals} if evals else {}),
        "token_files": [{"name": file.path.name, "tokens": file.tokens} for file in source.files],
        "files": [
            *read_sums(job.work / "sums", job.inputs.tasks),
            *(file_entry(file, job.folder) for file in tokenizer_files),
            *_list_passed_over(job, passed_over),
        ],
    }


def _eval_remarks(evals: dict[str, Any]) -> Iterator[str]:
    for name, facts in evals.items():
        if "passed_over" in facts:
            yield f"eval set {name}: {facts['passed_over']}"


def _list_passed_over(job: Job, entries: list[PassedOver]) -> list[dict[str, Any]]:
    """Write the list, where there is anything on it; its line in the manifest."""
    if not entries:
        return []
    file = job.folder / PASSED_OVER
    write_atomic(file, "".join(json.dumps(as_record(entry)) + "\n" for entry in entries))
    return [file_entry(file, job.folder)]
