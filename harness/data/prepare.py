"""Text in, token files out: reads documents, trains a tokenizer where none is given, and lets datatrove tokenise.

The output folder is complete or absent: everything is made in a hidden folder beside it, which is renamed at the end.
It holds `*.ds` with index and metadata, `tokenizer/`, `logs/` and `manifest.json`.
"""

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from harness.data.errors import DataError
from harness.data.inputs import Inputs, find_inputs
from harness.data.token_files import open_source
from harness.data.tokenizer_files import TokenizerFacts, locate_tokenizer, read_tokenizer

EOS_TOKEN = "<|endoftext|>"
"""Ends each document where the tokenizer is trained here."""
DEFAULT_VOCAB_SIZE = 4096
MIN_VOCAB_SIZE = 257
"""Every byte and the end-of-document token."""
TRAINING_CHARS = 64_000_000
"""Text that the tokenizer is trained on, at most: taken evenly from all tasks."""
ENCODE_BATCH = 256
"""Documents tokenised at once; bounds the memory of a task."""
SEED = 0
"""Of the shuffle of the documents inside each file. The order of training is the run's own (data.seed)."""
MANIFEST = "manifest.json"
TOKENIZER_NAME = "tokenizer/tokenizer.json"


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    input: str
    output: Path
    format: str | None = None
    text_key: str = "text"
    tokenizer: str | None = None
    vocab_size: int | None = None
    eos_token: str | None = None
    workers: int | None = None


def prepare(request: Request) -> dict[str, Any]:
    """Make token files at `request.output` and return their manifest, or that of the same files made before.

    Raises DataError for anything wrong with the input, the tokenizer or the output folder; nothing is left behind then.
    """
    if request.vocab_size is not None and (request.tokenizer or request.vocab_size < MIN_VOCAB_SIZE):
        raise DataError(
            f"--vocab-size {request.vocab_size}: for training a tokenizer, so at least {MIN_VOCAB_SIZE} and without --tokenizer"
        )
    if request.workers is not None and request.workers < 1:
        raise DataError(f"--workers {request.workers}: must be at least 1")
    inputs = find_inputs(request.input, request.format, request.text_key)
    made_from = _made_from(request, inputs)
    output = request.output.expanduser().absolute()
    if (manifest := _existing(output, made_from)) is not None:
        print(f"{output} is already complete: {_summary(manifest)}")
        return manifest
    try:
        with _partial_folder(output) as partial:
            facts = _make_token_files(request, inputs, partial)
            manifest = _finish(partial, facts, request.input, made_from)
            (partial / "lock").unlink()
            os.rename(partial, output)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"--output {output}: cannot write {error.filename or 'to it'}: {reason}") from None
    print(f"{output}: {_summary(manifest)}")
    return manifest


def _made_from(request: Request, inputs: Inputs) -> dict[str, Any]:
    """All that the output depends on."""
    tokenizer: dict[str, Any] = {"trained": True, "vocab_size": request.vocab_size or DEFAULT_VOCAB_SIZE}
    if request.tokenizer:
        facts = _given_tokenizer(request)
        tokenizer = {"trained": False, "identity": facts.identity, "eos_token": request.eos_token or facts.eos_token}
    elif request.eos_token:
        raise DataError(
            f"--eos-token {request.eos_token}: goes with --tokenizer; a trained one ends documents with {EOS_TOKEN}"
        )
    return {
        "format": inputs.format,
        "text_key": inputs.text_key if inputs.format != "text" else None,
        "identity": inputs.identity,
        "tokenizer": tokenizer,
    }


def _given_tokenizer(request: Request) -> TokenizerFacts:
    assert request.tokenizer is not None
    path = locate_tokenizer(request.tokenizer)
    if path is None:
        raise DataError(f"--tokenizer {request.tokenizer}: no tokenizer.json there. Give its folder or the file.")
    facts = read_tokenizer(path)
    if request.eos_token is None and facts.eos_token_id is None:
        raise DataError(
            f"--tokenizer {request.tokenizer}: names no end-of-document token"
            + (f" of its own ({facts.eos_token} is not in its vocabulary)" if facts.eos_token else "")
            + ". Pass it with --eos-token, as text: --eos-token '</s>'."
        )
    return facts


