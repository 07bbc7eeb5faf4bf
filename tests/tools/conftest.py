"""A tiny random model of any family in the files of Hugging Face and sentence-transformers, made in milliseconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tools.families import CONFIGS, BertConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?()+*-=#'\""
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *("##" + letter for letter in LETTERS)]

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 40,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}

# What published files of the other families call BERT's fields and tensors.
FIELDS = {
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
}
TENSORS = {
    "distilbert": {
        "encoder.layer": "transformer.layer",
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    },
    "mpnet": {
        "attention.self.query": "attention.attn.q",
        "attention.self.key": "attention.attn.k",
        "attention.self.value": "attention.attn.v",
        "attention.output.dense": "attention.attn.o",
        "attention.output.LayerNorm": "attention.LayerNorm",
    },
}

MakeModel = Callable[..., Path]


def tiny_weights(config: BertConfig, seed: int = 7) -> dict[str, NDArray[np.float32]]:
    """Random tensors under BERT's names, large enough that no part of the network is close to linear."""
    chance = np.random.default_rng(seed)
    shapes = config.tensor_shapes()
    # Queries twice as large again: attention would be nearly uniform, and a mistake in it nearly invisible.
    sizes = {name: 0.8 if "query" in name else 0.4 for name in shapes}
    return {name: chance.normal(0, sizes[name], shape).astype(np.float32) for name, shape in shapes.items()}


def published(kind: str, weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The tensors under the names that a family's published files have."""
    renamed = {}
    for name, tensor in weights.items():
        for ours, theirs in TENSORS.get(kind, {}).items():
            name = name.replace(ours, theirs)  # noqa: PLW2901
        renamed[name] = tensor
    return renamed


def tiny_tokenizer() -> Tokenizer:
    """WordPiece over single letters. It stores a truncation and a padding, as published models do."""
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.enable_truncation(12)
    tokenizer.enable_padding(length=12)
    return tokenizer


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_model(
    path: Path,
    *,
    weights: dict[str, NDArray[Any]] | None = None,
    pooling: str = "mean",
    normalize: bool = True,
    **config: Any,
) -> Path:
    """Write a tiny model's files; `config` are fields of its configuration, by BERT's names."""
    kind = config.get("model_type", "bert")
    names = FIELDS.get(kind, {})
    content = {names.get(field, field): value for field, value in (CONFIG | config).items()}
    write_json(path / "config.json", content)
    if weights is None:
        weights = published(kind, tiny_weights(msgspec.convert(content, CONFIGS.get(kind, BertConfig))))
    save_file(weights, path / "model.safetensors")
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(path / "modules.json", modules)
    write_json(path / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken" if pooling == "last" else pooling})
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    return path


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """What `write_model` writes, in a folder of the test's own."""

    def make(*, folder: str = "tiny", **options: Any) -> Path:
        return write_model(tmp_path / folder, **options)

    return make
