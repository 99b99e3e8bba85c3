"""What a run will need and how long it will take, by arithmetic on its config: no torch, no GPU, no files."""

import dataclasses
import time
from dataclasses import dataclass, field

from harness.config.layout import layout
from harness.config.schema import ActivationCheckpoint, Decay, Packing, RootConfig
from harness.model.family import FLOPS_FORMULA, flops_per_token, parameters
from harness.model.memory import FP32, choose, memory_parts
from harness.model.rope_scaling import rope_remark
from harness.text import bytes_text, count_text, duration_text

LEAST_WASTE = 5e-5
"""A smaller share of the tokens is not worth a line."""


@dataclass(frozen=True)
class Plan:
    """The figures of plan.json. Sizes in bytes; None where a figure is not known rather than guessed."""

    run: str
    model_type: str
    init_from: str | None
    """Folder that the run is to start from; None: from random weights, or from its own checkpoint."""
    parameters: int
    parameters_non_embedding: int
    flops_per_token: int
    flops_formula: str
    tokens_per_step: int
    tokens_total: int
    steps: int
    nodes: int
    ranks: int
    gpus: int
    parallel: dict[str, int]
    accumulation_steps: int
    memory_per_gpu_bytes: int
    """An estimate for one rank; without a GPU, of main memory."""
    memory_parts_bytes: dict[str, int]
    activation_checkpoint: str
    """`auto`: the run decides when it sees its GPU, and the estimate above is without recomputation."""
    checkpoint_bytes: int
    checkpoints_kept_bytes: int | None
    expected_tokens_per_second: float | None
    step_seconds: float | None
    hours: float | None
    gpu_hours: float | None
    arrival: str | None
    repeats: dict[str, float] = field(default_factory=dict)
    """How often each source is read through; empty where the data can't be seen from here."""
    packing: str = Packing.chunk.value
    wasted: dict[str, float] = field(default_factory=dict)
    """Share of each source that no sample holds (`data.packing=chunk`), or of its samples that is padding (`best_fit`)."""
    warnings: list[str] = field(default_factory=list)


def make_plan(config: RootConfig, expected_tokens_per_second: float | None = None, done_steps: int = 0) -> Plan:
    """The plan of a config that `harness.config.check` has passed.

    `expected_tokens_per_second` is what an earlier attempt calibrated; the config's own value goes first. `done_steps`
    shortens the time that is left.
    """
    shape = layout(config)
    count = parameters(config.model)
    total = config.train.steps * shape.tokens_per_step
    rate = config.monitor.expected_tokens_per_second or expected_tokens_per_second
    gpus = config.cluster.nodes * config.cluster.gpus_per_node
    left = max(0, config.train.steps - done_steps) * shape.tokens_per_step
    seconds = left / rate if rate else None
    parts = _memory_parts(config)
    checkpoint = checkpoint_bytes(config)
    rope = rope_remark(config.model.rope_scaling, config.data.seq_len, config.data.document_mask)
    keep = config.checkpoint.keep
    before_decay = bool(config.schedule.decay_steps) and config.schedule.decay is not Decay.constant
    return Plan(
        run=config.run.name,
        model_type=config.model.model_type,
        init_from=None if done_steps else config.model.init_from,
        parameters=count.total,
        parameters_non_embedding=count.non_embedding,
        flops_per_token=flops_per_token(config.model, config.data.seq_len),
        flops_formula=FLOPS_FORMULA,
        tokens_per_step=shape.tokens_per_step,
        tokens_total=total,
        steps=config.train.steps,
        nodes=config.cluster.nodes,
        ranks=shape.world_size,
        gpus=gpus,
        parallel=shape.parallel,
        accumulation_steps=shape.accumulation_steps,
        memory_per_gpu_bytes=sum(parts.values()),
        memory_parts_bytes=parts,
        activation_checkpoint=config.train.activation_checkpoint.value if gpus else ActivationCheckpoint.none.value,
        checkpoint_bytes=checkpoint,
        checkpoints_kept_bytes=None if keep is None else checkpoint * (keep + 1 + before_decay),
        expected_tokens_per_second=rate,
        step_seconds=shape.tokens_per_step / rate if rate else None,
        hours=seconds / 3600 if seconds is not None else None,
        gpu_hours=seconds / 3600 * gpus if seconds is not None and gpus else None,
        arrival=time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds)) if seconds is not None else None,
        packing=config.data.packing.value,
        warnings=[*shape.remarks, *([rope] if rope else [])],
    )


