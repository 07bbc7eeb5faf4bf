"""mosec with a tuned worker: our own fused graph, batches of one length, one thread a process.

Runs in mosec's environment:

python -m perf.peers.mosec_worker --address 127.0.0.1 --port PORT, with PEER_GRAPH, PEER_TOKENIZER and PEER_BATCH set
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
from mosec import Server, Worker
from mosec.errors import ValidationError
from tokenizers import Tokenizer

MAX_TOKENS = 256
# Texts in a run of the model, and requests in a batch of mosec's.
ROWS = 8
BATCH = int(os.environ["PEER_BATCH"])
# Under load a batch fills at once; alone, a request pays this in vain.
WAIT_MS = 1
WORKERS = len(os.sched_getaffinity(0))


class Embedder(Worker):  # type: ignore[misc]
    """OpenAI's request in, OpenAI's answer out; the texts of a batch are run together where they have one length."""

    def __init__(self) -> None:
        super().__init__()
        self._tokenizer = Tokenizer.from_file(os.environ["PEER_TOKENIZER"])
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False
        self._session = ort.InferenceSession(
            os.environ["PEER_GRAPH"],
            options,
            providers=["CPUExecutionProvider"],
            # As in engine/runners/onnx.py.
            disabled_optimizers=["SkipLayerNormFusion"],
        )

    def deserialize(self, data: bytes) -> list[str]:
        """The texts of a request."""
        texts = orjson.loads(data).get("input")
        if not isinstance(texts, str | list) or not texts:
            raise ValidationError("input must be a text or a list of texts")
        return [texts] if isinstance(texts, str) else texts

    def forward(self, data: Any) -> Any:
        """The answers to a batch of requests; mosec gives a request alone where a batch is of one."""
        return self._embed(data) if BATCH > 1 else self._embed([data])[0]

    def _embed(self, data: list[list[str]]) -> list[dict[str, Any]]:
        encodings = self._tokenizer.encode_batch_fast([text for texts in data for text in texts])
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for place, encoding in enumerate(encodings):
            by_length[len(encoding.ids)].append(place)
        vectors: list[Any] = [None] * len(encodings)
        for places in by_length.values():
            for first in range(0, len(places), ROWS):
                part = places[first : first + ROWS]
                ids = np.array([encodings[place].ids for place in part], np.int32)
                for place, vector in zip(part, self._session.run(None, {"input_ids": ids})[0], strict=True):
                    vectors[place] = vector
        rows = iter(zip(encodings, vectors, strict=True))
        return [_answer([next(rows) for _ in texts]) for texts in data]

    def serialize(self, data: dict[str, Any]) -> bytes:
        """JSON, numbers straight from the arrays."""
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)


def _answer(rows: list[tuple[Any, Any]]) -> dict[str, Any]:
    tokens = sum(len(encoding.ids) for encoding, _ in rows)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": n, "embedding": vector} for n, (_, vector) in enumerate(rows)],
        "model": "all-MiniLM-L6-v2",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


if __name__ == "__main__":
    server = Server()
    server.append_worker(Embedder, num=WORKERS, max_batch_size=BATCH, max_wait_time=WAIT_MS, route="/v1/embeddings")
    server.run()
