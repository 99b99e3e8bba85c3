import pytest
import torch
import torch.distributed as dist

from harness.model.build import build_on_meta
from harness.optim.statistics import group_of, module_statistics
from tests.optim.network import named_parameters, set_gradients
from tests.ranks import in_ranks
from tests.tiny import tiny_model


def statistics(layout: str, ranks: int) -> dict[str, list[float]]:
    parameters = named_parameters(layout)
    set_gradients(parameters, 1)
    groups, squares = module_statistics(parameters, ranks)
    if ranks > 1:
        dist.all_reduce(squares)
    return dict(zip(groups, squares.tolist(), strict=True))


def in_layout(rank: int, world_size: int, layout: str) -> dict[str, list[float]]:
    return statistics(layout, world_size)


def test_squares_by_part_of_the_network() -> None:
    parameters = named_parameters()
    set_gradients(parameters, 1)
    mlp = [p for name, p in parameters.items() if ".1.mlp." in name]
    expected = [sum(t.double().square().sum().item() for t in ts) for ts in ([p.grad for p in mlp], mlp)]
    found = statistics("whole", 1)
    assert found["layers.1.mlp"] == pytest.approx(expected, rel=1e-6)
    assert sum(squares[1] for squares in found.values()) == pytest.approx(
        sum(p.double().square().sum().item() for p in parameters.values()), rel=1e-6
    )


def test_shares_add_up_in_every_layout() -> None:
    alone = statistics("whole", 1)
    for of_rank in in_ranks(in_layout, 4, "fsdp x tp"):
        assert of_rank.keys() == alone.keys()
        for group, squares in alone.items():
            assert of_rank[group] == pytest.approx(squares, rel=1e-6)


@pytest.mark.parametrize("model_type", ["smollm3", "llama", "qwen3"])
def test_every_parameter_has_its_place(model_type: str) -> None:
    interval = 4 if model_type == "smollm3" else 0
    config = tiny_model(model_type=model_type, tie_word_embeddings=False, no_rope_layer_interval=interval)
    groups = {group_of(name) for name, _ in build_on_meta(config, "sdpa").named_parameters()}
    of_layers = {f"layers.{n}.{kind}" for n in range(4) for kind in ("attention", "mlp", "norms")}
    assert groups == {"embedding", "head", "norm"} | of_layers
    assert group_of("model.layers.3.self_attn.q_norm.weight") == "layers.3.norms"
    assert group_of("model.rotary.scale") == "other"


def test_without_gradients_or_parameters() -> None:
    groups, squares = module_statistics({"lm_head.weight": torch.nn.Parameter(torch.ones(2, 2))}, 1)
    assert (groups, squares.tolist()) == (["head"], [[0.0, 4.0]])
    groups, squares = module_statistics({}, 1)
    assert (groups, squares.shape) == ([], (0, 2))
