"""A tiny random BERT in the files of Hugging Face and sentence-transformers, made in milliseconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tools.bert import BertConfig

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

MakeModel = Callable[..., Path]


def tiny_weights(config: dict[str, Any], seed: int = 7) -> dict[str, NDArray[np.float32]]:
    """Random tensors, large enough that no part of the network is close to linear."""
    chance = np.random.default_rng(seed)
    shapes = BertConfig(**config).tensor_shapes()
    # Queries twice as large again: attention would be nearly uniform, and a mistake in it nearly invisible.
    sizes = {name: 0.8 if "query" in name else 0.4 for name in shapes}
    return {name: chance.normal(0, sizes[name], shape).astype(np.float32) for name, shape in shapes.items()}


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
    """Write a tiny model's files; `config` are fields of its configuration."""
    write_json(path / "config.json", CONFIG | config)
    save_file(weights or tiny_weights(CONFIG | config), path / "model.safetensors")
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
