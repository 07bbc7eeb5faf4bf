"""The architectures that can be served: their config.json, and the tensors of their checkpoints.

Every family here is a BERT with differences, so it is described by those: its fields' names, its tensors' names and
where its positions begin. Graph and reference know BERT's names alone. A family is a class below and a line of CONFIGS.
"""

import re
from typing import Annotated, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Count = Annotated[int, msgspec.Meta(ge=1)]

# transformers' names for GELU itself, and for its approximation with tanh.
GELU_ERF = ("gelu", "gelu_python")
GELU_TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")

# From here on all distances share a bucket.
FARTHEST = 128
RELATIVE_BIAS = "encoder.relative_attention_bias.weight"


class BertConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a model's config.json that decide its vectors; transformers' defaults. Here BERT's own."""

    # The prefix of the encoder's tensors in checkpoints of a task's model, and how the tensors without a part begin.
    prefix: ClassVar[str] = "bert."
    ignored: ClassVar[tuple[str, ...]] = ("pooler.", "cls.")
    # (pattern, replacement) in order, from a stored tensor's name to BERT's of today.
    renamed: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    )

    model_type: str
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    intermediate_size: Count
    vocab_size: Count
    max_position_embeddings: Count
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: Annotated[float, msgspec.Meta(gt=0)] = 1e-12
    position_embedding_type: str | None = "absolute"
    is_decoder: bool = False

    @property
    def first_position(self) -> int:
        """The row of the position table that a text's first token gets."""
        return 0

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text that have a position."""
        return self.max_position_embeddings - self.first_position

    @property
    def relative_buckets(self) -> int:
        """How many buckets the bias for relative positions has; 0 where there is none."""
        return 0

    def check(self) -> None:
        """Raise ValueError, with what is wrong, for a variant that the graph would not reproduce."""
        if self.position_embedding_type not in ("absolute", None):
            raise ValueError(f"position_embedding_type {self.position_embedding_type!r} is not supported")
        if self.hidden_act not in GELU_ERF + GELU_TANH:
            supported = ", ".join(GELU_ERF + GELU_TANH)
            raise ValueError(f"hidden_act {self.hidden_act!r} is not supported (supported: {supported})")
        if self.is_decoder:
            raise ValueError("is_decoder is set, and causal attention is not supported")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size is not a multiple of num_attention_heads")

    def canonical(self, name: str) -> str:
        """A stored tensor's name as BERT has it today, without the prefix of a task's model."""
        name = name.removeprefix(self.prefix)
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def ignores(self, name: str) -> bool:
        """Whether a tensor of this name has no part in sentence vectors: task heads and stored constants."""
        return name.startswith(self.ignored) or name in ("embeddings.position_ids", "embeddings.token_type_ids")

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the encoder needs. Linear weights are [out, in], as PyTorch stores them."""
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, hidden),
            "embeddings.LayerNorm.weight": (hidden,),
            "embeddings.LayerNorm.bias": (hidden,),
        }
        if self.type_vocab_size:
            shapes["embeddings.token_type_embeddings.weight"] = (self.type_vocab_size, hidden)
        if self.relative_buckets:
            shapes[RELATIVE_BIAS] = (self.relative_buckets, self.num_attention_heads)
        linear = {
            "attention.self.query": (hidden, hidden),
            "attention.self.key": (hidden, hidden),
            "attention.self.value": (hidden, hidden),
            "attention.output.dense": (hidden, hidden),
            "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }
        for layer in range(self.num_hidden_layers):
            prefix = f"encoder.layer.{layer}."
            for name, shape in linear.items():
                shapes[f"{prefix}{name}.weight"] = shape
                shapes[f"{prefix}{name}.bias"] = shape[:1]
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes[f"{prefix}{name}.weight"] = shapes[f"{prefix}{name}.bias"] = (hidden,)
        return shapes


class RobertaConfig(BertConfig, frozen=True, kw_only=True):
    """RoBERTa and XLM-RoBERTa: positions begin after the padding token's id.

    transformers gives a padding token *inside* a text the padding's position and does not count it; here it is a token
    like any other. No tokenizer makes one of ordinary text.
    """

    prefix: ClassVar[str] = "roberta."
    ignored: ClassVar[tuple[str, ...]] = ("pooler.", "lm_head.")

    pad_token_id: Annotated[int, msgspec.Meta(ge=0)] = 1

    @property
    def first_position(self) -> int:
        """The row after the padding's."""
        return self.pad_token_id + 1


class DistilBertConfig(BertConfig, frozen=True, kw_only=True):
    """DistilBERT: other names, no token types. Sinusoidal positions, if it has them, are stored like learned ones."""

    prefix: ClassVar[str] = "distilbert."
    ignored: ClassVar[tuple[str, ...]] = ("vocab_", "qa_outputs.")
    renamed: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^transformer\.", "encoder."),
        (r"\.attention\.q_lin\.", ".attention.self.query."),
        (r"\.attention\.k_lin\.", ".attention.self.key."),
        (r"\.attention\.v_lin\.", ".attention.self.value."),
        (r"\.attention\.out_lin\.", ".attention.output.dense."),
        (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
        (r"\.ffn\.lin1\.", ".intermediate.dense."),
        (r"\.ffn\.lin2\.", ".output.dense."),
        (r"\.output_layer_norm\.", ".output.LayerNorm."),
    )

    hidden_size: Count = msgspec.field(name="dim")
    num_hidden_layers: Count = msgspec.field(name="n_layers")
    num_attention_heads: Count = msgspec.field(name="n_heads")
    intermediate_size: Count = msgspec.field(name="hidden_dim")
    hidden_act: str = msgspec.field(name="activation", default="gelu")
    type_vocab_size: int = 0


class MPNetConfig(BertConfig, frozen=True, kw_only=True):
    """MPNet: a bias for relative positions, one for all layers; positions begin at 2; no token types."""

    prefix: ClassVar[str] = "mpnet."
    ignored: ClassVar[tuple[str, ...]] = ("pooler.", "lm_head.")
    renamed: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"\.attention\.attn\.q\.", ".attention.self.query."),
        (r"\.attention\.attn\.k\.", ".attention.self.key."),
        (r"\.attention\.attn\.v\.", ".attention.self.value."),
        (r"\.attention\.attn\.o\.", ".attention.output.dense."),
        (r"\.attention\.LayerNorm\.", ".attention.output.LayerNorm."),
    )

    type_vocab_size: int = 0
    relative_attention_num_buckets: Annotated[int, msgspec.Meta(ge=4, multiple_of=4)] = 32

    @property
    def first_position(self) -> int:
        """transformers' code has the padding's row, 1, as a constant."""
        return 2

    @property
    def relative_buckets(self) -> int:
        """The config's number, under its short name."""
        return self.relative_attention_num_buckets


def relative_bucket(distance: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """The bucket of each signed distance, key's position − query's, of so many buckets.

    As in T5 (Raffel et al. 2020, section 2.1): the upper half for keys behind the query; in each half, the first half
    for one distance each, the rest for logarithmically wider ranges up to FARTHEST.
    """
    half = buckets // 2
    exact = half // 2
    away = np.abs(distance)
    # In float32, as transformers does it: a boundary that is rounded otherwise is another bucket.
    far = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(FARTHEST / exact))
    wide = exact + (far * np.float32(half - exact)).astype(np.int64)
    bucket: NDArray[np.int64] = np.where(away < exact, away, np.minimum(wide, half - 1)) + half * (distance > 0)
    return bucket


# The architectures, by config.json's "model_type".
CONFIGS: dict[str, type[BertConfig]] = {
    "bert": BertConfig,
    "roberta": RobertaConfig,
    "xlm-roberta": RobertaConfig,
    "distilbert": DistilBertConfig,
    "mpnet": MPNetConfig,
}
