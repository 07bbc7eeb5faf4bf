"""Fourth stage of prepare for graphs that others made: each brings its own reference, and is tried in batches.

Graphs that are built here are known to give a text the same bits alone and in any batch. Of others it has to be found
out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto

from ipc.bundle import Parity
from ipc.errors import StartError
from tools.checkpoint import Usage
from tools.fetch import Say
from tools.verify import NUMPY_TEXTS, REQUIRED_COSINE, Graph, Vector, compare, largest_id, load_tokenizer

# Long enough for windows and buckets of positions.
FOREIGN_MAX_TOKENS = 1024
FOREIGN_TEXTS = (*NUMPY_TEXTS, NUMPY_TEXTS[-1] * 8)
# Texts and tokens of the batches in which a text must get the vector that it has alone.
BATCHES = ((2, 3), (7, 16), (16, 33), (3, 129))
# Quantization at run time takes one scale for a whole batch: such a graph is let through with a lower cosine.
DYNAMIC = "DynamicQuantize"
DYNAMIC_COSINE = 0.99


@dataclass(frozen=True, kw_only=True)
class Foreign(Usage):
    """A model whose graph others made, in our form, and what its vectors are compared with.

    `embed` gives the vector [dim] of one text's ids by another way than `graph`; `reference` names that way.
    """

    graph: ModelProto
    architecture: str
    dim: int
    vocab_size: int
    reference: str
    embed: Callable[[list[int]], Vector]


def verify_foreign(path: Path, model: Foreign, say: Say) -> Parity:
    """Compare the graph at `path` with the model's own reference, and a text alone with the same text in a batch.

    Raises StartError as `verify` does, if the longest text fails, or if the texts of a batch change each other.
    """
    graph = Graph(open_session(path), load_tokenizer(model, model.vocab_size), "dense")
    _try_longest(graph, model)
    if model.max_tokens > FOREIGN_MAX_TOKENS:
        say(f"note       texts of more than {FOREIGN_MAX_TOKENS} tokens are served, and none is compared")
    say(f"verifying  {len(FOREIGN_TEXTS)} texts against {model.reference}")
    lowest = 1.0
    for text in FOREIGN_TEXTS:
        if any(graph.tokenizer.encode(text).type_ids):
            raise StartError("The model's tokenizer.json gives token types other than zero, which is not supported.")
        ids = graph.tokenize(text)[:FOREIGN_MAX_TOKENS]
        lowest = min(lowest, compare(graph.embed(ids), model.embed(ids), text))
    is_dynamic = any(node.op_type.startswith(DYNAMIC) for node in model.graph.graph.node)
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


def first_line(error: Exception) -> str:
    """The first line of what a library says, to be put into a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _try_longest(graph: Graph, model: Foreign) -> None:
    tokens = min(model.max_tokens, FOREIGN_MAX_TOKENS)
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
        ids = chance.integers(0, model.vocab_size, (texts, min(tokens, model.max_tokens)), dtype=np.int32)
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
