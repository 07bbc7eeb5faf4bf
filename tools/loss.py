"""What another precision costs: its vectors against the fp32 graph's, for bundle.json."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ipc.bundle import GRAPHS, LAYOUTS, Loss, Precision
from ipc.errors import StartError
from tools.fetch import Say
from tools.graphs.emulation import emulate, pack
from tools.verify import Graph, sample_texts

# Far below what the precisions cost usually (fp16 1e-6, int8 0.02): a model that loses more is another model.
REQUIRED_COSINE = {"int8": 0.9, "fp16": 0.999}
# Longer texts are cut: the emulation's memory grows with the square.
MAX_TOKENS = 512

Rows = NDArray[np.float64]


def measure_losses(folder: Path, precisions: Collection[Precision], exact: Graph, say: Say) -> dict[str, Loss]:
    """Compare the graphs in `folder` with the fp32 graph `exact`, text by text.

    Raises StartError if a vector is not finite or too far from fp32's.
    """
    if not precisions:
        return {}
    texts = [np.array(exact.tokenize(text)[:MAX_TOKENS], np.int32) for text in sample_texts()]
    expected = _unit(np.stack([exact.embed(ids.tolist()) for ids in texts]))
    losses = {}
    for precision in precisions:
        loss = _compare(precision, _embed(folder, precision, texts), expected)
        losses[str(precision)] = loss
        say(
            f"measured   {precision} against fp32, {loss.texts} texts: cosine {loss.min_cosine:.6f} at worst, "
            f"{loss.mean_cosine:.6f} on average, rank correlation {loss.rank_correlation:.4f}"
        )
    return losses


def _embed(folder: Path, precision: Precision, texts: list[NDArray[np.int32]]) -> Rows:
    """The vectors of the texts, each computed alone, divided by their lengths."""
    model, is_packed = onnx.load(folder / GRAPHS[precision]), LAYOUTS[precision] == "packed"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # of its optimizer's doubts
    session = onnxruntime.InferenceSession(
        (emulate(model) if is_packed else model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    batches = [pack([ids]) if is_packed else {"input_ids": ids[None]} for ids in texts]
    rows = np.concatenate([session.run(None, batch)[0] for batch in batches])
    if not np.isfinite(rows).all():
        raise StartError(
            f"The model cannot be had in {precision}: its states are out of the range of numbers; use fp32."
        )
    return _unit(rows)


def _compare(precision: Precision, vectors: Rows, expected: Rows) -> Loss:
    cosines = (vectors * expected).sum(axis=1)
    if cosines.min() < REQUIRED_COSINE[precision]:
        raise StartError(
            f"The model cannot be had in {precision}: the lowest cosine of a vector to fp32's is {cosines.min():.4f}, "
            f"and {REQUIRED_COSINE[precision]} is required; use fp32."
        )
    return Loss(
        method="float16 rounding emulated on the CPU" if LAYOUTS[precision] == "packed" else "ONNX Runtime on the CPU",
        texts=len(vectors),
        min_cosine=float(min(cosines.min(), 1)),
        mean_cosine=float(min(cosines.mean(), 1)),
        rank_correlation=rank_correlation(_similarities(vectors), _similarities(expected)),
    )


def rank_correlation(one: Rows, other: Rows) -> float:
    """Spearman's: the correlation of the ranks. Both are [n] and without ties, as measured similarities are."""
    ranks = np.stack([np.argsort(np.argsort(values)) for values in (one, other)])
    matrix: Rows = np.asarray(np.corrcoef(ranks))
    return float(matrix[0, 1])


def _unit(rows: NDArray[np.floating[Any]]) -> Rows:
    """In float64, with the length 1; a zero vector stays one."""
    rows = rows.astype(np.float64)
    lengths: Rows = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float64).tiny)


def _similarities(rows: Rows) -> Rows:
    """The cosines of all pairs of different texts."""
    pairs: Any = np.triu_indices(len(rows), 1)
    similarities: Rows = (rows @ rows.T)[pairs]
    return similarities
