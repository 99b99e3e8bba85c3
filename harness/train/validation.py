"""The loss on held-out text: what each rank reads for it, and when it has stopped falling."""

import math
from collections.abc import Iterable, Iterator

from harness.config.schema import RootConfig
from harness.data.errors import DataError
from harness.data.held_out import HeldOutOrder, shared_paths
from harness.data.loader import NO_TARGET, Loader, MicroBatch, StepBatch
from harness.data.read_settings import ReadSettings
from harness.data.windows import open_sources

KEEP_BYTES = 256 * 2**20
"""A rank whose share of the sequences is no larger reads it once and keeps it."""
_BYTES_PER_TOKEN = 3 * 4


class Validation:
    """The first `train.eval_sequences` held-out sequences: always the same ones, shared out to the data-parallel ranks.

    Raises DataError that names keys where `data.validation` can't be read, holds too little, or is trained on.
    """

    def __init__(self, config: RootConfig, eos_token_id: int | None, *, micro_batches: int = 1) -> None:
        """`micro_batches` in each list of `batches`: a pipeline's schedule wants a fixed number."""
        data, train = config.data, config.train
        if shared := shared_paths(data.sources, data.validation):
            raise DataError("\n".join(shared))
        paths = [(name, source.path) for name, source in data.validation.items()]
        self._config = config
        self._eos = eos_token_id
        self._micro_batches = micro_batches
        self._sources = open_sources(paths, data.seq_len, "validation")
        self._count = train.eval_sequences
        self._order(1)  # complains now rather than at the first validation
        self._kept: dict[tuple[int, int], list[list[MicroBatch]]] = {}

    @property
    def tokens(self) -> int:
        """Tokens that are predicted in one validation, over all ranks: what the sum of their losses is divided by."""
        return self._count * self._config.data.seq_len

    def batches(self, dp_rank: int, dp_size: int) -> Iterator[list[MicroBatch]]:
        """This rank's share, the same each time; as many lists of as many micro batches on every rank.

        Where ranks and micro batches do not divide the sequences, what fills the last ones up has labels `NO_TARGET`.
        Raises DataError where a file can no longer be read.
        """
        kept = self._kept.get((dp_rank, dp_size))
        if kept is None:
            if self._share(dp_size) * self._config.data.seq_len * _BYTES_PER_TOKEN > KEEP_BYTES:
                yield from self._read(dp_rank, dp_size)
                return
            kept = []
            for micro_batches in self._read(dp_rank, dp_size):  # handed on as they come, so that progress shows
                kept.append(micro_batches)
                yield micro_batches
            self._kept[dp_rank, dp_size] = kept
            return
        yield from kept

    def _per_list(self) -> int:
        """Sequences in one list of one rank."""
        return self._config.train.micro_batch_size * self._micro_batches

    def _lists(self, dp_size: int) -> int:
        return -(-self._count // (self._per_list() * dp_size))

    def _share(self, dp_size: int) -> int:
        """Sequences of one rank, with those that fill up."""
        return self._lists(dp_size) * self._per_list()

    def _order(self, dp_size: int) -> HeldOutOrder:
        data = self._config.data
        return HeldOutOrder(
            self._sources,
            count=self._count,
            seed=data.seed,
            seq_len=data.seq_len,
            global_batch_size=self._per_list() * dp_size,
        )

    def _read(self, dp_rank: int, dp_size: int) -> Iterator[list[MicroBatch]]:
        data, order = self._config.data, self._order(dp_size)
        with Loader(
            self._sources,
            order,
            global_batch_size=order.global_batch_size,
            micro_batch_size=self._config.train.micro_batch_size,
            dp_rank=dp_rank,
            dp_size=dp_size,
            start_step=0,
            stop_step=self._lists(dp_size),
            seq_len=data.seq_len,
            eos_token_id=self._eos,
            document_mask=data.document_mask,
            vocab_size=self._config.model.vocab_size,
            reading=ReadSettings.of(data, data.validation),
        ) as loader:
            for batch in loader:
                yield self._masked(batch)

    def _masked(self, batch: StepBatch) -> list[MicroBatch]:
        """The batch's micro batches, without the targets of what only fills up."""
        samples = batch.samples.reshape(len(batch.micro_batches), -1)
        for micro, numbers in zip(batch.micro_batches, samples, strict=True):
            micro.labels[numbers >= self._count] = NO_TARGET
        return batch.micro_batches


class EarlyStop:
    """Counts validations without a new lowest loss. All it knows follows from the losses so far, in order."""

    def __init__(self, patience: int, losses: Iterable[float | None] = ()) -> None:
        """`patience`: `train.early_stop_evals`; 0 never stops. `losses`: of earlier validations, as the run's folder has them."""
        self._patience = patience
        self.best = math.inf
        self.bad_count = 0
        for loss in losses:
            self.seen(loss)

    def seen(self, loss: float | None) -> bool:
        """Count a validation (one that is not finite is no new low); whether the run should end now."""
        if loss is not None and loss < self.best:
            self.best, self.bad_count = loss, 0
        else:
            self.bad_count += 1
        return self.stops

    @property
    def stops(self) -> bool:
        """Whether the losses so far end the run."""
        return 0 < self._patience <= self.bad_count

    @property
    def why(self) -> str:
        """The reason, for people."""
        return (
            f"the validation loss has had no new low in {self.bad_count} validations; the lowest was {self.best:.4f} "
            f"(train.early_stop_evals={self._patience})"
        )
