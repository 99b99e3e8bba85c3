"""A run that starts from a Hugging Face folder trains what plain transformers computes with it, in every layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from harness.data.loader import Loader
from harness.model.build import transformers_config
from harness.run.folder import RunFolder
from harness.train.setup import open_data
from tests.ranks import exit_codes, start_trainers
from tests.tiny import losses, tiny_model, tiny_run

OTHERS: dict[str, Any] = {"no_rope_layer_interval": 0, "initializer_range": 0.3, "tie_word_embeddings": False}
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [float(n) for n in range(1, 9)], "factor": 8.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "llama3": (1, {}, {**OTHERS, "model_type": "llama", "rope_scaling": LLAMA3, "rms_norm_eps": 1e-2, "attention_bias": True}),
    "longrope, each sequence shared": (2, {"parallel__cp": 2}, {**OTHERS, "model_type": "qwen3", "rope_scaling": LONGROPE}),
    "a window, each sequence shared": (2, {"parallel__cp": 2}, {**OTHERS, "model_type": "mistral", "sliding_window": 9}),
    "windows in some layers, in a pipeline": (2, {"parallel__pp": 2}, {
        "sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"] * 2, "no_rope_layers": [0, 1, 1, 0],
        "no_rope_layer_interval": 0, "initializer_range": 0.3, "mlp_bias": True}),
}  # fmt: skip


def first_loss_by_transformers(run: RunFolder) -> float:
    """Of the first global batch, with the weights that the run starts from."""
    config = run.load_config()
    data = open_data(config)
    batch = {"global_batch_size": 8, "micro_batch_size": 8, "dp_rank": 0, "dp_size": 1, "seq_len": config.data.seq_len}
    with Loader(
        data.sources, data.order, start_step=0, eos_token_id=data.eos_token_id, document_mask=False, **batch
    ) as loader:
        (micro,) = next(loader).micro_batches
    model = AutoModelForCausalLM.from_pretrained(str(config.model.init_from), dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(micro.input_ids).long()).logits.flatten(0, 1)
    return cross_entropy(logits, torch.from_numpy(micro.labels).long().flatten()).item()


@pytest.mark.parametrize("case", CASES)
def test_the_first_loss_is_that_of_transformers(case: str, tmp_path: Path) -> None:
    ranks, changes, fields = CASES[case]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(transformers_config(tiny_model(**fields))).save_pretrained(tmp_path / "hf")
    run = tiny_run(tmp_path, steps=1, data__document_mask=False, **changes)
    config = run.load_config()
    config.model = tiny_model(**fields, init_from=str(tmp_path / "hf"))
    config.cluster.ranks_per_node = ranks
    run.save_config(config)
    assert exit_codes(start_trainers(run.path, ranks, tmp_path)) == [0] * ranks, (tmp_path / "rank-0.log").read_text()
    assert losses(run)[1] == pytest.approx(first_loss_by_transformers(run), rel=1e-5)
