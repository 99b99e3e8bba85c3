"""A run small enough for tests: real token files, a model of 0.1 million parameters."""

from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.tokens.tokenizer import TokenizedFile

from harness.config.schema import ModelConfig, Precision, RootConfig, SourceConfig, StageConfig
from harness.run.folder import RunFolder

VOCAB = 256
END = 0
"""End-of-document token of the token files."""


def tiny_model(**changes: Any) -> ModelConfig:
    fields = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "no_rope_layer_interval": 4,
    }
    return ModelConfig(**{**fields, **changes})


def write_tokens(folder: Path, documents: int = 400) -> Path:
    """A folder with one file written by datatrove: sequences that a model can learn."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    file = TokenizedFile(str(folder), "000.ds", token_size=2)
    for _ in range(documents):
        start, length = int(draw.integers(1, VOCAB)), int(draw.integers(4, 60))
        file.write([*((start + 3 * i) % (VOCAB - 1) + 1 for i in range(length)), END], None)
    file.close()
    return folder


def tiny_run(root: Path, *, steps: int = 8, name: str = "run", data: Path | None = None, **changes: Any) -> RunFolder:
    """A run folder with a config, as the launcher would leave it. `changes`: dotted keys with `__` for the dot."""
    config = RootConfig()
    config.run.name, config.runs_dir = name, str(root)
    config.model = tiny_model()
    source = data if data is not None else root / "tokens"
    if not source.exists():
        write_tokens(source)
    config.data.sources = {"web": SourceConfig(path=str(source))}
    config.data.stages = [StageConfig(weights={"web": 1.0})]
    config.data.seq_len, config.data.eos_token_id = 64, END
    config.train.steps, config.train.micro_batch_size, config.train.global_batch_size = steps, 2, 8
    config.train.precision = Precision.fp32
    config.optim.lr, config.schedule.warmup_steps = 1e-2, 2
    config.checkpoint.every_steps = 3
    config.monitor.targets_dir = str(root / "targets")
    for key, value in changes.items():
        section, field = key.split("__")
        setattr(getattr(config, section), field, value)
    run = RunFolder(root / name)
    run.create()
    run.save_config(config)
    return run


def losses(run: RunFolder) -> dict[int, float]:
    """Step -> loss as metrics.jsonl has it; fails where a step stands there twice."""
    lines = run.metrics()
    found = {line["step"]: line["loss"] for line in lines}
    assert len(found) == len(lines), "a step is in metrics.jsonl twice"
    return found
