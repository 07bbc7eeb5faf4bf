"""Fourth stage of prepare: hold the graph's vectors against independent ones, and refuse it if they differ.

Two references for a graph that is built here: plain NumPy (tools.reference) for every model, and for the default model
also vectors that sentence-transformers made, kept in tests/reference. The second checks the tokenization too. A graph
that others made brings its own reference, and is tried for what those built here are known for: a text's bits do not
depend on its batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto
from tokenizers import Tokenizer

from ipc.bundle import Parity, Pooling
from ipc.errors import StartError
from tools import reference
from tools.checkpoint import Checkpoint, Usage
from tools.fetch import Say

# Float32 rounding costs 1e-12 on the default model. A wrong tensor in one layer may cost less than 1e-5.
REQUIRED_COSINE = 0.9999999
# Vectors that are not normalized have a length too, and a cosine does not see it.
ALLOWED_LENGTH_ERROR = 1e-4
STORED = Path(__file__).resolve().parent.parent / "tests" / "reference"

# For the NumPy reference: cost grows with the tokens, so the longest is cut to this many.
NUMPY_MAX_TOKENS = 96
NUMPY_TEXTS = (
    "a",
    "Rain again.",
    "The ferry leaves at 06:45, and the last bus back is at 23:10.",
    "Καλημέρα, こんにちは, שלום – and 42 more ways to say it!",
    "for i in range(3): print(i ** 2)  # 0, 1, 4",
    "The orchard behind the mill has not been pruned for years, yet every autumn it gives more apples than the "
    "village can eat, and so the children carry baskets of them down to the station, where travellers put "
    "coins in a tin and choose the reddest ones. " * 3,
)

# For graphs of others: long enough for windows and buckets of positions.
FOREIGN_MAX_TOKENS = 1024
FOREIGN_TEXTS = (*NUMPY_TEXTS, NUMPY_TEXTS[-1] * 8)
# Texts and tokens of the batches in which a text must get the vector that it has alone.
BATCHES = ((2, 3), (7, 16), (16, 33), (3, 129))
# Quantization at run time takes one scale for a whole batch: such a graph is let through with a lower cosine.
DYNAMIC = "DynamicQuantize"
DYNAMIC_COSINE = 0.99

Vector = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Foreign:
    """A model whose graph others made, in our form, and what its vectors are compared with.

    `embed` gives the vector [dim] of one text's ids by another way than `model`; `reference` names that way.
    """

    model: ModelProto
    usage: Usage
    architecture: str
    dim: int
    vocab_size: int
    reference: str
    embed: Callable[[list[int]], Vector]


class StoredText(msgspec.Struct, frozen=True):
    """One entry of tests/reference/texts.json. `tokens` counts the special ones, after truncation."""

    text: str
    tokens: int


class StoredMeta(msgspec.Struct, frozen=True):
    """tests/reference/meta.json: which model vectors.npy [texts, dim] came from, and what made them."""

    made_with: dict[str, str]
    weights_sha256: str
    max_tokens: int
    pooling: Pooling
    normalize: bool


@dataclass(frozen=True)
class Graph:
    """The graph that was built, with the tokenizer that belongs to it."""

    session: Any
    tokenizer: Tokenizer

    def tokenize(self, text: str) -> list[int]:
        """Token ids with the special ones, truncated to the model's limit."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def embed(self, ids: list[int]) -> Vector:
        """The vector [dim] of one text."""
        vector: Vector = self.session.run(None, {"input_ids": np.array([ids], dtype=np.int32)})[0][0]
        return vector


