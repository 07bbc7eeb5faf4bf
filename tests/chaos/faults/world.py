"""The server under faults: what it is asked, what each text's vector is, and when it is whole again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xmlrpc.client import Fault

import numpy as np
import psutil
import tokenizers

from engine.runners.onnx import OnnxRunner
from ipc.bundle import TOKENIZER, Bundle, load_bundle
from ipc.settings import DEFAULT_MODEL
from perf.redis_server import RedisServer, redis_binary
from perf.stack import ROOT, Stack
from perf.texts import make_texts
from tests.system.processes import boot_clock, clients_of, frontend_ids, wait_for
from tests.system.wire import Connection, ConnectionLost, openai_bits, openai_body
from tools.prepare import ensure_bundle

FRONTENDS = 3
# As many vectors as three caches of a MiB do not hold, so that the engine has work and Redis is asked.
TEXTS = 1500
# Room for the slab, the limits' table and metrics, and little else.
TMPFS_MIB = 40
PROBE_SECONDS = 3.0
# A fault after which nothing works for so long has found something.
RECOVERY_SECONDS = 60.0
# A little less than EMBEDLANE_ENGINE_GRACE_MS is by default: a request counts from a moment that a fault does not know.
GRACE_SECONDS = 9.0


class Alone:
    """Each text's vector by the bare model, run alone on this CPU: what every answer is compared with."""

    def __init__(self, bundle: Bundle) -> None:
        self._runner = OnnxRunner(bundle, "cpu", lanes=1)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER)))
        self._row = np.zeros((1, bundle.dim), np.float32)
        # Probes and load ask from two threads.
        self._lock = threading.Lock()

    def bits(self, text: str) -> bytes:
        """Float32 [dim] as bytes."""
        ids = np.array(self._tokenizer.encode(text).ids, np.int32)
        with self._lock:
            self._runner.run([ids], self._row)
            return self._row.tobytes()


@dataclass
class World:
    """A running server with what was done to it; moments and spans are on CLOCK_BOOTTIME.

    `severed` has the client's port and the moment of each connection that a killed front end had, `outages` the spans
    in which there was no listening socket, `starved` those in which a front end could accept no connection, `deaths`
    the moments at which engines were killed, `away` the spans in which no text got a vector for longer than requests
    wait for an engine.
    """

    stack: Stack
    redis: RedisServer | None
    alone: Alone
    bits: dict[str, bytes]
    chance: random.Random
    is_tmpfs_own: bool
    severed: list[tuple[int, float]] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    starved: list[tuple[float, float]] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)
    away: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left_open: list[object] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def frontends(self) -> list[int]:
        """Their pids."""
        return self.stack.pids("frontend")

    def engine(self) -> int:
        """Its pid."""
        return self.stack.pids("engine")[0]

    def kill_frontend(self, pid: int) -> None:
        """kill -9, with the connections it had noted."""
        # Stopped first, so that it accepts none between the look and the kill.
        os.kill(pid, signal.SIGSTOP)
        moment = boot_clock()
        self.severed += [(port, moment) for port in clients_of(pid)]
        os.kill(pid, signal.SIGKILL)

    def kill_engine(self) -> None:
        """kill -9."""
        self.deaths.append(boot_clock())
        os.kill(self.engine(), signal.SIGKILL)

    def new_text(self) -> str:
        """One that nobody has asked for, so that no cache has it."""
        return f"probe number {next(self._numbers)} {secrets.token_hex(4)}"

    def is_whole(self) -> bool:
        """Whether all processes run, and each front end holds a lock that the engine can see."""
        return self.is_anew(())

    def is_anew(self, old: Iterable[int]) -> bool:
        """The same, and none of them is one of these."""
        # While there is no supervisor, or it ends, nobody can be asked.
        with contextlib.suppress(OSError, Fault):
            pids = self.stack.pids("engine") + self.stack.pids("frontend")
            locks = len(frontend_ids(self.stack.run_dir))
            return len(pids) == 1 + FRONTENDS == 1 + locks and not set(pids) & set(old)
        return False

    def answers(self) -> bool:
        """Whether a new text on a new connection gets its vector; a wrong one is noted."""
        text = self.new_text()
        try:
            vector = asyncio.run(self._ask(text))
        except (OSError, ConnectionLost, TimeoutError, AssertionError):
            return False
        if vector != self.alone.bits(text):
            self.wrong.append(text)
        return True

    def recover(self, since: float) -> tuple[float, float]:
        """Seconds from that moment until a new text got its vector, and until all processes were there."""
        wait_for(self.answers, "an answer after a fault", RECOVERY_SECONDS)
        answered = boot_clock()
        if answered - since > GRACE_SECONDS:
            self.away.append((since, answered))
        wait_for(self.is_whole, "all processes after a fault", RECOVERY_SECONDS)
        return answered - since, boot_clock() - since

    async def _ask(self, text: str) -> bytes:
        async with asyncio.timeout(PROBE_SECONDS), await Connection.open(self.stack.port) as connection:
            return openai_bits(await connection.post("/v1/embeddings", openai_body([text])))[0]


@contextlib.contextmanager
def start_world(seed: int, texts: int = TEXTS, **settings: object) -> Iterator[World]:
    """A server with three front ends, Redis where there is one, and a run directory on a tmpfs of its own for root."""
    with contextlib.ExitStack() as ends:
        model = ensure_bundle(DEFAULT_MODEL, ROOT / "data")
        alone = Alone(load_bundle(model))
        redis = ends.enter_context(RedisServer()) if _has_redis() else None
        if redis is not None:
            settings["redis_url"] = redis.url
        folder = ends.enter_context(tmpfs())
        if folder is not None:
            settings["run_dir"] = folder / "run"
        given = {"cache_mb": 1, "limit_rpm": 10**9, "slab_rows": 512} | settings
        stack = Stack(model, frontends=FRONTENDS, **given)
        stack.run_dir = folder / "run" if folder is not None else stack.run_dir
        ends.enter_context(stack)
        chosen = reference_texts(texts, seed)
        world = World(stack, redis, alone, {}, random.Random(seed), folder is not None)  # noqa: S311 - no secret
        world.bits = {text: alone.bits(text) for text in chosen}
        wait_for(world.is_whole, "all processes")
        yield world


def reference_texts(count: int, seed: int) -> Sequence[str]:
    """Mostly short ones, some of up to 256 tokens."""
    long = max(1, count // 50)
    return [*make_texts("short", count - long, seed), *make_texts("mixed", long, seed)]


@contextlib.contextmanager
def tmpfs(mib: int = TMPFS_MIB) -> Iterator[Path | None]:
    """A file system that may be filled without harm to others; None for whoever may not mount one."""
    with tempfile.TemporaryDirectory(prefix="embedlane-faults-") as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "none", name]
        if os.getuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            yield None
            return
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def supervisord_of(world: World) -> psutil.Process:
    """The supervisor that runs now."""
    assert world.stack.process is not None
    children = psutil.Process(world.stack.process.pid).children()
    return next(child for child in children if "supervisor.supervisord" in child.cmdline())


def _has_redis() -> bool:
    try:
        return bool(redis_binary())
    except ImportError:
        return False
