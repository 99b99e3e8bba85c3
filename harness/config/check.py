"""Checks that cross the fields of one config. Each problem is a sentence: the key, its value and what would be right."""

import re
from collections.abc import Iterator
from pathlib import Path

from harness.config.check_parallel import check_parallel
from harness.config.check_reading import check_reading
from harness.config.check_sbatch import check_sbatch
from harness.config.check_training import check_training
from harness.config.layout import ranks_per_node
from harness.config.schema import ClusterKind, RootConfig, Shuffle, StageConfig, StageWhen
from harness.data.origins import is_url
from harness.model.family import MODEL_TYPES, head_dim, shape_problems

TIME = re.compile(r"(\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+|\d+-\d+:\d\d|\d+-\d+:\d\d:\d\d)", re.ASCII)


def check(config: RootConfig) -> list[str]:
    """Every problem that makes the config impossible, without looking at the machine. Empty: it can be planned."""
    return [
        *_check_ranges(config),
        *_check_cluster(config),
        *_check_model(config),
        *check_parallel(config),
        *_check_data(config),
        *check_reading(config),
        *check_training(config),
    ]


def time_limit_minutes(text: str) -> int:
    """Slurm's time formats in whole minutes, rounded up. Raises ValueError for anything else."""
    if not TIME.fullmatch(text):
        raise ValueError(f"{text} is not a time limit")
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:
        hours, minutes, seconds = (parts + [0, 0])[:3]
        minutes += int(days) * 24 * 60 + hours * 60
    elif len(parts) == 3:
        minutes, seconds = parts[0] * 60 + parts[1], parts[2]
    else:
        minutes, seconds = (parts + [0])[:2]
    return minutes + (1 if seconds else 0)


def _check_ranges(config: RootConfig) -> Iterator[str]:
    at_least_one = {
        "cluster.nodes": config.cluster.nodes,
        "cluster.ranks_per_node": ranks_per_node(config),
        "cluster.max_restarts_without_progress": config.cluster.max_restarts_without_progress,
        "train.steps": config.train.steps,
        "train.micro_batch_size": config.train.micro_batch_size,
        "train.global_batch_size": config.train.global_batch_size,
        "train.log_every": config.train.log_every,
        "train.max_nonfinite": config.train.max_nonfinite,
        "train.eval_sequences": config.train.eval_sequences,
        "data.seq_len": config.data.seq_len,
        "data.stage_threads": config.data.stage_threads,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep": 1 if config.checkpoint.keep is None else config.checkpoint.keep,
        "model.hidden_size": config.model.hidden_size,
        "model.intermediate_size": config.model.intermediate_size,
        "model.num_hidden_layers": config.model.num_hidden_layers,
        "model.num_attention_heads": config.model.num_attention_heads,
        "model.num_key_value_heads": config.model.num_key_value_heads,
        "model.head_dim": 1 if config.model.head_dim is None else config.model.head_dim,
        "model.vocab_size": config.model.vocab_size,
    }
    for key, value in at_least_one.items():
        if value < 1:
            yield f"{key}={value}: must be at least 1"
    not_negative = {
        "cluster.gpus_per_node": config.cluster.gpus_per_node,
        "optim.lr": config.optim.lr,
        "optim.weight_decay": config.optim.weight_decay,
        "optim.eps": config.optim.eps,
        "optim.clip_grad_norm": config.optim.clip_grad_norm,
        "train.z_loss": config.train.z_loss,
        "train.stats_every": config.train.stats_every,
        "train.eval_every": config.train.eval_every,
        "train.early_stop_evals": config.train.early_stop_evals,
        "schedule.warmup_steps": config.schedule.warmup_steps,
        "data.stage_keep_free_bytes": config.data.stage_keep_free_bytes or 0,
        "monitor.port": config.monitor.port,
        "monitor.canary_seconds": config.monitor.canary_seconds,
    }
    for key, seconds in (
        ("cluster.hang_seconds", config.cluster.hang_seconds),
        ("cluster.planned_hang_seconds", config.cluster.planned_hang_seconds),
    ):
        if not seconds > 0:
            yield f"{key}={seconds}: must be positive"
    for key, number in not_negative.items():
        if not 0 <= number < float("inf"):
            yield f"{key}={number}: must be finite and not negative"
    if config.monitor.port > 65535:
        yield f"monitor.port={config.monitor.port}: ports end at 65535; 0 takes any free one"
    expected = config.monitor.expected_tokens_per_second
    if expected is not None and expected <= 0:
        yield f"monitor.expected_tokens_per_second={expected}: must be positive, or null to let the run calibrate itself"