def verify(path: Path, checkpoint: Checkpoint, weights_sha256: str, say: Say) -> Parity:
    """Compare the graph at `path` with every reference there is, and give the parity to record.

    Raises StartError if any cosine is below REQUIRED_COSINE, or a text gets another number of tokens.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    graph = Graph(session, load_tokenizer(checkpoint, checkpoint.config.vocab_size))
    say(f"verifying  {len(NUMPY_TEXTS)} texts against plain NumPy")
    parity = _against_numpy(graph, checkpoint)
    meta = _stored_meta()
    if meta is None:
        say("           (not a checkout: no tests/reference, so no comparison with sentence-transformers)")
    elif meta.weights_sha256 == weights_sha256:
        parity = _against_stored(graph, checkpoint, meta, say)
    return parity


def load_tokenizer(usage: Usage, vocab_size: int | None = None) -> Tokenizer:
    """The model's tokenizer, truncating to its limit. Raises StartError if `vocab_size` is too few for its ids."""
    try:
        tokenizer = Tokenizer.from_str(usage.tokenizer.decode())
    except Exception as error:  # the library raises nothing more precise
        raise StartError(f"The model's tokenizer.json cannot be used ({error}).") from None
    if vocab_size is not None and largest_id(tokenizer) >= vocab_size:
        raise StartError(
            f"The model's tokenizer.json has the token id {largest_id(tokenizer)}, but config.json only "
            f"{vocab_size} tokens: the two are not of the same model."
        )
    tokenizer.enable_truncation(usage.max_tokens)
    return tokenizer


def largest_id(tokenizer: Tokenizer) -> int:
    """The largest token id that the tokenizer may give."""
    return max(tokenizer.get_vocab().values(), default=0)


def _against_numpy(graph: Graph, checkpoint: Checkpoint) -> Parity:
    lowest = 1.0
    for text in NUMPY_TEXTS:
        ids = graph.tokenize(text)[: min(NUMPY_MAX_TOKENS, checkpoint.max_tokens)]
        cosine = _compare(graph.embed(ids), reference.embed(checkpoint, ids), text)
        lowest = min(lowest, cosine)
    return Parity(reference="numpy float64", texts=len(NUMPY_TEXTS), min_cosine=lowest)


def _stored_meta() -> StoredMeta | None:
    """What the stored vectors belong to; None where there are none, as in an installed copy without tests."""
    try:
        return msgspec.json.decode((STORED / "meta.json").read_bytes(), type=StoredMeta)
    except FileNotFoundError:
        return None


def _against_stored(graph: Graph, checkpoint: Checkpoint, meta: StoredMeta, say: Say) -> Parity:
    for field in ("max_tokens", "pooling", "normalize"):
        if getattr(checkpoint, field) != getattr(meta, field):
            say(f"           (other {field} than the stored sentence-transformers vectors: not compared)")
            return _against_numpy(graph, checkpoint)
    texts = msgspec.json.decode((STORED / "texts.json").read_bytes(), type=list[StoredText])
    vectors = np.load(STORED / "vectors.npy", allow_pickle=False)
    made_with = f"sentence-transformers {meta.made_with['sentence-transformers']}"
    say(f"verifying  {len(texts)} texts against {made_with}")
    lowest = 1.0
    for entry, expected in zip(texts, vectors, strict=True):
        ids = graph.tokenize(entry.text)
        if len(ids) != entry.tokens:
            raise StartError(
                f"Verification failed: {_shorten(entry.text)} gets {len(ids)} tokens where {made_with} gives it "
                f"{entry.tokens}; no bundle was written."
            )
        lowest = min(lowest, _compare(graph.embed(ids), expected, entry.text))
    return Parity(reference=made_with, texts=len(texts), min_cosine=lowest)


