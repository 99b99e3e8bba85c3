"""How much memory a rank needs, by arithmetic, and what to recompute so that it fits. Imports no torch."""

from dataclasses import dataclass

from harness.config.layout import Layout, layout, replicates_weights
from harness.config.schema import ActivationCheckpoint, Fp8Recipe, Precision, RootConfig
from harness.model.family import MAX_LOGITS, NO_TENSOR_PARALLEL, ParameterCount, attention_widths, parameters
from harness.text import bytes_text

FP32, BF16 = 4, 2
USABLE_SHARE = 0.92
"""Of a GPU's memory: the rest goes to the gaps between allocations."""
RESERVED_BYTES = 2 << 30
"""For the CUDA context, NCCL's buffers and the work space of the matrix products."""


@dataclass(frozen=True)
class Choice:
    """What a rank recomputes and frees so that training fits its GPU."""

    activation_checkpoint: ActivationCheckpoint
    """Never `auto`."""
    reshard_after_forward: bool
    estimated_bytes: int
    remark: str | None
    """What to do where it is estimated not to fit, as a sentence for the log."""


def choose(config: RootConfig, gpu_bytes: int | None) -> Choice:
    """The least recomputation that fits `gpu_bytes` of memory; None (a CPU, or not known) recomputes nothing.

    What the config says itself is kept, whether it fits or not.
    """
    candidates = _candidates(config)
    sizes = [
        sum(memory_parts(config, activation_checkpoint=mode, reshard_after_forward=reshard).values())
        for mode, reshard in candidates
    ]
    if gpu_bytes is None:
        return Choice(*candidates[0], sizes[0], None)
    usable = round(gpu_bytes * USABLE_SHARE) - RESERVED_BYTES
    for (mode, reshard), size in zip(candidates, sizes, strict=True):
        if size <= usable:
            return Choice(mode, reshard, size, None)
    mode, reshard = candidates[-1]
    return Choice(mode, reshard, sizes[-1], _does_not_fit(config, sizes[-1], usable))


def memory_parts(
    config: RootConfig, *, activation_checkpoint: ActivationCheckpoint, reshard_after_forward: bool
) -> dict[str, int]:
    """Estimated bytes by part on the rank of a pipeline that needs most; without a pipeline all need the same.

    Master weights, gradients and optimizer state are fp32 and divided over dp_shard x cp x tp. With more than one GPU the sum
    is an upper bound: it counts all activations and all gradients, although the ones go while the others come.
    """
    shape = layout(config)
    parts = [
        _Rank(config, shape, position).parts(activation_checkpoint, reshard_after_forward)
        for position in (0, shape.pp - 1)  # those between have neither embedding nor head
    ]
    return max(parts, key=lambda each: sum(each.values()))


def _candidates(config: RootConfig) -> list[tuple[ActivationCheckpoint, bool]]:
    """What the config leaves open, from the fastest to the smallest."""
    none, selective, full = ActivationCheckpoint.none, ActivationCheckpoint.selective, ActivationCheckpoint.full
    order = [(none, False), (none, True), (selective, False), (selective, True), (full, True)]
    mode, reshard = config.train.activation_checkpoint, config.parallel.reshard_after_forward
    can_reshard = layout(config).shards > 1
    if reshard is not None or not can_reshard:
        order = [(each, bool(reshard)) for each in (none, selective, full)]
    if mode is not ActivationCheckpoint.auto:
        order = [(mode, each) for each in dict.fromkeys(each for _, each in order)]
    return order


