"""Ways to divide a step over the GPUs, at the same tokens for all of them together."""

from dataclasses import dataclass, fields

FSDP = "FSDP"


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel dimensions, as in the config. FSDP takes all GPUs that are left."""

    dp_replicate: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1

    def dp_shard(self, gpus: int) -> int:
        """GPUs that share one copy of the weights by FSDP."""
        return max(1, gpus) // (self.dp_replicate * self.cp * self.tp * self.pp)

    def name(self, gpus: int) -> str:
        """`FSDP` for FSDP over all GPUs, otherwise the sizes above one."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        if all(size == 1 for size in own.values()):
            return FSDP
        sizes = {"dp_replicate": own.pop("dp_replicate"), "dp_shard": self.dp_shard(gpus), **own}
        return ", ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)

    def overrides(self, micro_batch: int, gpus: int) -> list[str]:
        """For `harness.launch`: a step of `micro_batch` sequences for each GPU, however they are shared.

        Tensor parallel takes the micro batches of its ranks at once: what is narrower in each matrix is longer in tokens.
        Context parallel takes them one after the other, since a sequence's length is what it is for; a pipeline too,
        which has nothing to overlap otherwise.
        """
        return [
            *(f"parallel.{field.name}={getattr(self, field.name)}" for field in fields(self)),
            f"train.micro_batch_size={micro_batch * self.tp}",
            f"train.global_batch_size={micro_batch * max(1, gpus)}",
        ]


def parse_layout(text: str, gpus: int) -> Layout:
    """`tp=2,cp=2` for that many GPUs. Raises ValueError that says what is wrong."""
    known = ["dp_shard", *(field.name for field in fields(Layout))]
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in known or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"{part.strip()!r}: write NAME=SIZE once for each of {', '.join(known)}; sizes of at least 1"
            )
        sizes[name] = int(size)
    shard = sizes.pop("dp_shard", None)
    layout = Layout(**sizes)
    if gpus % (layout.dp_replicate * layout.cp * layout.tp * layout.pp):
        raise ValueError(f"the sizes must divide --gpus {gpus}")
    if shard not in (None, layout.dp_shard(gpus)):
        raise ValueError(f"--gpus {gpus} leaves dp_shard={layout.dp_shard(gpus)}")
    return layout
