"""Small random models of many architectures as transformers saves them, and its vectors for texts.

torch and transformers are imported where they are used: this folder alone needs them (`make test-export`).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.runners.onnx import OnnxRunner
from ipc.bundle import Bundle
from tests.tools.conftest import VOCABULARY, tiny_tokenizer, write_json

COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 200,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
# The configurations of architectures that tools builds: one for each entry of CONFIGS, or its test fails.
BUILT: dict[str, dict[str, Any]] = {
    "bert": COMMON,
    "roberta": COMMON,
    "xlm-roberta": COMMON,
    "mpnet": COMMON,
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": 200,
        "pad_token_id": 0,
    },
}
# Of architectures that are exported, as different as they come: words narrower than states, layers that share their
# weights, positions as distances, as rotations or counted after padding, windows, no biases.
EXPORTED: dict[str, dict[str, Any]] = {
    "electra": COMMON | {"embedding_size": 16},
    "albert": COMMON | {"embedding_size": 16},
    "deberta-v2": COMMON
    | {
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "modernbert": COMMON
    | {"num_hidden_layers": 3, "local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2}
    | {"sep_token_id": 3},
    "nomic_bert": COMMON,
    "eurobert": COMMON | {"num_key_value_heads": 4},
    "camembert": COMMON,
    "roformer": COMMON,
}
TEXTS = (
    "a",
    "the tide turns at noon.",
    "rain, then more rain; and (at last) sun!",
    "numbers: 1 2 3 4 5 6 7 8 9 0 " * 5,
)
POOLINGS = ("mean", "cls", "lasttoken")

Vectors = NDArray[np.floating[Any]]


def save_model(folder: Path, architecture: str, config: dict[str, Any], *, seed: int = 0) -> Path:
    """A model with weights large enough that no part is close to linear, in `folder`."""
    import torch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415

    torch.manual_seed(seed)
    model = AutoModel.from_config(AutoConfig.for_model(architecture, **config))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            # Queries larger again: attention would be nearly uniform, and a mistake in it nearly invisible.
            if tensor.dim() > 1:
                tensor.normal_(0, 0.5 if "quer" in name or "q_lin" in name else 0.25)
            else:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def save_usage(folder: Path, pooling: str, *, normalize: bool, max_tokens: int = 150) -> Path:
    """The files of sentence-transformers beside a model."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [{"type": f"sentence_transformers.models.{k}", "path": f"{i}_{k}"} for i, k in enumerate(kinds)]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": pooling})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens})
    return folder


def tokenize(bundle: Bundle) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(bundle.path("tokenizer.json")))
    tokenizer.enable_truncation(bundle.max_tokens)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(TEXTS))]


def ours(bundle: Bundle) -> Vectors:
    """The vectors of TEXTS as the engine makes them, [texts, dim]."""
    rows = np.zeros((len(TEXTS), bundle.dim), np.float32)
    runner = OnnxRunner(bundle, "cpu", 1)
    for i, ids in enumerate(tokenize(bundle)):
        runner.run([np.array(ids, np.int32)], rows[i : i + 1])
    return rows


def theirs(folder: Path, bundle: Bundle, pooling: str, *, normalize: bool, trust_code: bool = False) -> Vectors:
    """The vectors of TEXTS as transformers makes them: one padded batch with a mask, pooled after it, [texts, dim]."""
    import torch  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415

    model = AutoModel.from_pretrained(
        folder, dtype="float32", attn_implementation="eager", trust_remote_code=trust_code
    ).eval()
    texts = [torch.tensor(ids) for ids in tokenize(bundle)]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask)[0]
    if pooling == "mean":
        rows = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        rows = states[:, 0] if pooling == "cls" else states[torch.arange(len(texts)), mask.sum(1) - 1]
    if normalize:
        rows = torch.nn.functional.normalize(rows)
    vectors: Vectors = rows.numpy()
    return vectors


def assert_same(vectors: Vectors, expected: Vectors) -> None:
    """Equal but for rounding; both [texts, dim]."""
    a, b = vectors.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    assert ((a * b).sum(axis=1) / (lengths[0] * lengths[1])).min() >= 0.9999999
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-4)
    # A model that gives every text the same vector would pass all of the above.
    assert np.ptp(b, axis=0).max() > 0.01
