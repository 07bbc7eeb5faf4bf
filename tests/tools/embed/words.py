"""A backend that is the real one but for the model: a text's "vector" is what its token ids add up to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ipc.bundle import Bundle
from ipc.messages import Ids
from ipc.settings import Settings
from ipc.slab import Rows
from perf.alone import token_ids
from tools.embed.job import Model, Options, embed
from tools.embed.journal import Mark
from tools.embed.local import Local

DIM = 3
MODEL = Model("words", 16)
# Words of one token each, whose ids the runner knows.
FAILS, NOT_A_NUMBER = "tornado", "nobody"


class WordRunner:
    """Keeps the protocol of engine.runners.Runner; `batches` are the lengths of the texts of each run."""

    device, precision = "cpu", "exact"
    lanes = 2

    def __init__(self, bundle: Bundle, *, mixes_lengths: bool = True) -> None:
        self.mixes_lengths = mixes_lengths
        self.batches: list[list[int]] = []
        self._fails, self._not_a_number = (int(ids[1]) for ids in token_ids(bundle, [FAILS, NOT_A_NUMBER]))

    def warm_up(self, rows: Rows) -> None:
        rows[:] = 0

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        self.batches.append([len(text) for text in texts])
        if any(self._fails in text for text in texts):
            raise RuntimeError("a tornado")
        for text, row in zip(texts, rows, strict=True):
            row[:] = np.nan if self._not_a_number in text else vector(text)
        return 0


def vector(ids: Ids) -> NDArray[np.float32]:
    return np.array([len(ids), ids.sum() / 1000, ids[1:3].sum() / 7], np.float32)


def vectors(bundle: Bundle, texts: Sequence[str]) -> NDArray[np.float32]:
    return np.stack([vector(ids) for ids in token_ids(bundle, texts)])


def local(bundle: Bundle, **runner: Any) -> tuple[Local, WordRunner]:
    words = WordRunner(bundle, **runner)
    return Local(Settings(), msgspec.structs.replace(bundle, dim=DIM), words), words


def run(backend: Local, source: Path, out: Path, **options: Any) -> Mark:
    given: dict[str, Any] = {"window": 4, "quiet": True, **options}
    return embed(Options(source=str(source), out=out, **given), backend, MODEL)[0]
