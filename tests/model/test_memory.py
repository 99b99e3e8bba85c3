"""The memory estimate: held against a measurement, and against what each layout divides."""

import subprocess
import sys

import pytest

from harness.config.layout import layout
from harness.config.schema import ActivationCheckpoint, RootConfig
from harness.model.memory import Choice, choose, memory_parts
from harness.parallel.timetable import timetable
from tests.config.configs import config

NONE, SELECTIVE, FULL = ActivationCheckpoint.none, ActivationCheckpoint.selective, ActivationCheckpoint.full
WEIGHTS = 3_075_098_624
EIGHT = ["parallel.dp_shard=8", "train.global_batch_size=24"]
"""One micro batch of 3 sequences on each of 8 GPUs."""


def smol(*overrides: str) -> RootConfig:
    return config("smol3b_1node", *overrides)


def parts(
    *overrides: str, mode: ActivationCheckpoint = NONE, reshard: bool = False, base: list[str] = EIGHT
) -> dict[str, int]:
    return memory_parts(smol(*base, *overrides), activation_checkpoint=mode, reshard_after_forward=reshard)


@pytest.mark.parametrize(("sequences", "measured"), [(4, 103.2e9), (6, 131.8e9)])
def test_one_gpu_as_measured(sequences: int, measured: float) -> None:
    """SmolLM3-3B on one H200, sequences of 4096, nothing recomputed."""
    one = ["cluster.gpus_per_node=1", "parallel.dp_shard=1"]
    batch = [f"train.micro_batch_size={sequences}", f"train.global_batch_size={sequences}"]
    assert sum(parts(base=[*one, *batch]).values()) == pytest.approx(measured, rel=0.04)


@pytest.mark.parametrize(("sequences", "measured"), [(4, 96.4e9), (6, 113.9e9)])
def test_fp8_on_one_gpu_as_measured(sequences: int, measured: float) -> None:
    """The same in FP8 with tensorwise scales."""
    one = ["cluster.gpus_per_node=1", "parallel.dp_shard=1", "train.precision=fp8", "train.fp8_recipe=tensorwise"]
    batch = [f"train.micro_batch_size={sequences}", f"train.global_batch_size={sequences}"]
    assert sum(parts(base=[*one, *batch]).values()) == pytest.approx(measured, rel=0.06)


def test_weights_gradients_and_moments_are_sharded() -> None:
    eight = parts()
    assert eight["weights"] * 8 == 4 * WEIGHTS
    assert eight["optimizer"] == 2 * eight["weights"] == 2 * eight["gradients"]
    replicated = parts("parallel.dp_shard=1", "parallel.dp_replicate=8")
    assert replicated["weights"] == 8 * eight["weights"] == 4 * WEIGHTS
    assert replicated["activations"] == eight["activations"]


def test_context_parallel_ranks_shard_the_weights_too() -> None:
    eight, cp = parts(), parts("parallel.dp_shard=2", "parallel.cp=4", "train.global_batch_size=6")
    assert cp["weights"] == eight["weights"]
    # a quarter of the tokens, but keys and values of the whole sequence
    assert 1.0 < cp["activations"] / (eight["activations"] / 4) < 1.1


def test_tensor_parallel_divides_the_weights_and_most_activations() -> None:
    eight, tp = parts(), parts("parallel.dp_shard=4", "parallel.tp=2", "train.global_batch_size=12")
    assert tp["weights"] == eight["weights"]
    assert tp["gathered_weights"] * 2 == eight["gathered_weights"]
    assert 1.0 < tp["activations"] / (eight["activations"] / 2) < 1.1
    assert tp["loss"] < eight["loss"]


def test_gradients_stay_whole_only_while_they_are_summed_up() -> None:
    assert parts("train.global_batch_size=48")["gradients"] == 4 * WEIGHTS
    assert parts("train.global_batch_size=48", reshard=True)["gradients"] * 8 == 4 * WEIGHTS


def test_resharding_keeps_two_layers_and_the_root() -> None:
    kept, freed = parts()["gathered_weights"], parts(reshard=True)["gathered_weights"]
    assert kept == 2 * WEIGHTS
    layer = (WEIGHTS - 2048 - 128_256 * 2048) // 36
    assert kept - freed == 2 * 34 * layer


def test_optimizers_and_moving_average() -> None:
    adamw, muon, ema = parts(), parts("optim.name=muon"), parts("optim.ema_decay=0.999")
    matrices = 36 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 11008)
    assert adamw["optimizer"] - muon["optimizer"] == 4 * matrices // 8
    assert parts("optim.name=lamb") == adamw
    assert (adamw["ema"], ema["ema"]) == (0, ema["weights"])


def test_less_is_kept_the_more_is_recomputed() -> None:
    none, selective, full = (parts(mode=mode)["activations"] for mode in (NONE, SELECTIVE, FULL))
    assert none / 3 < selective < none / 2 and full < none / 8


PIPELINE = ["parallel.dp_shard=2", "parallel.pp=4", "train.micro_batch_size=1", "train.global_batch_size=16"]


