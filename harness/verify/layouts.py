"""Which layouts are verified, and in how many processes. Imports no torch."""

from dataclasses import dataclass, replace

from harness.config.layout import layout
from harness.config.schema import ParallelConfig, PipelineSchedule, RootConfig
from harness.model.family import NO_TENSOR_PARALLEL, tensor_parallel_divides
from harness.verify.errors import VerifyError

MOST_PROCESSES = 32
"""More than that are not started on one machine."""


@dataclass(frozen=True)
class Case:
    """A layout to verify."""

    name: str
    parallel: ParallelConfig
    """With every size given: no dp_shard=-1."""

    @property
    def ranks(self) -> int:
        sizes = self.parallel
        return sizes.pp * sizes.dp_replicate * sizes.dp_shard * sizes.cp * sizes.tp


def _case(name: str, **sizes: int | PipelineSchedule) -> Case:
    return Case(name, ParallelConfig(**{"dp_shard": 1, **sizes}))  # type: ignore[arg-type]


ALONE = _case("1")
STANDARD = (
    ALONE,
    _case("dp_replicate 2", dp_replicate=2),
    _case("dp_shard 2", dp_shard=2),
    _case("hsdp 2 x 2", dp_replicate=2, dp_shard=2),
    _case("tp 2", tp=2),
    _case("dp_shard 2 x tp 2", dp_shard=2, tp=2),
    _case("pp 2", pp=2),
    _case("pp 2 interleaved", pp=2, pp_schedule=PipelineSchedule.interleaved),
    _case("pp 2 x dp_shard 2", pp=2, dp_shard=2),
    _case("cp 2", cp=2),
    _case("dp_shard 2 x cp 2", dp_shard=2, cp=2),
    _case("tp 2 x cp 2", tp=2, cp=2),
    _case("tp 2 x pp 2", tp=2, pp=2),
)
"""What `--all` verifies: everything that fits on four processes."""


def own_layout(config: RootConfig) -> Case:
    """The config's layout as it is."""
    sizes = layout(config).parallel
    return _named(replace(config.parallel, **sizes))  # type: ignore[arg-type]


def small_layout(config: RootConfig) -> Case:
    """The config's layout with every size above one as two (an odd tp stays: two might not divide the heads)."""
    sizes = {
        name: size if name == "tp" and size % 2 else min(size, 2) for name, size in layout(config).parallel.items()
    }
    return _named(replace(config.parallel, pp_stages_per_rank=2, **sizes))  # type: ignore[arg-type]


def layout_for(config: RootConfig, ranks: int) -> Case:
    """The config's layout where it has `ranks` ranks, else a small one whose dp_shard takes what is left of them.

    Raises VerifyError where that does not come out even.
    """
    own, small = own_layout(config), small_layout(config)
    if own.ranks == ranks:
        return own
    if ranks % small.ranks:
        raise VerifyError(
            f"{ranks} ranks were started, and {small.name} (the layout of the config in small) needs a multiple of "
            f"{small.ranks}; for the config's own layout start {own.ranks}"
        )
    return _named(replace(small.parallel, dp_shard=small.parallel.dp_shard * (ranks // small.ranks)))


def impossible(config: RootConfig, case: Case) -> str | None:
    """Why the config's model can't be divided like that, or None."""
    if case.parallel.tp > 1 and config.model.model_type in NO_TENSOR_PARALLEL:
        return f"{config.model.model_type} has no tensor-parallel plan ({NO_TENSOR_PARALLEL[config.model.model_type]})"
    for key, value in tensor_parallel_divides(config.model).items():
        if value % case.parallel.tp:
            return f"parallel.tp={case.parallel.tp} does not divide {key}={value}"
    return None


def _named(parallel: ParallelConfig) -> Case:
    names = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
    sizes = {name: f"{name} {getattr(parallel, name)}" for name in names if getattr(parallel, name) > 1}
    if "pp" in sizes and parallel.pp_schedule is PipelineSchedule.interleaved:
        sizes["pp"] += " interleaved"
    return Case(" x ".join(sizes.values()) or "1", parallel)