def checkpoint_bytes(config: RootConfig) -> int:
    """Size of one checkpoint: the master weights, the optimizer's moments of them, and their moving average if there is one."""
    count = parameters(config.model)
    values = 3 * count.total
    if config.optim.name == "muon":
        values -= config.model.num_hidden_layers * count.layer_matrices  # one moment of these instead of two
    if config.optim.ema_decay is not None:
        values += count.total
    return values * FP32


def _memory_parts(config: RootConfig) -> dict[str, int]:
    """The estimate for what the config says, and without recomputation where that waits for the GPU."""
    first = choose(config, gpu_bytes=None)
    return memory_parts(
        config,
        activation_checkpoint=first.activation_checkpoint,
        reshard_after_forward=first.reshard_after_forward,
    )


def plan_as_dict(plan: Plan) -> dict[str, object]:
    """What plan.json holds."""
    return dataclasses.asdict(plan)


def render_plan(plan: Plan) -> str:
    """The plan as a person reads it before saying yes."""
    where = f"{plan.nodes} node{'s' * (plan.nodes > 1)}, " + (
        f"{plan.gpus} GPU{'s' * (plan.gpus > 1)}" if plan.gpus else f"{plan.ranks} CPU ranks"
    )
    layers = " x ".join(f"{name} {size}" for name, size in plan.parallel.items() if size > 1) or "one rank"
    memory = ", ".join(
        f"{name.replace('_', ' ')} {bytes_text(size)}" for name, size in plan.memory_parts_bytes.items() if size
    )
    recompute = ""
    if plan.activation_checkpoint == ActivationCheckpoint.auto:
        recompute = "; less with recomputation, which is chosen on the GPU at start"
    rows = [
        ("model", f"{plan.model_type}, {count_text(plan.parameters)} parameters ({plan.parameters:,}; {count_text(plan.parameters_non_embedding)} without embeddings)"),
        ("tokens", f"{count_text(plan.tokens_per_step)} a step x {plan.steps:,} steps = {count_text(plan.tokens_total)}"),
        ("layout", f"{where}: {layers}, {plan.accumulation_steps} micro batch{'es' * (plan.accumulation_steps > 1)} a step"),
        ("memory", f"about {bytes_text(plan.memory_per_gpu_bytes)} per {'GPU' if plan.gpus else 'rank'}: {memory}{recompute}"),
        ("checkpoint", bytes_text(plan.checkpoint_bytes) + (f"; up to {bytes_text(plan.checkpoints_kept_bytes)} on disk" if plan.checkpoints_kept_bytes else "")),
        ("speed", _speed(plan)),
        ("time", _time(plan)),
    ]  # fmt: skip
    if plan.init_from is not None:
        rows.insert(1, ("from", f"the weights and config.json of {plan.init_from}"))
    if plan.repeats:
        rows.append(
            (
                "data",
                ", ".join(f"{name} {times:.2f}x" for name, times in plan.repeats.items())
                + " read through; no window comes again before all of its source came",
            )
        )
    if wasted := [f"{name} {share:.2%}" for name, share in plan.wasted.items() if share >= LEAST_WASTE]:
        rows.append(
            ("wasted", ", ".join(wasted) + (" is padding" if plan.packing == Packing.best_fit else " is left over"))
        )
    lines = [f"  {name:<11}{text}" for name, text in rows]
    return "\n".join([f"Plan of run {plan.run}", *lines, *(f"  warning    {text}" for text in plan.warnings)])


def _speed(plan: Plan) -> str:
    if plan.expected_tokens_per_second is None:
        return "not known; the run measures it (or set monitor.expected_tokens_per_second)"
    per_gpu = f" ({plan.expected_tokens_per_second / plan.gpus:,.0f} per GPU)" if plan.gpus else ""
    return f"{plan.expected_tokens_per_second:,.0f} tokens/s expected{per_gpu}, {plan.step_seconds:.2f} s a step"


def _time(plan: Plan) -> str:
    if plan.hours is None:
        return "not known before the speed is"
    gpu_hours = f", {plan.gpu_hours:,.0f} GPU-hours" if plan.gpu_hours else ""
    return f"{duration_text(plan.hours * 3600)}{gpu_hours}; done {plan.arrival} if it started now"
