"""The stored texts and their vectors from sentence-transformers (tests/reference/make.py made them)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent.parent / "reference"
MIN_COSINE = 0.99999

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """One text; `tokens` counts what is left after truncation, with the special ones."""

    text: str
    tokens: int
    vector: Vector


def load_references() -> list[Reference]:
    """All of them, in the order of the files."""
    entries = json.loads((FOLDER / "texts.json").read_text())
    vectors = np.load(FOLDER / "vectors.npy")
    assert len(entries) == len(vectors) > 50
    return [Reference(e["text"], e["tokens"], v) for e, v in zip(entries, vectors, strict=True)]


def cosine(one: Vector, other: Vector) -> float:
    """In double precision, so that the figure's own error is no part of it."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def differing(references: list[Reference], vectors: list[Vector]) -> dict[str, float]:
    """Texts (their beginnings) whose vectors are not those of the reference, and the cosine each has."""
    pairs = zip(references, vectors, strict=True)
    cosines = {r.text[:60]: cosine(r.vector, v) if v.shape == r.vector.shape else -1.0 for r, v in pairs}
    # Written so that a NaN counts as different.
    return {text: value for text, value in cosines.items() if not value >= MIN_COSINE}
