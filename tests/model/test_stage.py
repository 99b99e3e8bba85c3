import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.config.schema import ModelConfig
from harness.model.build import transformers_config
from harness.model.init import init_weights
from harness.model.stage import Stage, build_stage
from harness.model.token_loss import TokenLoss
from tests.tiny import VOCAB, tiny_model

CPU = torch.device("cpu")


def stages_of(model: ModelConfig, *cuts: range) -> list[Stage]:
    stages = []
    for layers in cuts:
        last = layers.stop == model.num_hidden_layers
        stage = build_stage(model, "sdpa", layers, TokenLoss(z_loss=0.0) if last else None).to_empty(device=CPU)
        if last and layers.start == 0:
            stage.lm.tie_weights()
        init_weights(stage, 0)
        stages.append(stage)
    return stages


MODELS = {
    "smollm3": tiny_model(),
    "llama": tiny_model(model_type="llama", no_rope_layer_interval=0),
    "qwen3": tiny_model(model_type="qwen3", no_rope_layer_interval=0, tie_word_embeddings=False),
    "mistral": tiny_model(model_type="mistral", no_rope_layer_interval=0),
    "olmo2": tiny_model(model_type="olmo2", no_rope_layer_interval=0, tie_word_embeddings=False),
}


@pytest.mark.parametrize("model_type", MODELS)
def test_whole_and_in_two_it_is_the_model_of_transformers(model_type: str) -> None:
    model = MODELS[model_type]
    (whole,) = stages_of(model, range(4))
    first, second = stages_of(model, range(3), range(3, 4))
    ids = torch.randint(0, VOCAB, (2, 30), generator=torch.Generator().manual_seed(1))
    labels, positions = ids[:, 1:], torch.arange(29).expand(2, 29)
    theirs = AutoModelForCausalLM.from_config(transformers_config(model), attn_implementation="eager")
    missing = theirs.load_state_dict(whole.weights(), strict=False)
    assert not missing.unexpected_keys and missing.missing_keys == ["lm_head.weight"] * model.tie_word_embeddings
    expected = 2 * 29 * theirs(input_ids=ids, labels=ids).loss
    found = whole(ids[:, :-1], position_ids=positions, labels=labels)
    assert found.shape == (1,) and found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    hidden = first(ids[:, :-1], position_ids=positions)
    assert hidden.shape == (2, 29, model.hidden_size)
    assert second(hidden, position_ids=positions, labels=labels).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_stages_hold_the_whole_models_weights_under_its_names(tied: bool) -> None:
    (whole,) = stages_of(tiny_model(tie_word_embeddings=tied), range(4))
    stages = stages_of(tiny_model(tie_word_embeddings=tied), range(2), range(2, 3), range(3, 4))
    names = [list(stage.weights()) for stage in stages]
    assert set().union(*names) == set(whole.weights())
    assert ("lm_head.weight" in whole.weights()) is not tied
    both = set(names[0]) & set(names[2])
    assert both == ({"model.embed_tokens.weight"} if tied else set())
    for stage in stages:
        assert all(torch.equal(value, whole.weights()[name]) for name, value in stage.weights().items())
    assert not [name for name in names[1] if not name.startswith("model.layers.2.")]