def _compare(vector: Vector, expected: Vector, text: str) -> float:
    """The cosine of the two, at most 1. Raises StartError if they are not the same vector."""
    a, b = vector.astype(np.float64), expected.astype(np.float64)
    lengths = math.sqrt(a @ a), math.sqrt(b @ b)
    cosine = float(a @ b / (lengths[0] * lengths[1])) if all(lengths) else 0.0
    same_length = abs(lengths[0] - lengths[1]) <= ALLOWED_LENGTH_ERROR * lengths[1]
    if not (cosine >= REQUIRED_COSINE and same_length):  # written so that NaN fails
        raise StartError(
            f"Verification failed: the vector of {_shorten(text)} has the cosine {cosine:.8f} to the reference "
            f"({REQUIRED_COSINE} is required) and the length {lengths[0]:.6f} where {lengths[1]:.6f} is expected; "
            "no bundle was written."
        )
    return min(cosine, 1.0)


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def first_line(error: Exception) -> str:
    """The first line of what a library says, to be put into a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def verify_foreign(path: Path, model: Foreign, say: Say) -> Parity:
    """Compare the graph at `path` with the model's own reference, and a text alone with the same text in a batch.

    Raises StartError as `verify` does, if the longest text fails, or if the texts of a batch change each other.
    """
    graph = Graph(open_session(path), load_tokenizer(model.usage, model.vocab_size))
    _try_longest(graph, model)
    if model.usage.max_tokens > FOREIGN_MAX_TOKENS:
        say(f"note       texts of more than {FOREIGN_MAX_TOKENS} tokens are served, and none is compared")
    say(f"verifying  {len(FOREIGN_TEXTS)} texts against {model.reference}")
    lowest = 1.0
    for text in FOREIGN_TEXTS:
        if any(graph.tokenizer.encode(text).type_ids):
            raise StartError("The model's tokenizer.json gives token types other than zero, which is not supported.")
        ids = graph.tokenize(text)[:FOREIGN_MAX_TOKENS]
        lowest = min(lowest, _compare(graph.embed(ids), model.embed(ids), text))
    is_dynamic = any(node.op_type.startswith(DYNAMIC) for node in model.model.graph.node)
    say(_try_batches(graph, model, DYNAMIC_COSINE if is_dynamic else REQUIRED_COSINE))
    return Parity(reference=model.reference, texts=len(FOREIGN_TEXTS), min_cosine=lowest)


def open_session(path: Path) -> Any:
    """The ONNX file at `path`, on the CPU. Raises StartError if it cannot be loaded."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and told in one sentence
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises nothing more precise
        raise StartError(f"ONNX Runtime cannot load {path} ({first_line(error)}).") from None


def _try_longest(graph: Graph, model: Foreign) -> None:
    tokens = min(model.usage.max_tokens, FOREIGN_MAX_TOKENS)
    try:
        vector = graph.embed([largest_id(graph.tokenizer)] * tokens)
    except Exception as error:  # the library raises nothing more precise
        raise StartError(
            f"The graph fails on a text of {tokens} tokens ({first_line(error)}): write a smaller max_seq_length into "
            "sentence_bert_config.json if the model takes fewer."
        ) from None
    if not np.isfinite(vector).all():
        raise StartError(f"The vector of a text of {tokens} tokens has values that are not finite.")


def _try_batches(graph: Graph, model: Foreign, required: float) -> str:
    """What to tell of the bits of a text alone and in a batch. Raises StartError for a cosine below `required`."""
    chance = np.random.default_rng(0)
    largest = 0.0
    for texts, tokens in BATCHES:
        ids = chance.integers(0, model.vocab_size, (texts, min(tokens, model.usage.max_tokens)), dtype=np.int32)
        together: Vector = graph.session.run(None, {"input_ids": ids})[0].astype(np.float64)
        alone = np.stack([graph.embed(row) for row in ids.tolist()]).astype(np.float64)
        lengths = np.linalg.norm(together, axis=1) * np.linalg.norm(alone, axis=1)
        lowest = float(((together * alone).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
        if not lowest >= required:  # written so that NaN fails
            raise StartError(
                f"Verification failed: a text alone and in a batch of {texts} has vectors with the cosine {lowest:.8f} "
                f"({required} is required), so the texts of a batch change each other; no bundle was written."
            )
        largest = max(largest, float(np.abs(together - alone).max()))
    if largest:
        return f"note       a text alone and in a batch has vectors that differ by up to {largest:.0e}"
    return f"           a text has the same bits alone and in a batch ({len(BATCHES)} batches tried)"
