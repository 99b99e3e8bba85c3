"""Documents in, token files out: `python -m harness.data prepare`.

The output folder is complete or absent: everything is made in a hidden folder beside it, `.NAME.partial`, which is renamed at
the end. What a stopped or killed preparation left there is gone on with: tasks that are complete are not done again.
The output holds `*.ds` with index, metadata and checksums, `tokenizer/`, `logs/` and `manifest.json`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.data.errors import DataError
from harness.data.preparation.folder import has_completed_tasks, partial_folder, remove
from harness.data.preparation.given_tokenizer import copy_tokenizer, digest, given_tokenizer, tokenizer_files
from harness.data.preparation.inputs import Inputs, find_inputs
from harness.data.preparation.job import JOB, MANIFEST, Job, read_made_from, write_job
from harness.data.preparation.recipe import Recipe, describe, read_recipe
from harness.data.preparation.summary import print_summary
from harness.data.preparation.train_tokenizer import DEFAULT_VOCAB_SIZE, EOS_TOKEN, MIN_VOCAB_SIZE

METHOD = 2
"""Rises when the same input and options give other token files than before: what was made until then is told apart."""


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    input: str | Sequence[str]
    """One, or several that are read together."""
    output: Path
    format: str | None = None
    text_key: str = "text"
    tokenizer: str | None = None
    vocab_size: int | None = None
    eos_token: str | None = None
    recipe: Path | None = None
    keep_removed: int = 0
    max_bad_lines: int = 0
    workers: int | None = None
    slurm: str | None = None
    restart: bool = False


def prepare(request: Request) -> dict[str, Any] | None:
    """Make token files at `request.output` and return their manifest, or that of the same files made before.

    None: Slurm jobs are making them. Raises DataError for anything wrong with the options, the input, the tokenizer or the
    output folder. What was made until then stays for the next call, where any task was completed.
    """
    _check(request)
    output = request.output.expanduser().absolute()
    inputs = find_inputs(request.input, request.format, request.text_key, output)
    recipe = read_recipe(request.recipe.expanduser()) if request.recipe else Recipe()
    made_from = _made_from(request, inputs, recipe)
    if (manifest := _existing(output, made_from)) is not None:
        print_summary(f"{output} is already complete", manifest, inputs)
        return manifest
    try:
        with partial_folder(output) as partial:
            try:
                manifest = _go_on(request, inputs, recipe, made_from, partial)
            except BaseException as error:
                _leave(partial, error)
                raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"--output {output}: cannot write {error.filename or 'to it'}: {reason}") from None
    if manifest is not None:
        print_summary(str(output), manifest, inputs)
    return manifest


def _go_on(
    request: Request, inputs: Inputs, recipe: Recipe, made_from: dict[str, Any], partial: Path
) -> dict[str, Any] | None:
    """Run what is left to do in the partial folder: here, or as Slurm jobs (None)."""
    from harness.data.preparation.finish import finish, publish
    from harness.data.preparation.local import run_stages
    from harness.data.preparation.slurm import jobs_in_progress, parse_slurm, submit_stages

    slurm = parse_slurm(request.slurm) if request.slurm else None
    if (manifest := _existing(request.output.expanduser().absolute(), made_from)) is not None:
        remove(partial, itself=True)  # a Slurm job finished it a moment ago
        return manifest
    if progress := jobs_in_progress(partial):
        if request.restart:
            raise DataError(f"--restart: {progress}. Cancel them first (scancel).")
        print(f"{request.output}: {progress}")
        return None
    if not request.restart and (manifest := _described(partial, made_from)) is not None:
        publish(partial, request.output.expanduser().absolute())
        return manifest
    job = _take_over(request, inputs, recipe, made_from, partial)
    if slurm and not submit_stages(job, slurm):
        return None
    run_stages(job, request.workers)
    return finish(job)


def _take_over(request: Request, inputs: Inputs, recipe: Recipe, made_from: dict[str, Any], partial: Path) -> Job:
    """The job, in a folder that holds what was completed of the very same one, or nothing."""
    output = request.output.expanduser().absolute()
    if request.restart:
        remove(partial)
    if not (partial / JOB).exists():
        remove(partial)  # nothing was begun
    else:
        earlier = read_made_from(partial)
        if differing := _differing(made_from, earlier):
            if has_completed_tasks(partial):
                raise DataError(
                    f"--output {output}: {partial.name} beside it holds an unfinished preparation from something else "
                    f"({', '.join(differing)} differ; see its job.json). Go on with what it was made from, or begin afresh with --restart."
                )
            remove(partial)
        elif has_completed_tasks(partial):
            print(f"{output}: going on with what an earlier call left unfinished")
    vocab_size = None if request.tokenizer else request.vocab_size or DEFAULT_VOCAB_SIZE
    job = Job(
        folder=partial,
        output=output,
        input=inputs.path,
        inputs=inputs,
        recipe=recipe,
        vocab_size=vocab_size,
        keep_removed=request.keep_removed,
        max_bad_lines=request.max_bad_lines,
        made_from=made_from,
    )
    if request.tokenizer:
        copy_tokenizer(request.tokenizer, request.eos_token, job.tokenizer)
    write_job(job)
    return job


def _leave(partial: Path, error: BaseException) -> None:
    """Keep the folder where the next call can go on in it."""
    from harness.data.preparation.slurm import JOBS
    from harness.data.preparation.tallies import NothingLeftError

    if (partial / JOBS).exists():  # they may be at work in it
        return
    if isinstance(error, NothingLeftError) or not has_completed_tasks(partial):
        remove(partial, itself=True)


def _check(request: Request) -> None:
    if request.vocab_size is not None and (request.tokenizer or request.vocab_size < MIN_VOCAB_SIZE):
        raise DataError(
            f"--vocab-size {request.vocab_size}: for training a tokenizer, so at least {MIN_VOCAB_SIZE} and without --tokenizer"
        )
    if request.workers is not None and request.workers < 1:
        raise DataError(f"--workers {request.workers}: must be at least 1")
    for option in ("keep_removed", "max_bad_lines"):
        if getattr(request, option) < 0:
            raise DataError(f"--{option.replace('_', '-')} {getattr(request, option)}: must be at least 0")


def _made_from(request: Request, inputs: Inputs, recipe: Recipe) -> dict[str, Any]:
    """All that the output depends on. Versions of the libraries count for what is unfinished alone: see `_existing`."""
    tokenizer: dict[str, Any] = {"trained": True, "vocab_size": request.vocab_size or DEFAULT_VOCAB_SIZE}
    if request.tokenizer:
        facts = given_tokenizer(request.tokenizer, request.eos_token)
        tokenizer = {
            "trained": False,
            "eos_token": request.eos_token or facts.eos_token,
            "files": {file.name: digest(file) for file in tokenizer_files(facts.path)},
        }
    elif request.eos_token:
        raise DataError(
            f"--eos-token {request.eos_token}: goes with --tokenizer; a trained one ends documents with {EOS_TOKEN}"
        )
    return {
        "method": METHOD,
        "versions": {name: version(name) for name in ("datatrove", "tokenizers")},
        "format": inputs.format,
        "text_key": inputs.text_key if inputs.format != "text" else None,
        "identity": inputs.identity,
        "tasks": inputs.tasks,
        "tokenizer": tokenizer,
        "recipe": describe(recipe),
    }


def _existing(output: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a complete output from the same input; None: nothing is there. Never overwrites."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        manifest: dict[str, Any] = json.loads((output / MANIFEST).read_text())
        differing = _differing(made_from, manifest["made_from"], but="versions")
        files = {output / entry["name"]: entry["bytes"] for entry in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"--output {output}: exists and is no prepared data set. Choose another folder.") from None
    if differing:
        raise DataError(
            f"--output {output}: exists and was made from something else ({', '.join(differing)} differ; see its {MANIFEST}). "
            "Choose another folder, or remove this one."
        )
    missing = [
        str(file.relative_to(output))
        for file, size in files.items()
        if not file.is_file() or file.stat().st_size != size
    ]
    if missing:
        raise DataError(
            f"--output {output}: damaged: {', '.join(missing[:3])} missing or cut off. Remove the folder, prepare again."
        )
    return manifest


def _described(partial: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a partial folder that was killed after all was made, and before it was renamed."""
    try:
        manifest: dict[str, Any] = json.loads((partial / MANIFEST).read_text())
        return None if _differing(made_from, manifest["made_from"]) else manifest
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _differing(made_from: dict[str, Any], other: dict[str, Any], but: str = "") -> list[str]:
    """Keys of what is not the same, `but` aside."""
    return sorted(key for key, value in made_from.items() if key != but and other.get(key) != value)
