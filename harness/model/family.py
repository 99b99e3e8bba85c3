"""What follows from the shape of a model by arithmetic: parameters, FLOPs, and how far tensor parallel can divide it.

Imports no torch, so that the launcher can plan in milliseconds. A test holds the numbers against transformers' own models.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from harness.config.schema import ModelConfig
from harness.model.rope_scaling import rope_problems

MODEL_TYPES = ("smollm3", "llama", "qwen3", "mistral", "olmo2")

NO_TENSOR_PARALLEL = {"olmo2": "its norms of queries and keys span all heads"}
"""Model types whose layers can't be shared between tensor-parallel ranks, with the reason."""

ATTENTION_BIAS = ("smollm3", "llama", "qwen3", "olmo2")
MLP_BIAS = ("smollm3", "llama")
NOPE_LAYERS = ("smollm3",)
SLIDING_WINDOW = ("mistral", "qwen3", "smollm3")
LAYER_TYPES = ("qwen3", "smollm3")
"""Model types whose layers know `model.attention_bias`, `.mlp_bias`, `.no_rope_layers`, `.sliding_window`, `.layer_types`."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""transformers' names for kinds of layers."""

ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh",
    "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu",
    "sqrtsoftplus", "swish", "tanh",
)  # fmt: skip
"""What `model.hidden_act` may be: transformers' activations that have no weights of their own."""

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
    """The weights of one decoder layer that are matrices: all but its norms and biases."""

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


def layers_without_rope(model: ModelConfig) -> list[int]:
    """Numbers of the layers without rotary positions."""
    layers = range(model.num_hidden_layers)
    if model.no_rope_layers is not None:
        return [layer for layer in layers if not model.no_rope_layers[layer]]
    every = model.no_rope_layer_interval
    return [layer for layer in layers if every and (layer + 1) % every == 0]


def slides(model: ModelConfig, seq_len: int) -> bool:
    """Whether a layer sees less of a sequence of `seq_len` tokens than full attention would."""
    if model.sliding_window is None or model.sliding_window >= seq_len:
        return False
    return model.layer_types is None or SLIDING in model.layer_types


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
    biases = (queries + 2 * keys + hidden) * model.attention_bias + (
        2 * model.intermediate_size + hidden
    ) * model.mlp_bias
    layer = matrices + norms + biases
    embedding = model.vocab_size * hidden * (1 if model.tie_word_embeddings else 2)
    return ParameterCount(model.num_hidden_layers * layer + hidden + embedding, embedding, layer, matrices)


def shape_problems(model: ModelConfig) -> Iterator[str]:
    """Sentences about keys of `model` that its family does not have, or that contradict each other."""
    family, layers = model.model_type, model.num_hidden_layers
    only_some = (
        ("attention_bias", model.attention_bias, False, ATTENTION_BIAS),
        ("mlp_bias", model.mlp_bias, False, MLP_BIAS),
        ("sliding_window", model.sliding_window, None, SLIDING_WINDOW),
        ("layer_types", model.layer_types, None, LAYER_TYPES),
        ("no_rope_layers", model.no_rope_layers, None, NOPE_LAYERS),
    )
    for key, value, off, families in only_some:
        if value != off and family not in families:
            shown = str(off).lower().replace("none", "null")
            yield f"model.{key}={value}: {family} does not have it, only {', '.join(families)} do; set {shown}"
    if model.no_rope_layer_interval and family not in NOPE_LAYERS:
        yield (
            f"model.no_rope_layer_interval={model.no_rope_layer_interval}: only {', '.join(NOPE_LAYERS)} has layers without "
            f"rotary positions; set 0 for {family}"
        )
    for key, values in (("no_rope_layers", model.no_rope_layers), ("layer_types", model.layer_types)):
        if values is not None and len(values) != layers:
            yield f"model.{key}: has {len(values)} entries, expected one for each of model.num_hidden_layers={layers}"
    if model.hidden_act not in ACTIVATIONS:
        yield f"model.hidden_act={model.hidden_act}: choose one of {', '.join(ACTIVATIONS)}"
    if strange := sorted(set(model.no_rope_layers or ()) - {0, 1}):
        yield f"model.no_rope_layers holds {', '.join(map(str, strange))}: 1 for a layer with rotary positions, 0 for one without"
    unknown = sorted(set(model.layer_types or ()) - {FULL, SLIDING})
    if unknown:
        yield f"model.layer_types names {', '.join(unknown)}: choose {FULL} or {SLIDING} for each layer"
    if family in LAYER_TYPES and (model.sliding_window is not None) != (SLIDING in (model.layer_types or ())):
        yield (
            f"model.sliding_window={model.sliding_window}: goes with {SLIDING} in model.layer_types of {family}; set both or "
            "neither"
        )
    if model.sliding_window is not None and model.sliding_window < 1:
        yield f"model.sliding_window={model.sliding_window}: must be at least 1, or null for no window"
    yield from rope_problems(model.rope_scaling, head_dim(model))


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
