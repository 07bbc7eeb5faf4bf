"""Fourth stage of prepare: hold the graph's vectors against independent ones, and refuse it if they differ.

Two references for a graph that is built here: plain NumPy (tools.reference) for every model, and for the default model
also vectors that sentence-transformers made, kept in tests/reference. The second checks the tokenization too.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engine.runners.mixing import arrange
from ipc.bundle import LAYOUTS, Layout, Parity, Pooling
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

Vector = NDArray[np.floating[Any]]


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
    """A graph for the CPU, with the tokenizer that belongs to it."""

    session: Any
    tokenizer: Tokenizer
    layout: Layout

    def tokenize(self, text: str) -> list[int]:
        """Token ids with the special ones, truncated to the model's limit."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def embed(self, ids: list[int]) -> Vector:
        """The vector [dim] of one text."""
        text = np.array(ids, np.int32)
        inputs = arrange([text]) if self.layout == "mixed" else {"input_ids": text[None]}
        vector: Vector = self.session.run(None, inputs)[0][0]
        return vector


def open_graph(path: Path, checkpoint: Checkpoint) -> Graph:
    """Load the fp32 graph built here. Raises StartError if the model's tokenizer cannot be used with it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return Graph(session, load_tokenizer(checkpoint, checkpoint.config.vocab_size), LAYOUTS["fp32"])


def verify(graph: Graph, checkpoint: Checkpoint, weights_sha256: str, say: Say) -> Parity:
    """Compare the graph with every reference there is, and give the parity to record.

    Raises StartError if any cosine is below REQUIRED_COSINE, or a text gets another number of tokens.
    """
    say(f"verifying  {len(NUMPY_TEXTS)} texts against plain NumPy")
    parity = _against_numpy(graph, checkpoint)
    meta = _stored_meta()
    if meta is None:
        say("           (not a checkout: no tests/reference, so no comparison with sentence-transformers)")
    elif meta.weights_sha256 == weights_sha256:
        parity = _against_stored(graph, checkpoint, meta, say)
    return parity


def sample_texts() -> list[str]:
    """Texts of many kinds: those with stored vectors, and where there are none, a few."""
    if _stored_meta() is None:
        return list(NUMPY_TEXTS)
    return [entry.text for entry in _stored_texts()]


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
        cosine = compare(graph.embed(ids), reference.embed(checkpoint, ids), text)
        lowest = min(lowest, cosine)
    return Parity(reference="numpy float64", texts=len(NUMPY_TEXTS), min_cosine=lowest)


def _stored_meta() -> StoredMeta | None:
    """What the stored vectors belong to; None where there are none, as in an installed copy without tests."""
    try:
        return msgspec.json.decode((STORED / "meta.json").read_bytes(), type=StoredMeta)
    except FileNotFoundError:
        return None


def _stored_texts() -> list[StoredText]:
    return msgspec.json.decode((STORED / "texts.json").read_bytes(), type=list[StoredText])


def _against_stored(graph: Graph, checkpoint: Checkpoint, meta: StoredMeta, say: Say) -> Parity:
    for field in ("max_tokens", "pooling", "normalize"):
        if getattr(checkpoint, field) != getattr(meta, field):
            say(f"           (other {field} than the stored sentence-transformers vectors: not compared)")
            return _against_numpy(graph, checkpoint)
    texts = _stored_texts()
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
        lowest = min(lowest, compare(graph.embed(ids), expected, entry.text))
    return Parity(reference=made_with, texts=len(texts), min_cosine=lowest)


def compare(vector: Vector, expected: Vector, text: str) -> float:
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
