"""A model that fails in every way there is, on texts with certain words: EMBEDLANE_RUNNER for a second scenario."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

import numpy as np
import tokenizers

from engine.runners.onnx import OnnxRunner
from ipc.bundle import TOKENIZER, Bundle
from ipc.messages import Ids
from ipc.settings import Settings
from ipc.slab import Rows

# One token each, and in none of the texts of perf.texts.
RAISES, GIVES_NAN, GIVES_INFINITY, EXITS = "violin", "guitar", "trumpet", "saxophone"
HANGS, STARVES, KILLS = "drums", "choir", "accordion"
WORDS = (RAISES, GIVES_NAN, GIVES_INFINITY, EXITS, HANGS, STARVES, KILLS)
HANG_SECONDS = 1.0


class FaultyRunner:
    """The default runner, but for the words."""

    device = "cpu"
    precision = "fp32"

    def __init__(self, settings: Settings, bundle: Bundle) -> None:
        self._runner = OnnxRunner(bundle, "cpu", settings.lanes)
        self.lanes = self._runner.lanes
        self.mixes_lengths = self._runner.mixes_lengths
        tokenizer = tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER)))
        self._ids = {word: tokenizer.token_to_id(word) for word in WORDS}
        assert None not in self._ids.values()

    def warm_up(self, rows: Rows) -> None:
        """As the default runner's."""
        self._runner.warm_up(rows)

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        """The same bits, or what the words ask for."""
        words = {word for word, number in self._ids.items() if any(number in text for text in texts)}
        if KILLS in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if EXITS in words:
            sys.exit("a word asked for it")
        if RAISES in words:
            raise RuntimeError("a word asked for it")
        if STARVES in words and len(texts) > 1:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        if HANGS in words:
            time.sleep(HANG_SECONDS)
        padding = self._runner.run(texts, rows)
        for word, value in ((GIVES_NAN, np.nan), (GIVES_INFINITY, np.inf)):
            for text, row in zip(texts, rows, strict=True):
                if self._ids[word] in text:
                    row[-1] = value
        return padding
