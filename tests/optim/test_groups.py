import pytest
import torch
from torch.optim import AdamW

from harness.config.schema import OptimConfig
from harness.model.build import build_on_meta
from harness.optim.groups import build_optimizer, reset_state, set_learning_rate
from tests.tiny import tiny_model


def decaying(decay_embeddings: bool, tied: bool) -> set[str]:
    model = build_on_meta(tiny_model(tie_word_embeddings=tied), "sdpa")
    optimizer = build_optimizer(model, OptimConfig(decay_embeddings=decay_embeddings))
    ids = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0.1 for p in group["params"]}
    every = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in model.parameters())
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_norms_never_decay_and_embeddings_only_on_request() -> None:
    plain = decaying(decay_embeddings=False, tied=True)
    assert "model.layers.0.mlp.up_proj.weight" in plain
    assert not [name for name in plain if "norm" in name or "embed" in name]
    assert decaying(decay_embeddings=True, tied=True) - plain == {"model.embed_tokens.weight"}
    assert "lm_head.weight" in decaying(decay_embeddings=False, tied=False)


def test_state_made_beforehand_changes_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(5, 4, generator=draw), torch.randn(3, 5, 4, generator=draw)
    results, keys = [], []
    for prepared in (True, False):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = AdamW([parameter], lr=0.1, fused=True)
        if prepared:
            reset_state(optimizer)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        results.append(parameter.detach())
        keys.append({k: (v.shape, v.dtype) for k, v in optimizer.state[parameter].items()})
    assert torch.equal(*results) and keys[0] == keys[1]


def test_learning_rate_reaches_every_group() -> None:
    optimizer = build_optimizer(build_on_meta(tiny_model(), "sdpa"), OptimConfig())
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.name=sgd: only adamw"):
        build_optimizer(build_on_meta(tiny_model(), "sdpa"), OptimConfig(name="sgd"))
