"""A trainer as a rank has it, on random tokens and the one GPU of this process, for benchmarks that drive it themselves."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from benchmarks.throughput.settings import shape_config
from benchmarks.throughput.tokens import overrides as token_overrides
from benchmarks.throughput.tokens import write_random_tokens
from harness.config.compose import compose
from harness.data.loader import StepBatch
from harness.run.folder import RunFolder
from harness.train.process import Place, ensure_rendezvous
from harness.train.setup import Trainer, set_up

SEQ = 4096
LR = 1e-5


@contextmanager
def trainer_on_random_tokens(
    shape: str, micro_batch: int, steps: int, overrides: Sequence[str] = ()
) -> Iterator[Trainer]:
    """Before its first step. `shape`: name of a config in conf/model; a step is one micro batch of `micro_batch` sequences.

    Raises ConfigError."""
    with TemporaryDirectory(prefix="harness-one-gpu-") as name:
        folder = Path(name)
        tokens = write_random_tokens(folder / "tokens", shape_config(shape).vocab_size)
        config = compose(
            [
                "cluster=local", "cluster.gpus_per_node=1", f"model={shape}", f"data.seq_len={SEQ}",
                *token_overrides(tokens), f"train.micro_batch_size={micro_batch}", f"train.global_batch_size={micro_batch}",
                f"train.steps={steps}", f"runs_dir={folder}", "run.name=run", "train.activation_checkpoint=none", *overrides,
            ]
        )  # fmt: skip
        run = RunFolder(folder / "run")
        run.create()
        run.save_config(config)
        run.attempt_dir(0).mkdir(parents=True)
        ensure_rendezvous(1)
        trainer = set_up(run, config, Place.from_environment(os.environ), folder / "boards")
        try:
            yield trainer
        finally:
            trainer.loader.close()
            dist.destroy_process_group()


def timed_steps(trainer: Trainer, batches: Iterable[StepBatch]) -> tuple[list[StepBatch], float]:
    """Train on the batches, each result read one step late as in a run: the batches, and seconds a step.

    The memory of the batches is not used again as long as they are kept."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    done: list[StepBatch] = []
    pending = None
    for batch in batches:
        queued = trainer.stepper.run(batch, LR, stop=False, fenced=False, with_statistics=False)
        if pending is not None:
            pending.result()
        pending = queued
        done.append(batch)
    torch.cuda.synchronize()
    return done, (time.perf_counter() - begin) / len(done)
