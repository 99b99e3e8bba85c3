"""The last step of a preparation: the manifest, and the rename that makes the output appear."""

import os
import shutil
from datetime import UTC, datetime
from typing import Any

from harness.data.preparation.decontamination import read_eval_facts
from harness.data.preparation.folder import LOCK
from harness.data.preparation.job import JOB, MANIFEST, TOKENIZER_NAME, Job
from harness.data.preparation.steps import file_entry, read_sums
from harness.data.preparation.tallies import as_manifest, bad_lines, read_tallies, refuse_if_nothing_is_left
from harness.data.token_files import open_source
from harness.data.tokenizer_files import read_tokenizer
from harness.run.files import fsync_folder, write_json


def finish(job: Job) -> dict[str, Any]:
    """Check what all tasks made, describe it in the manifest, and rename the folder. Returns the manifest.

    Raises NothingLeftError where no document is left, and DataError where files are damaged.
    """
    refuse_if_nothing_is_left(job)
    manifest = _manifest(job)
    partial = job.folder
    write_json(partial / MANIFEST, manifest)
    shutil.rmtree(job.work, ignore_errors=True)
    for pattern in (LOCK, JOB, "slurm.json", "slurm_options.json", "logs/*/executor.pik", "logs/*/inputs.list"):
        for file in partial.glob(pattern):
            file.unlink()
    fsync_folder(partial)
    os.rename(partial, job.output)
    fsync_folder(job.output.parent)
    return manifest


def _manifest(job: Job) -> dict[str, Any]:
    source = open_source("prepared", job.folder)
    facts = read_tokenizer(job.tokenizer)
    first = "filter" if job.recipe.drops else "tokenise"
    tallies = read_tallies(job, ["filter", "tokenise"] if job.recipe.drops else ["tokenise"])
    evals = read_eval_facts(job.work / "evals") if job.recipe.decontaminate else None
    tokenizer_files = sorted(job.tokenizer.parent.iterdir())
    return {
        "input": job.input,
        "made_from": job.made_from,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tokens": source.tokens,
        "documents": sum(file.stat().st_size // 8 for file in job.folder.glob("*.ds.index")),
        "token_size": source.token_size,
        "tokenizer": TOKENIZER_NAME,
        "vocab_size": facts.size,
        "eos_token": facts.eos_token,
        "eos_token_id": facts.eos_token_id,
        "steps": as_manifest(tallies),
        "bad_lines": bad_lines(job, first),
        **({"evals": evals} if evals else {}),
        "token_files": [{"name": file.path.name, "tokens": file.tokens} for file in source.files],
        "files": [
            *read_sums(job.work / "sums", job.inputs.tasks),
            *(file_entry(file, job.folder) for file in tokenizer_files),
        ],
    }