def _check_cluster(config: RootConfig) -> Iterator[str]:
    cluster = config.cluster
    ranks = ranks_per_node(config)
    if cluster.gpus_per_node and ranks != cluster.gpus_per_node:
        yield (
            f"cluster.ranks_per_node={ranks}: with cluster.gpus_per_node={cluster.gpus_per_node} there is one rank per "
            f"GPU; leave it null or set {cluster.gpus_per_node}"
        )
    if cluster.kind is ClusterKind.local and cluster.nodes != 1:
        yield f"cluster.nodes={cluster.nodes}: cluster=local is one machine; set cluster.nodes=1 or cluster=slurm"
    if cluster.spares:
        yield f"cluster.spares={cluster.spares}: spare nodes inside the allocation are not supported yet; set 0"
    if cluster.cpus_per_node is not None and cluster.cpus_per_node < ranks:
        yield f"cluster.cpus_per_node={cluster.cpus_per_node}: fewer cores than the {ranks} ranks; set {ranks} or more, or null"
    if not TIME.fullmatch(cluster.time):
        yield f"cluster.time={cluster.time}: write minutes, HH:MM:SS or D-HH:MM:SS"
    elif time_limit_minutes(cluster.time) * 60 <= cluster.signal_delay_seconds:
        yield (
            f"cluster.time={cluster.time}: not longer than cluster.signal_delay_seconds={cluster.signal_delay_seconds}, "
            "so the run would save and stop at once; lengthen the one or shorten the other"
        )
    yield from check_sbatch(cluster)


def _check_model(config: RootConfig) -> Iterator[str]:
    model = config.model
    if model.model_type not in MODEL_TYPES:
        yield f"model.model_type={model.model_type}: choose one of {', '.join(MODEL_TYPES)}"
    if model.num_key_value_heads > 0 and model.num_attention_heads % model.num_key_value_heads:
        yield (
            f"model.num_key_value_heads={model.num_key_value_heads}: must divide "
            f"model.num_attention_heads={model.num_attention_heads}"
        )
    if model.head_dim is None and model.num_attention_heads > 0 and model.hidden_size % model.num_attention_heads:
        yield (
            f"model.num_attention_heads={model.num_attention_heads}: must divide model.hidden_size={model.hidden_size}, "
            "or set model.head_dim"
        )
    elif model.num_attention_heads > 0 and head_dim(model) % 2:
        yield f"model.head_dim={head_dim(model)}: must be even, since rotary positions turn pairs of numbers"
    if model.num_attention_heads > 0:
        yield from shape_problems(model)
    if model.init_from_changes and model.init_from is None:
        yield (
            f"model.init_from_changes={model.init_from_changes}: the run starts from random weights; set model.init_from, or "
            "leave it out"
        )
    if config.data.seq_len > model.max_position_embeddings:
        yield (
            f"data.seq_len={config.data.seq_len}: longer than "
            f"model.max_position_embeddings={model.max_position_embeddings}; shorten the one or raise the other"
        )


