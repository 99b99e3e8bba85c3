from harness.model.build import build_on_meta
from harness.optim.rules import decays, is_layer_matrix
from tests.tiny import tiny_model


def chosen(rule, tied: bool = True) -> set[str]:
    model = build_on_meta(tiny_model(tie_word_embeddings=tied), "sdpa")
    return {name for name, parameter in model.named_parameters() if rule(name, parameter)}


def test_norms_never_decay_and_embeddings_only_on_request() -> None:
    plain = chosen(lambda name, p: decays(name, p, decay_embeddings=False))
    assert "model.layers.0.mlp.up_proj.weight" in plain
    assert not [name for name in plain if "norm" in name or "embed" in name]
    assert chosen(lambda name, p: decays(name, p, decay_embeddings=True)) - plain == {"model.embed_tokens.weight"}


def test_a_head_of_its_own_decays() -> None:
    assert "lm_head.weight" in chosen(lambda name, p: decays(name, p, decay_embeddings=False), tied=False)


def test_matrices_of_layers() -> None:
    found = chosen(is_layer_matrix, tied=False)
    assert len(found) == 4 * 7  # q, k, v, o, gate, up, down
    assert all(name.startswith("model.layers.") and name.endswith("_proj.weight") for name in found)
