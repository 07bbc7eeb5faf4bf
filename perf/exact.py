"""The same text, the same bits: under several loads each vector is compared with that of the bare model run alone."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from perf.http import Connection
from perf.load import build_requests
from perf.pacing import make_schedule
from perf.phases import OPEN_CONNECTIONS, Server

_EMBEDDING: Final = re.compile(rb'"embedding":"([^"]+)"')
# Connections and texts a request, each a closed loop.
LOADS: Final = ((1, 1), (64, 1), (4, 32))


class Exactness(msgspec.Struct, frozen=True):
    """How many vectors came back under each load, and how many of them had other bits."""

    texts: int
    vectors: dict[str, int]
    different: dict[str, int]


class Comparison:
    """A Check of requests with so many texts each, sent round and round; `expected` are the vectors' bytes."""

    def __init__(self, expected: Sequence[bytes], per_request: int) -> None:
        encoded = [base64.b64encode(vector) for vector in expected]
        starts = range(0, len(encoded) - per_request + 1, per_request)
        self._expected = [encoded[n : n + per_request] for n in starts]
        self.vectors = self.different = 0

    def __call__(self, connection: Connection) -> bool:
        """Whether all vectors of the answer are right, bit for bit."""
        expected = self._expected[connection.number % len(self._expected)]
        found = _EMBEDDING.findall(connection.body)
        same: int = sum(one == other for one, other in zip(found, expected, strict=False))
        self.vectors += len(expected)
        self.different += len(expected) - same
        return same == len(expected)


def measure_exactness(
    server: Server, texts: Sequence[str], expected: Sequence[bytes], seconds: float, rate: float
) -> Exactness:
    """Every load for so many seconds; `rate` is the open loop's, in requests per second."""
    vectors, different = {}, {}
    for connections, per_request in (*LOADS, (OPEN_CONNECTIONS, 1)):
        is_open = connections == OPEN_CONNECTIONS
        compare = Comparison(expected, per_request)
        requests = build_requests(server.target, list(texts), per_request, encoding_format="base64")
        schedule = make_schedule("poisson", rate, seconds) if is_open else None
        least = seconds
        # On a slow machine a short span may end before the first answer.
        while not compare.vectors:
            server.run(requests, connections, least, warm_up=0, schedule=schedule, texts=per_request, check=compare)
            least *= 2
        name = f"open loop, {rate:g} requests/s" if is_open else f"{connections} connections × {per_request}"
        vectors[name], different[name] = compare.vectors, compare.different
    return Exactness(len(texts), vectors, different)