def test_the_first_stage_of_a_pipeline_holds_most_activations() -> None:
    whole = ["parallel.dp_shard=8", "train.micro_batch_size=1", "train.global_batch_size=8"]
    # 9 layers of 4 micro batches are as much as 36 layers of one
    assert parts(base=PIPELINE)["activations"] == parts(base=whole)["activations"]
    interleaved = ["parallel.pp_schedule=interleaved", "parallel.pp_stages_per_rank=3"]
    more = parts(*interleaved, base=PIPELINE)["activations"] / parts(base=PIPELINE)["activations"]
    assert more == pytest.approx(15 / 12)  # 8 + 6 + 1 passes of 3 layers


@pytest.mark.parametrize(("stages", "batch"), [(1, 16), (3, 16), (3, 8), (3, 22), (3, 10)])
def test_activations_in_flight_are_those_of_the_timetable(stages: int, batch: int) -> None:
    shape = ["parallel.pp_schedule=interleaved"] * (stages > 1) + [f"parallel.pp_stages_per_rank={stages}"]
    small = "model.vocab_size=4096"  # a loss so small that the first rank needs most
    estimate = parts(*shape, f"train.global_batch_size={batch}", small, base=PIPELINE)["activations"]
    most = now = 0
    for tick in timetable(4, stages, batch // 2, backward=True):
        if tick[0] is not None:
            now += -1 if tick[0].backward else 1
            most = max(most, now)
    one_micro_batch = parts("train.micro_batch_size=1", "train.global_batch_size=8")["activations"]
    assert estimate == pytest.approx(one_micro_batch * most / (4 * stages), rel=1e-6)


def test_the_last_stage_counts_where_the_head_is_the_larger_part() -> None:
    shallow = ["model.num_hidden_layers=4", "train.activation_checkpoint=full"]
    last = parts(*shallow, base=PIPELINE, mode=FULL)
    layer = (WEIGHTS - 2048 - 128_256 * 2048) // 36
    assert last["loss"] > 0
    assert last["weights"] == 4 * (layer + 2048 + 128_256 * 2048) // 2, "the tied head is a copy of its own there"


def test_fp32_computes_in_four_bytes() -> None:
    assert parts("train.precision=fp32")["activations"] == 2 * parts()["activations"]
    rowwise = parts("train.precision=fp8", "train.fp8_recipe=rowwise")
    assert rowwise["activations"] == parts()["activations"]


def test_tensorwise_fp8_keeps_bytes() -> None:
    fp8, bf16 = parts("train.precision=fp8"), parts()
    assert fp8["activations"] < bf16["activations"]
    root = WEIGHTS - 36 * ((WEIGHTS - 2048 - 128_256 * 2048) // 36)
    assert fp8["gathered_weights"] - 2 * root == (bf16["gathered_weights"] - 2 * root) // 2


def chosen(gigabytes: float, *overrides: str) -> Choice:
    return choose(smol(*EIGHT, *overrides), round(gigabytes * 1e9))


def test_the_least_recomputation_that_fits_is_chosen() -> None:
    order = [(NONE, False), (NONE, True), (SELECTIVE, False), (SELECTIVE, True), (FULL, True)]
    found = []
    for gigabytes in range(100, 0, -1):
        choice = chosen(gigabytes)
        now = (choice.activation_checkpoint, choice.reshard_after_forward)
        if now not in found:
            found.append(now)
        fits = choice.estimated_bytes <= 0.92 * gigabytes * 1e9 - 2 * 2**30
        assert fits == (choice.remark is None)
    assert found == [each for each in order if each in found]
    assert found[0] == (NONE, False) and found[-1] == (FULL, True) and len(found) >= 4


def test_without_a_gpu_nothing_is_recomputed() -> None:
    choice = choose(smol(*EIGHT), None)
    assert (choice.activation_checkpoint, choice.reshard_after_forward, choice.remark) == (NONE, False, None)


def test_what_does_not_fit_says_by_how_much_and_what_would_help() -> None:
    remark = chosen(10).remark
    assert remark is not None
    for part in (
        "per GPU",
        "more than the 7.1 GB",
        "a larger parallel.dp_shard",
        "train.micro_batch_size=1",
        "parallel.tp",
    ):
        assert part in remark
    forced = chosen(10, "train.activation_checkpoint=none", "parallel.reshard_after_forward=false")
    assert (forced.activation_checkpoint, forced.reshard_after_forward) == (NONE, False)
    assert forced.remark is not None and "train.activation_checkpoint=auto" in forced.remark


def test_what_the_user_sets_is_kept() -> None:
    assert chosen(500, "train.activation_checkpoint=full").activation_checkpoint is FULL
    assert chosen(500, "parallel.reshard_after_forward=true").reshard_after_forward is True
    kept = chosen(10, "parallel.reshard_after_forward=false")
    assert (kept.activation_checkpoint, kept.reshard_after_forward) == (FULL, False)


def test_one_shard_has_nothing_to_free() -> None:
    alone = chosen(10, "parallel.dp_shard=1", "parallel.dp_replicate=8")
    assert (alone.activation_checkpoint, alone.reshard_after_forward) == (FULL, False)
    assert layout(smol(*EIGHT, "parallel.dp_shard=1", "parallel.dp_replicate=8")).shards == 1


def test_does_not_import_torch() -> None:
    code = "import sys, harness.model.memory, harness.plan, harness.config.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
