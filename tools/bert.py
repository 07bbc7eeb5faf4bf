"""The BERT architecture: its config.json, and the tensors of its checkpoint."""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]

# transformers' names for GELU itself, and for its approximation with tanh.
GELU_ERF = ("gelu", "gelu_python")
GELU_TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")


class BertConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a BERT model's config.json that decide its vectors; transformers' defaults."""

    model_type: str
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    intermediate_size: Count
    vocab_size: Count
    max_position_embeddings: Count
    type_vocab_size: Count = 2
    hidden_act: str = "gelu"
    layer_norm_eps: Annotated[float, msgspec.Meta(gt=0)] = 1e-12
    position_embedding_type: str | None = "absolute"
    is_decoder: bool = False

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

    @staticmethod
    def canonical(name: str) -> str:
        """A tensor's name without the prefix of a task's model, and with the LayerNorm spelling of today."""
        name = name.removeprefix("bert.")
        return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")

    @staticmethod
    def ignores(name: str) -> bool:
        """Whether a tensor of this name has no part in sentence vectors: task heads and a stored arange."""
        return name.startswith(("pooler.", "cls.")) or name == "embeddings.position_ids"

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the encoder needs. Linear weights are [out, in], as PyTorch stores them."""
        hidden, inner = self.hidden_size, self.intermediate_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, hidden),
            "embeddings.token_type_embeddings.weight": (self.type_vocab_size, hidden),
            "embeddings.LayerNorm.weight": (hidden,),
            "embeddings.LayerNorm.bias": (hidden,),
        }
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
