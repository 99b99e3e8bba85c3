"""From a run's checkpoint to a folder that transformers and vLLM load: complete, or not there."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from harness.checkpoint.folders import complete_path
from harness.checkpoint.manifest import Manifest, differences, identity
from harness.config.schema import RootConfig
from harness.export import tokenizer as tokenizers
from harness.export.card import model_card
from harness.export.comparison import compared
from harness.export.errors import ExportError
from harness.export.model_files import check_shapes, described, planned_shards, write_configs, write_weights
from harness.export.weights import open_weights
from harness.model.family import parameters
from harness.run.files import fsync_folder
from harness.run.folder import RunFolder, find_run
from harness.text import bytes_text


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the command line's options."""

    run: str
    step: int | None
    output: Path | None
    dtype: str
    ema: bool
    runs_dir: Path
    tokenizer: str | None


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    remarks: list[str]
    """Sentences for the user: what is not in it, and why."""


def export(request: Request) -> Exported:
    """Write the model. Raises ExportError or RunFolderError; then nothing is left of it."""
    run = _find_run(request.run, request.runs_dir)
    config = run.load_config()
    if request.output is not None:
        _check_output(request.output)
    tokenizer, remarks = tokenizers.find(request.tokenizer, config.data, config.model.vocab_size)
    weights = open_weights(run, request.step, "ema" if request.ema else "model")
    if request.ema and not weights.shapes:
        raise ExportError(
            f"--ema: {weights.folder} holds no moving average of the weights; it is kept with optim.ema_decay"
        )
    _check_identity(config, weights.manifest)
    output = request.output or _default_output(run, weights.manifest.step, request.ema)
    _check_output(output)
    dtype = getattr(torch, request.dtype)
    model = described(config.model, tokenizer, dtype)
    check_shapes(model, weights)
    shards = planned_shards(model, dtype)
    card = model_card(
        run, config, weights.manifest, parameters=parameters(config.model).total, dtype=request.dtype, ema=request.ema
    )
    with _complete_or_absent(output, shards.metadata["total_size"]) as folder:
        write_weights(shards, weights, dtype, folder)
        write_configs(model, folder)
        tokenizer.write_files(folder)
        (folder / "README.md").write_text(card)
        remarks += tokenizer.remarks_about(folder)
        remarks += compared(config, folder, weights, dtype)
    return Exported(output, remarks)


def _find_run(name: str, runs_dir: Path) -> RunFolder:
    path = find_run(name, runs_dir)
    if not path.is_dir():
        names = sorted(found.parent.name for found in runs_dir.glob("*/config.yaml"))
        there_are = f"there are {', '.join(names)}" if names else "there are none"
        raise ExportError(f"{name}: no such run in {runs_dir}; {there_are}; --runs-dir names another folder of runs")
    return RunFolder(path.resolve())


def _default_output(run: RunFolder, step: int, ema: bool) -> Path:
    return run.path / "export" / (complete_path(run.checkpoints_dir, step).name + "-ema" * ema)


def _check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ExportError(f"{output} exists already: remove it, or give another folder with --output")


def _check_identity(config: RootConfig, manifest: Manifest) -> None:
    """Raises ExportError where config.yaml has changed to another model since the checkpoint."""
    saved = {key: value for key, value in manifest.identity.items() if key.startswith("model.")}
    now = {key: value for key, value in identity(config, {}).items() if key.startswith("model.")}
    if different := differences(saved, now):
        raise ExportError("the checkpoint is not of the model that config.yaml describes:\n  " + "\n  ".join(different))


@contextmanager
def _complete_or_absent(output: Path, size: int) -> Iterator[Path]:
    """A folder to fill, which becomes `output` at the end. `size`: bytes that it needs. Raises ExportError."""
    output = output.absolute()
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
        if free < size:
            raise ExportError(
                f"{output}: needs {bytes_text(size)}, and the file system has {bytes_text(free)} left; free some, or "
                "give a folder on another one with --output"
            )
        yield temporary
        fsync_folder(temporary)
        os.rename(temporary, output)  # an empty folder of that name gives way
        fsync_folder(output.parent)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        hint = "; free some space, or give a folder on another file system with --output" if full else ""
        raise ExportError(f"{output} could not be written: {error}{hint}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
