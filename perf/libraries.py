"""What a program waits for one vector that asks with a library: the server's time and the library's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import grpc
import httpx
import msgspec
import numpy as np
import openai

from frontend.rpc.protos.embedlane_pb2 import EmbedRequest, EmbedResponse
from perf.http2 import PATH
from perf.stack import KEY
from perf.stats import Spread, percentiles, spread

LEAST_ANSWERS: Final = 20

# Asks for one text's vector and has it as numbers.
Ask = Callable[[str], object]


class Library(msgspec.Struct, frozen=True):
    """One text a request, one after another: times in ms; CPU of the asking process in µs a request."""

    p50_ms: Spread
    p99_ms: Spread
    client_us: Spread
    p50_of_openai: Spread


@contextmanager
def libraries(url: str, grpc_address: str) -> Iterator[dict[str, Ask]]:
    """Clients of both, each with one connection that is kept."""
    with ExitStack() as ends:
        own = ends.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key=KEY))
        headers = {"Authorization": f"Bearer {KEY}", "Accept": "application/octet-stream"}
        raw = ends.enter_context(httpx.Client(base_url=url, headers=headers))
        channel = ends.enter_context(grpc.insecure_channel(grpc_address))
        call: Any = channel.unary_unary(PATH, EmbedRequest.SerializeToString, EmbedResponse.FromString)
        key = (("authorization", f"Bearer {KEY}"),)
        yield {
            "openai": lambda text: own.embeddings.create(model="any", input=text).data[0].embedding,
            "httpx, raw": lambda text: np.frombuffer(
                raw.post("/v1/embeddings", json={"input": text}).raise_for_status().content, "<f4"
            ),
            "grpcio": lambda text: np.frombuffer(call(EmbedRequest(texts=[text]), metadata=key).embeddings, "<f4"),
        }


def measure_libraries(
    url: str, grpc_address: str, texts: Sequence[str], rounds: int, seconds: float
) -> dict[str, Library]:
    """All of them in turns."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    with libraries(url, grpc_address) as asks:
        for _ in range(rounds + 1):
            for name, ask in asks.items():
                found.setdefault(name, []).append(_ask_for(ask, texts, seconds))
    # The first round is warm-up.
    rows = {name: each[1:] for name, each in found.items()}
    return {
        name: Library(
            p50_ms=spread([p50 for p50, _, _ in each]),
            p99_ms=spread([p99 for _, p99, _ in each]),
            client_us=spread([cpu for _, _, cpu in each]),
            p50_of_openai=spread([own[0] / base[0] for own, base in zip(each, rows["openai"], strict=True)]),
        )
        for name, each in rows.items()
    }


def _ask_for(ask: Ask, texts: Sequence[str], seconds: float) -> tuple[float, float, float]:
    """p50 and p99 in ms, CPU in µs a request; longer than `seconds` where there were too few answers by then."""
    times: list[int] = []
    began, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds or len(times) < LEAST_ANSWERS:
        at = time.monotonic_ns()
        ask(texts[len(times) % len(texts)])
        times.append(time.monotonic_ns() - at)
    cpu = time.process_time() - cpu
    of = percentiles(np.array(times, np.int64))
    assert of is not None, "there were answers"
    return of.p50, of.p99, cpu / len(times) * 1e6
