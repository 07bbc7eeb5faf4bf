"""The engine swapped from one model to another under load: no request fails, and no vector is another model's."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from frontend.rpc.protos import embedlane_pb2 as own
from perf.gpu.parts import Shape
from perf.other_model import other_bundle
from perf.results import ROOT
from perf.stack import KEY, Stack, free_port
from tests.chaos.load import Load
from tests.system.processes import is_tidy, wait_for
from tests.system.reference import load_references
from tests.system.wire import Connection, fetch_bits

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"
SMALL = Shape(layers=1, hidden=32, heads=2)


@pytest.fixture(scope="module")
def served() -> Iterator[Stack]:
    """With a cache, which must not mix the models either, and gRPC."""
    with Stack(frontends=2, cache_mb=8, grpc_port=free_port()) as stack:
        yield stack
        print(stack.log.read_text(errors="replace")[-20_000:])


@pytest.fixture(scope="module")
def other(served: Stack) -> Path:
    """A bundle with another vocabulary, other vectors, and fewer numbers in each."""
    return other_bundle(Path(served.env["EMBEDLANE_MODEL"]), served.folder / "other", SMALL)


def swap(stack: Stack, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.swap", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=False)


def served_models(stack: Stack) -> set[str]:
    """What `/ready` says; asked more often than there are front ends."""
    found = set()
    for _ in range(16):
        wait_for(lambda: stack.status("/ready") == 200, "ready")
        with urllib.request.urlopen(f"{stack.url}/ready") as answer:  # noqa: S310 - our own http URL
            found.add(json.load(answer)["model"])
    return found


def bits_now(stack: Stack) -> dict[str, bytes]:
    async def ask() -> dict[str, bytes]:
        async with await Connection.open(stack.port) as connection:
            return {r.text: await fetch_bits(connection, r.text) for r in load_references() if r.text}

    return asyncio.run(ask())


class Stream:
    """One gRPC stream of texts from another thread while the `with` block lasts; `wrong` has what should not be."""

    def __init__(self, port: int, bits: Mapping[str, Mapping[str, bytes]]) -> None:
        self._bits = bits
        self._texts = [*next(iter(bits.values()))]
        self._asked: deque[str] = deque()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._thread = threading.Thread(target=self._run, name="stream")
        self._stop = threading.Event()
        self.models: Counter[str] = Counter()
        self.wrong: list[object] = []

    def _requests(self) -> Iterator[own.EmbedStreamRequest]:
        while not self._stop.wait(0.005):
            text = self._texts[self.models.total() % len(self._texts)]
            self._asked.append(text)
            yield own.EmbedStreamRequest(id=text, text=text, truncate=True)

    def _run(self) -> None:
        method: Any = self._channel.stream_stream(
            "/embedlane.v1.Embeddings/EmbedStream",
            own.EmbedStreamRequest.SerializeToString,
            own.EmbedStreamResponse.FromString,
        )
        try:
            for answer in method(self._requests(), metadata=(("x-api-key", KEY),)):
                self.models[answer.model] += 1
                self._asked.remove(answer.id)
                if answer.embedding != self._bits.get(answer.model, {}).get(answer.id):
                    self.wrong.append(answer)
        except grpc.RpcError as error:
            self.wrong.append(error)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._channel.close()
        self.wrong += self._asked


def test_each_answer_is_of_the_model_it_names_and_none_is_lost(
    served: Stack, other: Path, bits: dict[str, bytes]
) -> None:
    first = Path(served.env["EMBEDLANE_MODEL"])
    frontends = served.pids("frontend")
    assert swap(served, other).returncode == 0
    (name,) = served_models(served)
    others = {name: bits_now(served)}
    assert {len(vector) for vector in others[name].values()} == {4 * SMALL.hidden}
    grpc_port = int(served.env["EMBEDLANE_GRPC_PORT"])
    with (
        Stream(grpc_port, {DEFAULT: bits, **others}) as stream,
        Load(served.port, bits, connections=16, others=others) as load,
    ):
        for model, verdict in ((first, "right"), (other, f"right for {name}"), (None, f"right for {name}")):
            before = load.counts()[verdict]
            wait_for(lambda: len(load.outcomes) > 64, "answers before the swap")
            done = swap(served, *([model] if model else []))
            assert done.returncode == 0, done.stderr
            assert "serving    " in done.stdout
            wait_for(lambda: load.counts()[verdict] > before + 64, "answers after the swap")  # noqa: B023
    assert set(load.counts()) == {"right", f"right for {name}"}
    assert (set(stream.models), stream.wrong) == ({DEFAULT, name}, [])
    assert load.refused == 0
    assert served.pids("frontend") == frontends
    assert len(served.pids("engine")) == 1
    assert swap(served, first).returncode == 0
    assert served_models(served) == {DEFAULT}
    assert bits_now(served) == bits
    # A front end that is started now reads for the chosen model as well, and nothing is left of the engines before.
    wait_for(lambda: is_tidy(served, frontends=3), "only files of the living")


def test_an_engine_that_cannot_load_changes_nothing(served: Stack, other: Path, tmp_path: Path) -> None:
    before, models = served.pids("engine"), served_models(served)
    broken = tmp_path / "broken"
    shutil.copytree(other, broken)
    graph = broken / "model.fp32.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    done = swap(served, broken)
    assert done.returncode == 3
    assert "serves on as it was" in done.stderr
    assert served.process is not None
    assert served.process.poll() is None
    assert (served.pids("engine"), served_models(served)) == (before, models)
    assert not (served.run_dir / "model.new").exists()


def test_without_a_server_it_says_so(served: Stack, tmp_path: Path) -> None:
    env = served.env | {"EMBEDLANE_RUN_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tools.swap"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "No server runs in" in done.stderr