def _check_staging(config: RootConfig) -> Iterator[str]:
    data = config.data
    if data.stage_bytes_per_second is not None and not 0 < data.stage_bytes_per_second < float("inf"):
        yield f"data.stage_bytes_per_second={data.stage_bytes_per_second}: must be positive, or null for no limit"
    copied_first = data.stage_to is not None and data.stage_when is StageWhen.before
    for name, source in data.sources.items():
        if is_url(source.path) and not copied_first:
            yield (
                f"data.sources.{name}.path={source.path}: training reads files, not objects; set data.stage_to to a folder on the "
                "nodes' own disks, with data.stage_when=before"
            )
    for name, source in data.validation.items():
        if is_url(source.path):
            yield f"data.validation.{name}.path={source.path}: held-out files are not staged; give a folder that every node sees"
    if data.stage_to is None:
        return
    if not data.stage_to:
        yield "data.stage_to is empty: give a folder on the nodes' own disks, or null"
        return
    target = Path(data.stage_to).expanduser().absolute()
    for name, source in data.sources.items():
        place = Path(source.path).expanduser().absolute()
        folder = place.parent if place.suffix == ".ds" else place
        if source.path and not is_url(source.path) and target.is_relative_to(folder):
            yield (
                f"data.stage_to={data.stage_to}: lies in data.sources.{name}.path={source.path}, which is to be copied; give a "
                "folder on another disk, or null"
            )


def _check_data(config: RootConfig) -> Iterator[str]:
    data = config.data
    yield from _check_staging(config)
    if data.shuffle is Shuffle.blocks:
        for key, value in (("shuffle_block", data.shuffle_block), ("shuffle_group", data.shuffle_group)):
            if value < 1:
                yield f"data.{key}={value}: must be at least 1"
    steps = [1, *(change.step for change in data.change_at), None]
    yield from _check_stages(config, "data.stages", data.stages, 1, steps[1])
    for index, change in enumerate(data.change_at):
        label = f"data.change_at[{index}]"
        before = data.change_at[index - 1].step if index else 1
        if change.step <= before:
            what = "that of the entry before it" if index else "for which data.stages itself can be changed"
            yield f"{label}.step={change.step}: must come after step {before}, {what}"
        yield from _check_stages(config, f"{label}.stages", change.stages, change.step, steps[index + 2])
    stages = [*data.stages, *(stage for change in data.change_at for stage in change.stages)]
    used = {source for stage in stages for source, weight in stage.weights.items() if weight > 0}
    for source in sorted(set(data.sources) - used):
        yield f"data.sources.{source} has no weight in any stage: add one, or remove the source with ~data.sources.{source}"


def _check_stages(
    config: RootConfig, label: str, stages: list[StageConfig], begin: int, following: int | None
) -> Iterator[str]:
    """Stages that are followed from step `begin` on, until the change of step `following` (None: there is none)."""
    data = config.data
    if not stages:
        advice = (
            "choose a data config (data=NAME), or give sources and stages" if begin == 1 else "give at least one stage"
        )
        yield f"{label} is empty: {advice}"
    end, reason = config.train.steps, f"train.steps={config.train.steps} goes on after it"
    if following is not None:
        end, reason = following - 1, f"the next change comes with step {following} only"
    previous = begin - 1
    for index, stage in enumerate(stages):
        name = f"{label}[{index}] ({stage.name})"
        last = index == len(stages) - 1
        if stage.until_step is None and not last:
            yield f"{name}.until_step=null: only the last stage may go on to the end"
        if stage.until_step is not None:
            if stage.until_step <= previous:
                yield f"{name}.until_step={stage.until_step}: must come after step {previous}"
            if last and stage.until_step < end:
                yield f"{name}.until_step={stage.until_step}: {reason}; set null"
            previous = stage.until_step
        unknown = sorted(set(stage.weights) - set(data.sources))
        if unknown:
            yield f"{name}.weights names {', '.join(unknown)}: no such data.sources; there are {', '.join(data.sources)}"
        negative = sorted(key for key, weight in stage.weights.items() if not 0 <= weight < float("inf"))
        if negative:
            yield f"{name}.weights of {', '.join(negative)}: must be finite and not negative"
        elif sum(stage.weights.values()) <= 0:
            yield f"{name}.weights sum to 0: give at least one source a weight"
