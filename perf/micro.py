"""What each step of a request costs by itself, in µs of CPU time for an item, and each half of a server alone.

python -m perf.micro
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, cast

import msgspec
import numpy as np

from engine.queue import Item
from engine.scheduler import Limits, Scheduler
from engine.slots import Slots
from frontend.cache import ENTRY_BYTES, CachedEngine, VectorCache
from frontend.client import EngineClient
from frontend.flight import Call, Take
from frontend.responses import base64_vector, json_vector
from frontend.tokenizer import Tokenizer
from ipc import messages
from ipc.bundle import TOKENIZER, Bundle, load_bundle
from ipc.messages import Ids, Status, Submission
from ipc.priority import Priority
from ipc.settings import DEFAULT_MODEL
from ipc.slab import FREE, Epoch, Row
from perf.halves import Half, measure_half
from perf.results import ROOT, make_result, save_result
from perf.stats import Spread, spread
from perf.texts import exact_texts
from tools.prepare import ensure_bundle

BATCH: Final = 16
WAITING: Final = 64
DIM: Final = 384
SLAB_ROWS: Final = 8192
REPEATS: Final = 9
REPEAT_NS: Final = 30_000_000
PER_CORE_TARGET: Final = 3000
ENGINE_TARGET_US: Final = 25
EPOCH: Final = Epoch(1)
# Entries of a cache; as many as 16 MiB hold.
FULL_CACHE: Final = 9000


class Step(msgspec.Struct, frozen=True):
    """A piece of work on `items` items at a time."""

    items: int
    work: Callable[[], object]


class Micro(msgspec.Struct, frozen=True):
    """`steps` in µs for an item; `frontend` with an engine that answers at once, `engine` with a model that does."""

    steps: dict[str, Spread]
    frontend: Half
    engine: Half


def cost_us(step: Step) -> Spread:
    """CPU time for an item, over several repeats that are long against the clock."""
    runs = 1
    while _cpu_ns(step.work, runs) < REPEAT_NS:
        runs *= 2
    return spread([_cpu_ns(step.work, runs) / runs / step.items / 1e3 for _ in range(REPEATS)])


def all_steps(bundle: Bundle) -> dict[str, Step]:
    """In the order in which a request meets them."""
    # As front ends do: other threads' time would not be seen here.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer(bundle.path(TOKENIZER), bundle.max_tokens, max_chars=65_536)
    vector = np.random.default_rng(1).normal(size=DIM).astype(np.float32)
    vector /= np.linalg.norm(vector)
    return {
        "tokenize 1 text of 16 tokens": _tokenize(tokenizer, 16, 1),
        "tokenize 32 texts of 16 tokens": _tokenize(tokenizer, 16, 32),
        "tokenize 1 text of 128 tokens": _tokenize(tokenizer, 128, 1),
        **{f"{name}, {count} a message": step for count in (1, BATCH) for name, step in _messages(count).items()},
        "cache, a miss and keeping its vector": _cache(vector, is_hit=False),
        "cache, a hit": _cache(vector, is_hit=True),
        f"scheduler add and next_batch, batches of {BATCH}": Step(WAITING, schedule),
        f"slots find, lend and free, batches of {BATCH}": _slots(),
        "encode a vector as JSON": Step(1, lambda: json_vector(vector)),
        "encode a vector as base64": Step(1, lambda: base64_vector(vector)),
    }


def schedule() -> None:
    """64 texts of one length arrive, and leave in full batches."""
    scheduler = Scheduler(Limits(rows=BATCH, tokens=2048, max_wait=0, queue_items=16_384))
    ids = np.zeros(16, np.int32)
    for sequence in range(WAITING):
        scheduler.add(Item(7, sequence, ids, Priority.INTERACTIVE, 1 << 62, 0))
    while scheduler:
        scheduler.next_batch(1, idle=True)


def _tokenize(tokenizer: Tokenizer, tokens: int, count: int) -> Step:
    texts = exact_texts(tokens, count)
    encode = tokenizer.encode

    def work() -> None:
        # Driven by hand: short texts never wait, so no event loop is needed.
        try:
            encode(texts, truncate=False).send(None)
        except StopIteration:
            return
        raise AssertionError("these texts are short enough to be tokenized at once")

    return Step(count, work)


def _messages(count: int) -> dict[str, Step]:
    items = [Submission(n + 1, 1 << 62, 0, np.zeros(16, np.int32)) for n in range(count)]
    results = [(n + 1, n, int(Status.OK), 0) for n in range(count)]
    submit, reply = messages.submit(items, EPOCH), messages.reply(results, 0, EPOCH)
    return {
        "SUBMIT": Step(count, lambda: messages.submit(items, EPOCH)),
        "parse SUBMIT": Step(count, lambda: messages.parse_submit(submit, messages.parse_header(submit))),
        "REPLY": Step(count, lambda: messages.reply(results, 0, EPOCH)),
        "parse REPLY": Step(count, lambda: messages.parse_reply(reply, messages.parse_header(reply))),
    }


class Instant:
    """An engine's client that has the vector at once: what is left is what the cache adds."""

    shared = 0
    keep: Callable[[bytes, Row], None]

    def __init__(self, vector: Row) -> None:
        self._vector = vector

    async def embed(self, texts: Sequence[Ids], take: Take, *, keys: Sequence[bytes], **_: object) -> Call:
        """Both uses of the vector, and a finished call."""
        self.keep(keys[0], self._vector)
        return Call(take, [take(self._vector)], 0, done=None, deadline_ns=0)  # type: ignore[arg-type] # nobody waits


