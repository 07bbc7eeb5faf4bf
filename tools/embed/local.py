"""Vectors from the engine's own runner, in this process: a thread for each of its lanes."""

from __future__ import annotations

import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.runners import Runner
from frontend.tokenizer import Tokenizer, Tokens
from ipc.bundle import TOKENIZER, Bundle
from ipc.errors import InputTooLong
from ipc.messages import Ids
from ipc.settings import Settings
from ipc.slab import Rows
from tools.embed.window import Fault, Job, Window

# A thread that waits for the interpreter gets it after this long, a tenth of the default: lanes must not wait for rows
# that are being encoded.
SWITCH_SECONDS = 0.0005
# A tenth faster than all of a window at once, whose encodings fill the caches.
TOKENIZED_TEXTS = 256
# Texts of a batch on a CPU, where its tokens allow so many: nobody waits for the first of them (docs/decisions/0016).
CPU_ROWS = 64
# What a runner warms up with is of texts as long as this.
WARM_UP_LENGTH = 32
NO_IDS: Ids = np.zeros(0, np.int32)


def with_bulk_batches(settings: Settings, device: str) -> Settings:
    """The settings, with larger batches for ONNX Runtime on a CPU; a GPU's shapes are made for its settings."""
    if settings.runner != "onnx" or device != "cpu":
        return settings
    return msgspec.structs.replace(settings, max_batch_rows=max(settings.max_batch_rows, CPU_ROWS))


class Local:
    """A Backend around a runner. Batches are those that the settings bound, of texts of a window sorted by length.

    It takes the process for itself: how threads share the interpreter, and how texts are tokenized.
    """

    status = ""

    def __init__(self, settings: Settings, bundle: Bundle, runner: Runner) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)
        # Rows come and go by thousands and hold no cycles: collections would find nothing, again and again.
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        # On a CPU the cores are the lanes'; a GPU waits for texts, and its machine's cores for work.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if runner.device == "cpu" else "true")
        self.dim = bundle.dim
        self.workers = runner.lanes
        self.identity = {
            "model": f"{bundle.id} {bundle.fingerprint[:16]}",
            "precision": f"{runner.precision} on {runner.device}",
        }
        self.prompts = frozenset(bundle.prompts)
        self._bundle = bundle
        self._runner = runner
        self._most_rows = settings.max_batch_rows
        self._most_tokens = settings.max_batch_tokens
        self._tokenizer = Tokenizer(bundle.path(TOKENIZER), bundle.max_tokens, settings.max_chars)
        # One piece, of which each lane has its part: a GPU's runner page-locks it as a whole.
        rows = np.zeros((self.workers * self._most_rows, bundle.dim), np.float32)
        runner.warm_up(rows[: min(self._most_rows, max(1, self._most_tokens // WARM_UP_LENGTH))])
        self._parts = np.split(rows, self.workers)

    def plan(self, window: Window) -> list[Job]:
        """Tokenize, sort by length, the longest first, and cut into batches."""
        ids: list[Ids] = [NO_IDS] * len(window.texts)
        for terms, texts in window.by_terms().items():
            name = terms.prompt_name if terms.prompt_name is not None else self._bundle.default_prompt_name
            prompt = self._bundle.prompts[name] if name is not None else ""
            found = self._tokenize(window, texts, prompt, truncate=terms.truncate)
            window.truncated += found.truncated
            for text, its_ids in zip(texts, found.texts, strict=True):
                ids[text] = its_ids
        window.vectors = np.full((len(ids), self.dim), np.nan, np.float32)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        window.tokens[:] = lengths
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        return [Job(window, batch, [ids[text] for text in batch]) for batch in self._cut(order, lengths)]

    @contextmanager
    def worker(self, number: int) -> Iterator[Callable[[Job], int]]:
        """See Backend."""
        part: Rows = self._parts[number]

        def run(job: Job) -> int:
            rows = part[: len(job.ids)]
            try:
                self._runner.run(job.ids, rows)
            except Exception as error:  # whatever it is, it is these texts' alone
                self._run_apart(job, part, error)
                return 0
            job.window.vectors[job.texts] = rows
            for at in np.flatnonzero(~np.isfinite(rows).all(axis=1)):
                job.window.faults[int(job.texts[at])] = Fault(
                    "the model gave something that is not a number", 500, "engine_failure"
                )
            return 0

        yield run

    def close(self) -> None:
        """See Backend."""
        self._tokenizer.close()

    def _run_apart(self, job: Job, part: Rows, error: Exception) -> None:
        """Find out which text of a batch makes it fail."""
        if len(job.ids) == 1:
            job.window.faults[int(job.texts[0])] = Fault(f"the model failed on it ({error})", 500, "engine_failure")
            return
        for text, ids in zip(job.texts, job.ids, strict=True):
            alone = Job(job.window, np.array([text]), [ids])
            try:
                self._runner.run(alone.ids, part[:1])
                job.window.vectors[text] = part[0]
            except Exception as its_own:
                self._run_apart(alone, part, its_own)

    def _tokenize(self, window: Window, texts: Sequence[int], prompt: str, *, truncate: bool) -> Tokens:
        """The ids of these texts; none for one that is too long, which has a fault then."""
        found, truncated = [], 0
        for first in range(0, len(texts), TOKENIZED_TEXTS):
            part = self._tokenize_some(window, texts[first : first + TOKENIZED_TEXTS], prompt, truncate)
            found += part.texts
            truncated += part.truncated
        return Tokens(found, truncated)

    def _tokenize_some(self, window: Window, texts: Sequence[int], prompt: str, truncate: bool) -> Tokens:
        """At once; where one is too long, each half, down to the one."""
        try:
            return self._tokenizer.encode_here([prompt + window.texts[text] for text in texts], truncate=truncate)
        except InputTooLong as error:
            if len(texts) == 1:
                window.faults[texts[0]] = Fault(error.message.replace("Text 0", "it", 1), 400, error.code.lower())
                return Tokens([NO_IDS], 0)
        middle = len(texts) // 2
        halves = [self._tokenize_some(window, half, prompt, truncate) for half in (texts[:middle], texts[middle:])]
        return Tokens(halves[0].texts + halves[1].texts, halves[0].truncated + halves[1].truncated)

    def _cut(self, order: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Batches of neighbours; of one length, where the runner does not mix them."""
        mixes = self._runner.mixes_lengths
        for _, group in itertools.groupby(order, key=lambda text: 0 if mixes else int(lengths[text])):
            texts = np.fromiter(group, np.int64)
            first = 0
            while first < len(texts):
                # The first is the longest.
                most = min(self._most_rows, max(1, self._most_tokens // int(lengths[texts[first]])))
                yield texts[first : first + most]
                first += most
