"""What follows from the shape of a model by arithmetic: parameters, FLOPs, and how far tensor parallel can divide it.

Imports no torch, so that the launcher can plan in milliseconds. A test holds the numbers against transformers' own models.
"""

from dataclasses import dataclass

from harness.config.schema import ModelConfig

MODEL_TYPES = ("smollm3", "llama", "qwen3", "mistral", "olmo2")

NO_TENSOR_PARALLEL = {"olmo2": "its norms of queries and keys span all heads"}
"""Model types whose layers can't be shared between tensor-parallel ranks, with the reason."""

FLOPS_FORMULA = "6N + 12*L*H*S"
"""FLOPs of one trained token. N: parameters that are multiplied with (all but an untied input embedding), L: layers,
H: width of the attention (heads x head_dim), S: sequence length. No discount for the causal mask, none for document masks."""

MAX_LOGITS = 2**29
"""Most logits that one rank holds at once (1 GiB in bf16). A micro batch with more is scored in pieces. Smaller pieces cost
time: each adds to the gradient of the whole head."""


@dataclass(frozen=True)
class ParameterCount:
    """Number of weights; tied embeddings count once."""

    total: int
    embedding: int
    """Token embedding and, where it is not tied to it, the output head."""
    layer: int
    """One decoder layer."""
    layer_matrices: int
    """The weights of one decoder layer that are matrices: all but its norms."""

    @property
    def non_embedding(self) -> int:
        return self.total - self.embedding


def head_dim(model: ModelConfig) -> int:
    """Width of one attention head."""
    return model.head_dim if model.head_dim is not None else model.hidden_size // model.num_attention_heads


def attention_widths(model: ModelConfig) -> tuple[int, int]:
    """Columns of the query projection, and of each of the key and value projections."""
    head = head_dim(model)
    return model.num_attention_heads * head, model.num_key_value_heads * head


def parameters(model: ModelConfig) -> ParameterCount:
    """Exact number of parameters. Raises ValueError for a model_type that is not known here."""
    _check_type(model)
    hidden, (queries, keys) = model.hidden_size, attention_widths(model)
    attention = 2 * hidden * queries + 2 * hidden * keys  # q and o, k and v
    matrices = attention + 3 * hidden * model.intermediate_size  # gate, up, down
    norms = 2 * hidden
    if model.model_type == "qwen3":
        norms += 2 * head_dim(model)  # over each head of the queries and of the keys
    elif model.model_type == "olmo2":
        norms += queries + keys  # over all heads at once
    layer = matrices + norms
    embedding = model.vocab_size * hidden * (1 if model.tie_word_embeddings else 2)
    return ParameterCount(model.num_hidden_layers * layer + hidden + embedding, embedding, layer, matrices)


def flops_per_token(model: ModelConfig, seq_len: int) -> int:
    """FLOPs to train on one token (forward and backward) by FLOPS_FORMULA."""
    count = parameters(model)
    looked_up = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    width = model.num_attention_heads * head_dim(model)
    return 6 * (count.total - looked_up) + 12 * model.num_hidden_layers * width * seq_len


def tensor_parallel_divides(model: ModelConfig) -> dict[str, int]:
    """Config key -> value of what tensor parallel shares out evenly. The vocabulary need not divide."""
    return {
        "model.num_key_value_heads": model.num_key_value_heads,
        "model.num_attention_heads": model.num_attention_heads,
        "model.intermediate_size": model.intermediate_size,
    }


def _check_type(model: ModelConfig) -> None:
    if model.model_type not in MODEL_TYPES:
        raise ValueError(f"model.model_type={model.model_type}: choose one of {', '.join(MODEL_TYPES)}")
