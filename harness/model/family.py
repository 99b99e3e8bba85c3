"""What follows from the shape of a model by arithmetic: parameters, FLOPs, and how far tensor parallel can divide it.

Imports no torch, so that the launcher can plan in milliseconds. A test holds the numbers against transformers' own models.
"""

from dataclasses import dataclass

from harness.config.schema import ModelConfig

MODEL_TYPES = ("smollm3", "llama", "qwen3")
FLOPS_FORMULA = "6N + 12*L*H*S"
"""FLOPs of one trained token. N: parameters that are multiplied with (all but an untied input embedding), L: layers,
H: width of the attention (heads x head_dim), S: sequence length. No discount for the causal mask, none for document masks."""

MAX_LOGITS = 2**27
"""Most logits that one rank holds at once (0.5 GiB in fp32). A micro batch with more is scored in pieces, which the
backward pass computes again."""


@dataclass(frozen=True)
class ParameterCount:
    """Number of weights; tied embeddings count once."""

    total: int
    embedding: int
    """Token embedding and, where it is not tied to it, the output head."""

    @property
    def non_embedding(self) -> int:
        return self.total - self.embedding


def head_dim(model: ModelConfig) -> int:
    """Width of one attention head."""
    return model.head_dim if model.head_dim is not None else model.hidden_size // model.num_attention_heads


def parameters(model: ModelConfig) -> ParameterCount:
    """Exact number of parameters. Raises ValueError for a model_type that is not known here."""
    _check_type(model)
    hidden, head = model.hidden_size, head_dim(model)
    queries, keys = model.num_attention_heads * head, model.num_key_value_heads * head
    attention = 2 * hidden * queries + 2 * hidden * keys  # q and o, k and v
    if model.model_type == "qwen3":
        attention += 2 * head  # one norm over the queries, one over the keys
    layer = attention + 3 * hidden * model.intermediate_size + 2 * hidden  # gate, up, down; two norms
    embedding = model.vocab_size * hidden * (1 if model.tie_word_embeddings else 2)
    return ParameterCount(model.num_hidden_layers * layer + hidden + embedding, embedding)


def flops_per_token(model: ModelConfig, seq_len: int) -> int:
    """FLOPs to train on one token (forward and backward) by FLOPS_FORMULA."""
    count = parameters(model)
    looked_up = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    width = model.num_attention_heads * head_dim(model)
    return 6 * (count.total - looked_up) + 12 * model.num_hidden_layers * width * seq_len


def tensor_parallel_problems(model: ModelConfig, tp: int) -> list[str]:
    """Why `tp` ranks can't share each layer of this model, one sentence each; empty where they can."""
    divided = {
        "num_key_value_heads": model.num_key_value_heads,
        "num_attention_heads": model.num_attention_heads,
        "intermediate_size": model.intermediate_size,
    }
    return [f"parallel.tp={tp}: must divide model.{key}={value}" for key, value in divided.items() if value % tp]


def _check_type(model: ModelConfig) -> None:
    if model.model_type not in MODEL_TYPES:
        raise ValueError(f"model.model_type={model.model_type}: choose one of {', '.join(MODEL_TYPES)}")
