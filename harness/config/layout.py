"""What follows from the config by arithmetic alone: ranks, the size of each parallel dimension, the batch."""

from dataclasses import dataclass

from harness.config.schema import PipelineSchedule, RootConfig
from harness.model.family import NO_TENSOR_PARALLEL


@dataclass(frozen=True)
class Layout:
    """How many ranks there are and how they divide the work; every number is a count.

    These are the sizes that hold: tensor parallel that the model has no plan for is already turned into FSDP. Ranks are
    ordered with pp outermost, then dp_replicate, dp_shard, cp and tp: ranks that differ only in tp are neighbours.
    """

    world_size: int
    ranks_per_node: int
    pp: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int
    pp_stages: int
    """Pipeline stages of all ranks together: `pp`, times the stages of each rank in an interleaved pipeline."""
    accumulation_steps: int
    """Micro batches of one rank in one optimizer step."""
    tokens_per_step: int
    remarks: tuple[str, ...] = ()
    """Sentences for the user: where the layout is another one than the config asks for, and why."""

    @property
    def dp(self) -> int:
        """Data-parallel ranks: each reads its own samples."""
        return self.dp_replicate * self.dp_shard

    @property
    def shards(self) -> int:
        """Ranks that share one copy of the weights: context-parallel ranks shard them too."""
        return self.dp_shard * self.cp

    @property
    def pp_stages_per_rank(self) -> int:
        return self.pp_stages // self.pp

    @property
    def parallel(self) -> dict[str, int]:
        """Sizes of the parallel dimensions by name, outermost first."""
        return {name: getattr(self, name) for name in ("pp", "dp_replicate", "dp_shard", "cp", "tp")}


def ranks_per_node(config: RootConfig) -> int:
    """One rank per GPU, one on a node without, unless the user says otherwise."""
    return config.cluster.ranks_per_node or config.cluster.gpus_per_node or 1


def cpus_per_node(config: RootConfig) -> int:
    """Cores for the agent's task: the user's number, or 8 per rank with GPUs and 1 per rank without."""
    if config.cluster.cpus_per_node:
        return config.cluster.cpus_per_node
    return ranks_per_node(config) * (8 if config.cluster.gpus_per_node else 1)


def layout(config: RootConfig) -> Layout:
    """The layout of a config that `harness.config.check` has passed."""
    parallel, train = config.parallel, config.train
    world = config.cluster.nodes * ranks_per_node(config)
    tp = effective_tp(config)
    if parallel.dp_shard == -1:
        shard = world // (parallel.pp * parallel.dp_replicate * parallel.cp * tp)
    else:
        shard = parallel.dp_shard * (parallel.tp // tp)
    samples = train.micro_batch_size * parallel.dp_replicate * shard
    return Layout(
        world_size=world,
        ranks_per_node=ranks_per_node(config),
        pp=parallel.pp,
        dp_replicate=parallel.dp_replicate,
        dp_shard=shard,
        cp=parallel.cp,
        tp=tp,
        pp_stages=parallel.pp * stages_per_rank(config),
        accumulation_steps=train.global_batch_size // samples if samples else 0,
        tokens_per_step=train.global_batch_size * config.data.seq_len,
        remarks=_remarks(config, tp, shard),
    )


def effective_tp(config: RootConfig) -> int:
    """`parallel.tp`, or 1 for a model without a tensor-parallel plan, whose weights FSDP divides instead."""
    return 1 if config.model.model_type in NO_TENSOR_PARALLEL else config.parallel.tp


def replicates_weights(config: RootConfig) -> bool:
    """Whether every data-parallel rank holds all weights (`harness.parallel.replicated`) rather than FSDP2 its part of them.

    FSDP2 also serves pipelines, however few ranks there are.
    """
    shape = layout(config)
    return shape.shards == shape.pp == 1


def stages_per_rank(config: RootConfig) -> int:
    """Pipeline stages of each rank."""
    parallel = config.parallel
    interleaved = parallel.pp > 1 and parallel.pp_schedule is PipelineSchedule.interleaved
    return parallel.pp_stages_per_rank if interleaved else 1


def _remarks(config: RootConfig, tp: int, shard: int) -> tuple[str, ...]:
    if tp == config.parallel.tp:
        return ()
    family = config.model.model_type
    return (
        f"parallel.tp={config.parallel.tp}: {family} has no tensor-parallel plan ({NO_TENSOR_PARALLEL[family]}); FSDP "
        f"divides its weights instead, with tp=1 and dp_shard={shard}",
    )
