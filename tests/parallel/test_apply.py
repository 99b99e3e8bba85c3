from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.config.schema import ActivationCheckpoint, Precision, TrainConfig
from harness.model.init import init_weights
from harness.model.stage import build_stage
from harness.model.token_loss import TokenLoss
from harness.parallel.apply import compute_dtype
from harness.parallel.local import local
from harness.parallel.mesh import resolve
from harness.parallel.tensor import apply_tensor_parallel
from harness.train.build import build_model
from tests.ranks import in_ranks
from tests.tiny import VOCAB, tiny_model, tiny_run

CPU = torch.device("cpu")


def _recomputes(rank: int, world_size: int, folder: str) -> dict[str, tuple[float, torch.Tensor, int, list[str]]]:
    """Loss, one gradient, forward passes of a layer and names of the weights, with and without recomputation."""
    config = tiny_run(Path(folder, str(rank)), train__micro_batch_size=1).load_config()
    config.cluster.ranks_per_node = world_size
    found = {}
    for mode in (ActivationCheckpoint.none, ActivationCheckpoint.selective, ActivationCheckpoint.full):
        config.train.activation_checkpoint = mode
        built = build_model(config, resolve(config, world_size), CPU, rank)
        stage = built.model.stages[0]
        init_weights(stage, 0)
        calls: list[int] = []
        stage.get_submodule("lm.model.layers.0.mlp.act_fn").register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        ids = torch.randint(0, VOCAB, (1, 16), generator=torch.Generator().manual_seed(rank))
        positions = torch.arange(16)[None]
        inputs = {"x": ids, "labels": ids, "position_ids": positions, **built.attention.inputs(positions.numpy())}
        built.model.forward_backward([inputs], 1.0)
        statistics = built.model.statistics
        assert statistics is not None
        gradient = built.model.parameters["model.layers.0.mlp.up_proj.weight"].grad
        assert gradient is not None
        found[mode.value] = (statistics[0].item(), local(gradient), len(calls), list(built.model.parameters))
    return found


def test_recomputation_changes_nothing_but_the_work(tmp_path: Path) -> None:
    for found in in_ranks(_recomputes, 2, str(tmp_path)):
        loss, gradient, calls, names = found["none"]
        assert calls == 1
        for mode in ("selective", "full"):
            again = found[mode]
            assert again[0] == loss and torch.equal(again[1], gradient) and again[3] == names
            assert again[2] == 2


def test_half_precision_is_for_gpus() -> None:
    train = TrainConfig(steps=1, global_batch_size=1)
    assert compute_dtype(train, "cuda") is torch.bfloat16
    assert compute_dtype(train, "cpu") is torch.float32
    train.precision = Precision.fp8
    assert compute_dtype(train, "cuda") is torch.bfloat16
    train.precision = Precision.fp32
    assert compute_dtype(train, "cuda") is torch.float32


def test_a_plan_that_is_not_understood_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = build_stage(tiny_model(), "sdpa", range(4), TokenLoss(z_loss=0.0))
    monkeypatch.setattr(stage.lm.config, "base_model_tp_plan", {"layers.*.mlp.up_proj": "diagonal"})
    with pytest.raises(ValueError, match=r"wants diagonal for layers\.0\.mlp\.up_proj"):
        apply_tensor_parallel(stage, SimpleNamespace(size=lambda: 2))  # type: ignore[arg-type]
