"""One rank of the rival: torchtitan 0.2's own Trainer on random tokens. Started by torchrun; see `rival.command`.

Only what can't be said by torchtitan's config is replaced: the model's dimensions, the data (random tokens made on the
host, so that no tokenizer and no data set are needed) and where its metrics go. Prints one line of JSON at the end.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.metrics import BaseLogger, MetricsProcessor
from torchtitan.config import JobConfig
from torchtitan.models import llama3
from torchtitan.protocols.train_spec import TrainSpec, register_train_spec
from torchtitan.tools.logging import init_logger
from torchtitan.train import Trainer

from benchmarks.processes import OUT_OF_MEMORY
from benchmarks.throughput.settings import ACTIVATION_CHECKPOINTS, PRECISIONS, RIVAL, WARMUP_STEPS, WINDOW_STEPS
from harness.train.process import prepare_process

NAME = "throughput"
BATCHES = 8
"""Random batches, used in turns: making them costs the steps nothing."""


def main() -> int:
    prepare_process()  # no rank outlives its launcher
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput.torchtitan_rival", description=__doc__)
    parser.add_argument("--model", type=json.loads, required=True, help="fields of TransformerModelArgs, as JSON")
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--micro-batch", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--activation-checkpoint", choices=ACTIVATION_CHECKPOINTS, required=True)
    parser.add_argument("--dump-folder", required=True, help="where torchtitan may write")
    options = parser.parse_args()
    init_logger()
    records = Records()
    try:
        register_train_spec(NAME, train_spec(options.model, records))
        trainer = Trainer(job_config(options))
        trainer.train()
    except torch.OutOfMemoryError:
        report(error=OUT_OF_MEMORY)
        return 1
    except Exception as error:
        report(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
        raise
    if torch.distributed.get_rank() == 0:
        report(
            rates=[rate for step, rate in records.rates.items() if step > WARMUP_STEPS],
            parameters=sum(parameter.numel() for parameter in trainer.model_parts[0].parameters()),
            flops_per_token=trainer.metrics_processor.num_flops_per_token,
            first_step_time=records.first_step_time,
            versions={name: installed(name) for name in ("torch", "torchtitan", "torchao")},
        )
    trainer.close()
    torch.distributed.destroy_process_group()
    return 0


def job_config(options: argparse.Namespace) -> JobConfig:
    """torchtitan's defaults with compilation on: per block and the loss. fp32 master weights, bf16 compute, fused AdamW."""
    config = JobConfig()
    config.job.dump_folder = options.dump_folder
    config.model.name, config.model.flavor = NAME, NAME
    config.training.local_batch_size = options.micro_batch
    config.training.seq_len = options.seq_len
    config.training.steps = options.steps
    config.compile.enable = torch.cuda.is_available()
    config.activation_checkpoint.mode = options.activation_checkpoint
    config.activation_checkpoint.selective_ac_option = "op"
    config.metrics.log_freq = WINDOW_STEPS
    config.metrics.disable_color_printing = True
    if options.precision != "bf16":
        config.model.converters = ["quantize.linear.float8"]
        float8 = config.quantize.linear.float8
        float8.filter_fqns = ["output"]  # as torchtitan's documentation advises
        if options.precision == "fp8_rowwise":
            float8.recipe_name = "rowwise"
        else:  # scaling by tensor, which torchtitan asks for by naming no recipe
            float8.enable_fsdp_float8_all_gather = True
            float8.precompute_float8_dynamic_scale_for_fsdp = True
    return config


def train_spec(model: dict[str, Any], records: "Records") -> TrainSpec:
    """The llama3 family with our dimensions, on random tokens, its metrics also in `records`."""

    def metrics_processor(*arguments: Any, **options: Any) -> MetricsProcessor:
        processor = MetricsProcessor(*arguments[:2], **options)
        processor.logger = records
        return processor

    def dataloader(dp_rank: int, job_config: JobConfig, **unused: Any) -> RandomTokens:
        training = job_config.training
        return RandomTokens(training.local_batch_size, training.seq_len, model["vocab_size"], seed=dp_rank)

    return dataclasses.replace(
        llama3.get_train_spec(),
        model_args={NAME: llama3.TransformerModelArgs(**model)},
        build_tokenizer_fn=None,
        build_dataloader_fn=dataloader,
        build_metrics_processor_fn=metrics_processor,
        state_dict_adapter=None,
    )


class RandomTokens(BaseDataLoader):
    """Batches of ids uniform over the vocabulary: inputs and labels, int64 [batch, seq_len] each, on the host."""

    def __init__(self, batch: int, seq_len: int, vocab_size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._batches = torch.randint(vocab_size, (BATCHES, batch, seq_len + 1), generator=generator)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        for number in itertools.cycle(range(BATCHES)):
            ids = self._batches[number]
            yield {"input": ids[:, :-1].contiguous()}, ids[:, 1:].contiguous()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore: checkpoints are off."""


class Records(BaseLogger):
    """Keeps what torchtitan logs after step 1 and after every WINDOW_STEPS steps."""

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}
        """Tokens/s/GPU since the record before, by step."""
        self.first_step_time = 0.0

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if not self.rates:
            self.first_step_time = time.time()
        self.rates[step] = metrics["throughput(tps)"]


def report(**fields: Any) -> None:
    """One line of JSON in one write, so that no other rank's output falls into it."""
    sys.stdout.write("\n" + json.dumps({"program": RIVAL, **fields}) + "\n")
    sys.stdout.flush()


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    sys.exit(main())
