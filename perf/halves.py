"""Half a server, measured by itself: one front end and an engine without a model (see perf.fake_engine)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import msgspec
import uvloop

from perf.http import Target
from perf.load import Generator, build_requests
from perf.procfs import Meter
from perf.stack import KEY, ROOT, Stack
from perf.texts import exact_texts

CONNECTIONS = 64
READY_SECONDS = 30


class Half(msgspec.Struct, frozen=True):
    """CPU times are µs for a request; `per_core` is how many requests a core of front end would serve in a second."""

    rate: float
    frontend_us: float
    engine_us: float
    engine_parts_us: dict[str, float]
    generator_us: float
    per_core: float
    p50_ms: float


@contextlib.contextmanager
def half_a_server(kind: str, **settings: object) -> Iterator[tuple[Target, dict[str, int]]]:
    """An engine of this kind and one front end, with `grpc_port` the one for gRPC too; gives the address and the
    processes by name.
    """
    stack = Stack(frontends=1, **settings)  # type: ignore[arg-type]
    with tempfile.TemporaryFile() as output, contextlib.ExitStack() as ends:
        ends.callback(stack.__exit__)
        # Killed processes leave their files, and here there is no supervisor to remove the folder.
        ends.callback(shutil.rmtree, stack.run_dir, ignore_errors=True)
        pids = {}
        modules = {"engine": ["perf.fake_engine", kind], "frontend-0": ["frontend"]}
        if "grpc_port" in settings:
            modules["grpc"] = ["frontend.rpc"]
        for name, module in modules.items():
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", *module],
                cwd=ROOT,
                env=stack.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            ends.callback(process.wait)
            ends.callback(process.kill)
            pids[name] = process.pid
        _wait_ready(stack.url)
        yield Target("127.0.0.1", stack.port, KEY), pids


def measure_half(kind: str, seconds: float, *, texts: int = 1, **settings: object) -> Half:
    """A closed loop that keeps the front end busy."""
    with half_a_server(kind, **settings) as (target, pids):
        meter = Meter(pids)
        requests = build_requests(target, exact_texts(16, 8192), texts)

        async def load() -> tuple[float, float]:
            async with Generator(target, CONNECTIONS, meter.window) as generator:
                report = (await generator.closed(requests, seconds)).report
                assert not report.errors and report.latency_ms is not None
                return report.achieved_rate, report.latency_ms.p50

        rate, p50 = uvloop.run(load())
    done = rate * meter.usage.seconds / 1e6
    frontend = meter.usage.cpu["frontend-0"] / done
    return Half(
        rate=rate,
        frontend_us=frontend,
        engine_us=meter.usage.cpu["engine"] / done,
        engine_parts_us={part: used / done for part, used in meter.usage.parts.items()},
        generator_us=meter.usage.cpu["generator"] / done,
        per_core=1e6 / frontend,
        p50_ms=p50,
    )


def _wait_ready(url: str) -> None:
    give_up = time.monotonic() + READY_SECONDS
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            # Anything but 200 is raised.
            urllib.request.urlopen(f"{url}/ready", timeout=2).close()  # noqa: S310 - our own http URL
            return
        time.sleep(0.05)
    raise RuntimeError("the front end is not ready")
