"""What follows from the config by arithmetic alone: ranks, the size of each parallel dimension, the batch."""

from dataclasses import dataclass

from harness.config.schema import RootConfig


@dataclass(frozen=True)
class Layout:
    """How many ranks there are and how they divide the work; every field is a count."""

    world_size: int
    ranks_per_node: int
    dp_replicate: int
    dp_shard: int
    tp: int
    accumulation_steps: int
    tokens_per_step: int

    @property
    def dp(self) -> int:
        """Data-parallel ranks: each reads its own samples."""
        return self.dp_replicate * self.dp_shard


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
    world = config.cluster.nodes * ranks_per_node(config)
    parallel = config.parallel
    others = parallel.dp_replicate * parallel.tp
    shard = world // others if parallel.dp_shard == -1 else parallel.dp_shard
    return Layout(
        world_size=world,
        ranks_per_node=ranks_per_node(config),
        dp_replicate=parallel.dp_replicate,
        dp_shard=shard,
        tp=parallel.tp,
        accumulation_steps=config.train.global_batch_size
        // (config.train.micro_batch_size * parallel.dp_replicate * shard),
        tokens_per_step=config.train.global_batch_size * config.data.seq_len,
    )