def _existing(output: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a complete output from the same input; None: nothing is there. Never overwrites."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        manifest: dict[str, Any] = json.loads((output / MANIFEST).read_text())
        differing = sorted(key for key, value in made_from.items() if manifest["made_from"].get(key) != value)
    except (OSError, ValueError, KeyError, AttributeError):
        raise DataError(f"--output {output}: exists and is no prepared data set. Choose another folder.") from None
    if differing:
        raise DataError(
            f"--output {output}: exists and was made from something else ({', '.join(differing)} differ; see its {MANIFEST}). "
            "Choose another folder, or remove this one."
        )
    missing = [
        entry["name"]
        for entry in manifest["files"]
        if not (output / entry["name"]).is_file() or (output / entry["name"]).stat().st_size != entry["bytes"]
    ]
    if missing:
        raise DataError(
            f"--output {output}: damaged: {', '.join(missing[:3])} missing or cut off. Remove the folder, prepare again."
        )
    return manifest


@contextlib.contextmanager
def _partial_folder(output: Path) -> Iterator[Path]:
    """A locked folder beside `output` to work in, on the same file system. Removed on any error."""
    partial = output.with_name(f".{output.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"--output {output}: another prepare is making it (it holds {partial}/lock)") from None
        for entry in partial.iterdir():  # what a killed prepare left
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _make_token_files(request: Request, inputs: Inputs, partial: Path) -> TokenizerFacts:
    """Tokenizer and token files. What the libraries print goes to logs/prepare.log; a progress bar goes to the terminal."""
    logs, counts = partial / "logs", partial / "progress"
    logs.mkdir()
    counts.mkdir()
    with _quiet(logs / "prepare.log") as terminal:
        from datatrove.executor.local import LocalPipelineExecutor
        from datatrove.pipeline.tokens import DocumentTokenizer

        from harness.data.readers import CountProgress, make_reader

        reader = make_reader(inputs, logs)
        if request.tokenizer:
            facts = _copy_tokenizer(request, partial)
        else:
            facts = _train_tokenizer(reader, inputs.tasks, request.vocab_size or DEFAULT_VOCAB_SIZE, partial, terminal)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(inputs.tasks, request.workers or cores)
        if workers > 1:  # the tokenizers library has threads of its own in each of them
            os.environ.setdefault("RAYON_NUM_THREADS", str(max(1, cores // workers)))
        progress = CountProgress(counts)
        tokenise = DocumentTokenizer(
            str(partial), str(facts.path), eos_token=facts.eos_token, batch_size=ENCODE_BATCH, seed=SEED
        )
        executor = LocalPipelineExecutor(
            [reader, progress, tokenise], tasks=inputs.tasks, workers=workers, logging_dir=str(logs)
        )
        bar = tqdm(total=inputs.total, desc="tokenising", unit=inputs.unit, unit_scale=True, file=terminal)
        with bar, _follow(progress, bar):
            executor.run()
    shutil.rmtree(counts)
    return facts


@contextlib.contextmanager
def _follow(progress: Any, bar: tqdm) -> Iterator[None]:
    """Move the bar while the tasks work; to its end when they succeed."""
    finished = threading.Event()

    def poll() -> None:
        while not finished.wait(0.2):
            bar.update(progress.done() - bar.n)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
    bar.update((bar.total or progress.done()) - bar.n)


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[IO[str]]:
    """Send everything that this process and its children print to stderr into `log`; yields the real stderr."""
    sys.stderr.flush()
    saved = os.dup(2)
    with log.open("w") as file, os.fdopen(os.dup(saved), "w") as terminal:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(file):
                yield terminal
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _train_tokenizer(reader: Any, tasks: int, vocab_size: int, partial: Path, terminal: IO[str]) -> TokenizerFacts:
    """A byte-level BPE of `vocab_size` tokens, or fewer where the text has no more to merge."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    def texts() -> Iterator[str]:
        for rank in range(tasks):
            taken = 0
            for document in copy.deepcopy(reader).run(rank=rank, world_size=tasks):
                yield document.text
                taken += len(document.text)
                bar.update(len(document.text))
                if taken * tasks >= TRAINING_CHARS:
                    break

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS_TOKEN], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    with tqdm(desc="training tokenizer", unit="chars", unit_scale=True, file=terminal) as bar:
        tokenizer.train_from_iterator(texts(), trainer)
    path = partial / TOKENIZER_NAME
    path.parent.mkdir()
    tokenizer.save(str(path))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS_TOKEN}
    (path.parent / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return read_tokenizer(path)


def _copy_tokenizer(request: Request, partial: Path) -> TokenizerFacts:
    """Keep the given tokenizer beside the token files, with the end-of-document token that was used."""
    from tokenizers import Tokenizer

    facts = _given_tokenizer(request)
    try:
        Tokenizer.from_file(str(facts.path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"--tokenizer {request.tokenizer}: the tokenizers library cannot load it: {error}") from None
    folder = (partial / TOKENIZER_NAME).parent
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        source = facts.path if name == "tokenizer.json" else facts.path.with_name(name)
        if source.is_file():
            shutil.copyfile(source, folder / name)
    if request.eos_token:
        config = folder / "tokenizer_config.json"
        content = json.loads(config.read_text()) if config.is_file() else {}
        config.write_text(json.dumps(content | {"eos_token": request.eos_token}, indent=2) + "\n")
    copied = read_tokenizer(partial / TOKENIZER_NAME)
    if copied.eos_token_id is None:
        raise DataError(f"--eos-token {copied.eos_token}: not in the vocabulary of {facts.path}. Pass one that is.")
    return copied


def _finish(partial: Path, facts: TokenizerFacts, input: str, made_from: dict[str, Any]) -> dict[str, Any]:
    """Check what was written and describe it in the manifest, which is written last."""
    for file in partial.glob("*.ds"):
        if file.stat().st_size == 0:  # of a task without documents
            for leftover in partial.glob(f"{file.name}*"):
                leftover.unlink()
    if not any(partial.glob("*.ds")):
        raise DataError(f"--input {input}: no text in it, so there is nothing to tokenise")
    for metadata in partial.glob("*.ds.metadata"):  # datatrove wrote where the tokenizer lay while it worked
        _, _, rest = metadata.read_text().partition("|")
        metadata.write_text(f"{TOKENIZER_NAME}|{rest}")
    source = open_source("prepared", partial)
    documents = sum(file.stat().st_size // 8 for file in partial.glob("*.ds.index"))
    manifest = {
        "input": input,
        "made_from": made_from,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tokens": source.tokens,
        "documents": documents,
        "token_size": source.token_size,
        "tokenizer": TOKENIZER_NAME,
        "vocab_size": facts.size,
        "eos_token": facts.eos_token,
        "eos_token_id": facts.eos_token_id,
        "token_files": [{"name": file.path.name, "tokens": file.tokens} for file in source.files],
        "files": [_entry(file, partial) for file in sorted([*partial.glob("*.ds*"), *partial.glob("tokenizer/*")])],
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _entry(file: Path, root: Path) -> dict[str, Any]:
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"name": str(file.relative_to(root)), "bytes": file.stat().st_size, "sha256": digest}


def _summary(manifest: dict[str, Any]) -> str:
    wanted = manifest["made_from"]["tokenizer"].get("vocab_size", manifest["vocab_size"])
    fewer = (
        f" (of {wanted:,} asked for: the text holds no more pairs to merge)" if manifest["vocab_size"] < wanted else ""
    )
    return (
        f"{manifest['tokens']:,} tokens in {manifest['documents']:,} documents, {len(manifest['token_files'])} token file(s), "
        f"vocabulary {manifest['vocab_size']:,}{fewer}"
    )