def _cache(vector: Row, *, is_hit: bool) -> Step:
    """One text, with an encoder that costs nothing; a full cache, so that a vector that is kept drops another."""
    cache = VectorCache(FULL_CACHE * (vector.nbytes + ENTRY_BYTES))

    async def make() -> CachedEngine:
        return CachedEngine(cast(EngineClient, Instant(vector)), cache, "fingerprint")

    # It is made where a loop runs; nothing of what is measured needs one.
    cached = asyncio.run(make())
    ids = np.zeros(16, np.int32)
    turns = itertools.count()

    def work() -> None:
        if not is_hit:
            ids[1] = next(turns)
        try:
            cached.embed([ids], _no_bytes, deadline_ns=0, priority=Priority.INTERACTIVE).send(None)
        except StopIteration:
            return
        raise AssertionError("there is nothing to wait for")

    for _ in range(FULL_CACHE + 1):
        work()
    return Step(1, work)


def _no_bytes(row: Row) -> bytes:
    return b""


def _slots() -> Step:
    leases = np.zeros(SLAB_ROWS, np.uint32)
    slots = Slots(leases, np.zeros(SLAB_ROWS, np.uint64), share=SLAB_ROWS // 2)
    sequences = list(range(1, BATCH + 1))

    def work() -> None:
        first = slots.find(BATCH)
        assert first is not None
        slots.over_share()
        slots.compute(first, sequences)
        for row in range(first, first + BATCH):
            slots.lend(row, 7)
        leases[first : first + BATCH] = FREE

    return Step(BATCH, work)


def _cpu_ns(work: Callable[[], object], runs: int) -> int:
    began = time.thread_time_ns()
    for _ in range(runs):
        work()
    return time.thread_time_ns() - began


def measure(seconds: float) -> Micro:
    """All of it."""
    bundle = load_bundle(ensure_bundle(DEFAULT_MODEL, ROOT / "data"), verify=False)
    steps = {}
    for name, step in all_steps(bundle).items():
        steps[name] = cost_us(step)
        print(f"{steps[name].median:8.2f} us  {name}", flush=True)
    return Micro(steps, measure_half("echo", seconds), measure_half("null", seconds))


def _verdict(micro: Micro) -> str:
    frontend, engine = micro.frontend, micro.engine
    lines = (
        (
            frontend.per_core >= PER_CORE_TARGET,
            f"a front end: {frontend.per_core:.0f} requests/s a core",
            PER_CORE_TARGET,
        ),
        (engine.engine_us <= ENGINE_TARGET_US, f"the engine: {engine.engine_us:.1f} us a text", ENGINE_TARGET_US),
    )
    return "\n".join(f"{'PASS' if ok else 'MISSED'}: {text}, target {target}" for ok, text, target in lines)


def main() -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m perf.micro", description="What each step of a request costs.")
    parser.add_argument("--seconds", type=float, default=5, help="for each half of a server")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    micro = measure(options.seconds)
    print(_verdict(micro))
    if not options.no_save:
        command = f"python -m perf.micro --seconds {options.seconds:g}"
        print(save_result(make_result("micro", command, {}, micro)).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