def _does_not_fit(config: RootConfig, size: int, usable: int) -> str:
    shape = layout(config)
    helps = ["a larger parallel.dp_shard" + (" with a smaller parallel.dp_replicate" if shape.dp_replicate > 1 else "")]
    if config.train.micro_batch_size > 1:
        helps.append(f"train.micro_batch_size={config.train.micro_batch_size // 2}")
    else:
        helps.append("a larger parallel.cp")
    if config.model.model_type not in NO_TENSOR_PARALLEL:
        helps.append("a larger parallel.tp")
    chosen = config.train.activation_checkpoint
    if chosen in (ActivationCheckpoint.none, ActivationCheckpoint.selective):
        helps.insert(0, "train.activation_checkpoint=auto")
    if config.parallel.reshard_after_forward is False and shape.shards > 1:
        helps.insert(0, "parallel.reshard_after_forward=null")
    return (
        f"memory: estimated at {bytes_text(size)} per GPU, {bytes_text(size - usable)} more than the {bytes_text(usable)} "
        f"that can be used; if it runs out, try {', '.join(helps[:-1])} or {helps[-1]}"
    )


@dataclass(frozen=True)
class _Rank:
    """What the ranks at one position of the pipeline hold."""

    config: RootConfig
    shape: Layout
    position: int

    @property
    def is_last(self) -> bool:
        return self.position == self.shape.pp - 1

    @property
    def layers(self) -> int:
        return self.config.model.num_hidden_layers // self.shape.pp

    @property
    def count(self) -> ParameterCount:
        return parameters(self.config.model)

    @property
    def width(self) -> int:
        """Bytes of a value that is computed with."""
        in_fp32 = self.config.train.precision is Precision.fp32 or not self.config.cluster.gpus_per_node
        return FP32 if in_fp32 else BF16

    @property
    def in_fp8(self) -> bool:
        """Whether layers keep what their matrix products need as single bytes (`harness.fp8`)."""
        train = self.config.train
        return train.precision is Precision.fp8 and train.fp8_recipe is Fp8Recipe.tensorwise and self.width == BF16

    @property
    def root(self) -> int:
        """Weights outside of the layers, before any division: embedding, last norm, head."""
        model = self.config.model
        first, last = self.position == 0, self.is_last
        tables = 1 if first and last and model.tie_word_embeddings else first + last
        return tables * model.vocab_size * model.hidden_size + (model.hidden_size if last else 0)

    @property
    def tokens(self) -> int:
        """Of one micro batch, on this rank."""
        return self.config.train.micro_batch_size * self.config.data.seq_len // self.shape.cp

    def parts(self, mode: ActivationCheckpoint, reshard: bool) -> dict[str, int]:
        """Bytes by part."""
        config, shape = self.config, self.shape
        whole = _divided(self.root + self.layers * self.count.layer, shape.tp)
        sharded = _divided(whole, shape.shards)
        # while weights stay gathered, gradients of all micro batches are summed up before they are reduced, layer by layer
        unreduced = not reshard and shape.accumulation_steps > 1
        return {
            "weights": sharded * FP32,
            "gradients": self._gradients(whole, sharded, unreduced, mode),
            "optimizer": self._optimizer_values(sharded) * FP32,
            "ema": 0 if config.optim.ema_decay is None else sharded * FP32,
            "gathered_weights": self._gathered(reshard) * self.width,
            "activations": round(self._activations(mode) * self.tokens) * self.width,
            "loss": self._loss() if self.is_last else 0,
        }

    def _gradients(self, whole: int, sharded: int, unreduced: bool, mode: ActivationCheckpoint) -> int:
        """Bytes on top of the rest. Where weights are replicated and each step is one micro batch, gradients are neither
        copied nor summed: they take the places of the activations that they free."""
        shape = self.shape
        if replicates_weights(self.config) and shape.accumulation_steps == shape.dp_replicate == 1:
            if self.in_fp8:  # what it frees is too small for them
                return whole * self.width
            return max(0, whole * self.width - round(self._activations(mode) * self.tokens) * self.width)
        return (whole if unreduced else sharded) * FP32

    def _optimizer_values(self, sharded: int) -> int:
        """Two moments of each weight; Muon keeps one of the layers' matrices."""
        if self.config.optim.name != "muon":
            return 2 * sharded
        matrices = self.layers * self.count.layer_matrices
        return 2 * sharded - _divided(matrices, self.shape.tp * self.shape.shards)

    def _gathered(self, reshard: bool) -> int:
        """Weights in the type that is computed with; with resharding the root's, one layer's and the next one's."""
        if self.width == FP32 and self.shape.shards * self.shape.dp_replicate == 1:
            return 0  # the master weights themselves
        layers = (min(2, self.layers) if reshard else self.layers) * self.count.layer
        return _divided(self.root + (layers // 2 if self.in_fp8 else layers), self.shape.tp)

    def _activations(self, mode: ActivationCheckpoint) -> float:
        """Values per token that wait for the backward pass, over all layers and micro batches in flight."""
        layer = self._layer_values()
        if mode is ActivationCheckpoint.none:
            return layer * self.layers * self._in_flight()
        kept = self._selected_values() if mode is ActivationCheckpoint.selective else self._hidden / self.shape.tp
        return kept * self.layers * self._in_flight() + layer  # one layer at a time is computed again

    def _in_flight(self) -> float:
        """Micro batches whose activations the rank keeps at once, in units of all its layers."""
        shape = self.shape
        after = shape.pp - 1 - self.position
        each, micro_batches = shape.pp_stages_per_rank, shape.accumulation_steps
        if each == 1:
            return min(after + 1, micro_batches)
        # forward passes of single stages before the first backward pass: a round of micro batches through all stages but
        # one, then as many more as the ranks behind are late
        longest_round = _divided(micro_batches, max(1, micro_batches // shape.pp))
        return min((each - 1) * longest_round + 2 * after + 1, each * micro_batches) / each

    @property
    def _hidden(self) -> int:
        return self.config.model.hidden_size

    def _layer_values(self) -> float:
        """Values per token that a layer keeps if nothing is recomputed.

        Two residuals, two norms' results, queries, keys, values, attention's result, and gate, up and their product.
        Matrix products that share out their weight's columns keep their input whole, context parallel the keys and values
        of the whole sequence.
        """
        queries, keys = attention_widths(self.config.model)
        if self.in_fp8:  # products keep their inputs as bytes, and that of the last one not at all
            kept = 2 * self._hidden + 2 * queries + 2 * keys * self.shape.cp + 2 * self.config.model.intermediate_size
            return kept + (2 * self._hidden + queries) / 2
        shared = 2 * self._hidden + 2 * queries + 2 * keys * self.shape.cp + 3 * self.config.model.intermediate_size
        return shared / self.shape.tp + 2 * self._hidden

    def _selected_values(self) -> float:
        """The same with selective recomputation: the layer's input, attention's result and every second matrix product
        (queries, values, gate, down); with tensor parallel also what communication has brought: two gathered inputs and
        two scattered sums."""
        queries, keys = attention_widths(self.config.model)
        if self.in_fp8:  # the layer's input, attention's result, and what the products take, either way round
            return 3 * self._hidden + 2 * queries + self.config.model.intermediate_size / 2
        values = (2 * self._hidden + 2 * queries + keys + self.config.model.intermediate_size) / self.shape.tp
        if self.shape.tp > 1:
            values += 2 * self._hidden + 2 * self._hidden / self.shape.tp
        if self.shape.cp > 1:
            values += 2 * keys * self.shape.cp / self.shape.tp
        return values

    def _loss(self) -> int:
        """A piece of the logits, twice; the gradient of the hidden states, twice; and the head's gradient, which is summed up
        in fp32 and then rounded."""
        model, tp = self.config.model, self.shape.tp
        logits = _divided(min(self.tokens * model.vocab_size, MAX_LOGITS * tp), tp)
        head = _divided(model.vocab_size, tp) * model.hidden_size
        return 2 * (logits + self.tokens * model.hidden_size) * self.width + head * (FP32 + self.width)


def _divided(number: int, ranks: int) -> int:
    """The largest share."""
    return -(-number // ranks)
