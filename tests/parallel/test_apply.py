from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from harness.config.schema import ActivationCheckpoint, ParallelConfig, Precision, TrainConfig
from harness.model.build import build_on_meta
from harness.model.init import init_weights
from harness.model.loss import LossModel
from harness.parallel.apply import apply_tensor_parallel, compute_dtype, parallelize
from harness.parallel.mesh import build_mesh, resolve
from tests.ranks import in_ranks
from tests.tiny import VOCAB, tiny_model


def _recomputes(rank: int, world_size: int) -> dict[str, tuple[float, int, list[str]]]:
    """Loss, forward passes of the first layer and names of the state, with and without recomputation."""
    found = {}
    for mode in ActivationCheckpoint:
        train = TrainConfig(steps=1, global_batch_size=1, activation_checkpoint=mode)
        model = LossModel(build_on_meta(tiny_model(), "sdpa"))
        parallelize(model, build_mesh(resolve(ParallelConfig(), world_size), "cpu"), train)
        model.to_empty(device="cpu")
        init_weights(model.lm, 0)
        calls: list[int] = []
        model.lm.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        ids = torch.randint(0, VOCAB, (1, 16), generator=torch.Generator().manual_seed(rank))
        loss = model(ids, ids, torch.arange(16)[None])
        loss.backward()
        found[mode.value] = (loss.item(), len(calls), sorted(get_model_state_dict(model.lm)))
    return found


def test_recomputation_changes_nothing_but_the_work() -> None:
    for found in in_ranks(_recomputes, 2):
        kept, recomputed = found["none"], found["full"]
        assert kept[0] == recomputed[0] and kept[2] == recomputed[2]
        assert (kept[1], recomputed[1]) == (1, 2)


def test_half_precision_is_for_gpus() -> None:
    train = TrainConfig(steps=1, global_batch_size=1)
    assert compute_dtype(train, "cuda") is torch.bfloat16
    assert compute_dtype(train, "cpu") is torch.float32
    train.precision = Precision.fp8
    with pytest.raises(ValueError, match=r"train\.precision=fp8"):
        compute_dtype(train, "cuda")


def test_a_plan_that_is_not_understood_is_refused() -> None:
    lm = build_on_meta(tiny_model(), "sdpa")
    lm.config.base_model_tp_plan = {"layers.*.mlp.up_proj": "diagonal"}
    with pytest.raises(ValueError, match=r"wants diagonal for layers\.0\.mlp\.up_proj"):
        apply_tensor_parallel(lm, SimpleNamespace(size=lambda: 2))  # type: ignore[arg-type]
