"""A trainer as a rank has it, on random tokens and the one GPU of this process, for benchmarks that drive it themselves."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

from benchmarks.throughput.settings import shape_config
from benchmarks.throughput.tokens import END_OF_DOCUMENT, write_random_tokens
from harness.config.compose import compose
from harness.run.folder import RunFolder
from harness.train.process import Place
from harness.train.setup import Trainer, set_up
from harness.verify.processes import free_port

SEQ = 4096


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
                f"+data.sources.random.path={tokens}", "data.stages=[{name: random, weights: {random: 1.0}}]",
                f"data.eos_token_id={END_OF_DOCUMENT}", f"train.micro_batch_size={micro_batch}",
                f"train.global_batch_size={micro_batch}", f"train.steps={steps}", f"runs_dir={folder}", "run.name=run",
                "train.activation_checkpoint=none", *overrides,
            ]
        )  # fmt: skip
        run = RunFolder(folder / "run")
        run.create()
        run.save_config(config)
        run.attempt_dir(0).mkdir(parents=True)
        os.environ |= {
            "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        }  # fmt: skip
        trainer = set_up(run, config, Place.from_environment(os.environ), folder / "boards")
        try:
            yield trainer
        finally:
            trainer.loader.close()
            dist.destroy_process_group()
