"""Load from several processes at once, for servers that one generator cannot fill.

Each process has connections, requests and a part of the schedule of its own, and is told what to do over its standard
input; all begin together. `python -m perf.fleet` is one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

import msgspec
import numpy as np
import uvloop

from perf.answers import Answers
from perf.http import Target
from perf.load import Generator
from perf.loops import LEAD_NS, Window
from perf.pacing import Schedule
from perf.record import Report, Run, merge
from perf.stack import ROOT

GO = b"go\n"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is to send; without a schedule (int64 ns) it is a closed loop."""

    target: Target
    requests: list[bytes]
    connections: int
    seconds: float
    warm_up: float
    schedule: bytes | None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A process's Run and Answers on the wire."""

    report: Report
    latencies: bytes
    lags: bytes
    by_port: dict[int, int]
    heads: list[bytes]
    times: bytes


def orders(
    target: Target,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    warm_up: float,
    schedule: Schedule | None,
    processes: int,
) -> list[Order]:
    """Share the work out: every n-th request, departure and connection to each."""
    return [
        Order(
            target=target,
            requests=list(requests[n::processes]),
            connections=len(range(n, connections, processes)),
            seconds=seconds,
            warm_up=warm_up,
            schedule=None if schedule is None else schedule[n::processes].tobytes(),
        )
        for n in range(processes)
    ]


class Fleet:
    """The processes: connected once it is made, and gone at the end; a context manager. `pids` by name."""

    def __init__(self, given: Sequence[Order]) -> None:
        self._given = given
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Fleet:
        with contextlib.ExitStack() as ends:
            for order in self._given:
                process = ends.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-m", "perf.fleet"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                    )
                )
                ends.callback(process.kill)
                self._processes.append(process)
                _send(_pipe(process.stdin), msgspec.msgpack.encode(order))
            for process in self._processes:
                if _pipe(process.stdout).readline() != GO:
                    raise RuntimeError("A load generator did not connect; its output above says why.")
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    @property
    def pids(self) -> Mapping[str, int]:
        """For a meter."""
        return {f"generator-{n}": process.pid for n, process in enumerate(self._processes)}

    def run(self, window: Window) -> tuple[Run, Answers]:
        """Begin, call `window` at both ends of the measured span, and gather what was measured."""
        for process in self._processes:
            _pipe(process.stdin).write(GO)
            _pipe(process.stdin).flush()
        time.sleep(LEAD_NS / 1e9 + self._given[0].warm_up)
        window(True)
        time.sleep(self._given[0].seconds)
        window(False)
        found = [msgspec.msgpack.decode(_receive(_pipe(each.stdout)), type=Answer) for each in self._processes]
        answers = Answers()
        for one in found:
            answers.heads.extend(one.heads)
            answers.times.frombytes(one.times)
        return merge([_run(one) for one in found]), answers


def _run(answer: Answer) -> Run:
    latencies, lags = (np.frombuffer(times, np.int64) for times in (answer.latencies, answer.lags))
    return Run(answer.report, latencies, answer.by_port, lags)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _send(pipe: IO[bytes], data: bytes) -> None:
    rest = memoryview(len(data).to_bytes(8, "little") + data)
    # Where Python runs unbuffered, a write takes what the pipe has room for.
    while rest:
        rest = rest[pipe.write(rest) :]
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    length = int.from_bytes(pipe.read(8), "little")
    data = pipe.read(length)
    if not length or len(data) < length:
        raise RuntimeError("A load generator has ended without a result; its output above says why.")
    return data


async def _work(order: Order, answers: Answers) -> Run:
    async with Generator(order.target, order.connections) as generator:
        # Connected: wait for the others.
        sys.stdout.buffer.write(GO)
        sys.stdout.buffer.flush()
        await asyncio.to_thread(sys.stdin.buffer.readline)
        if order.schedule is None:
            return await generator.closed(order.requests, order.seconds, warm_up=order.warm_up, check=answers)
        schedule = np.frombuffer(order.schedule, np.int64)
        return await generator.open(order.requests, schedule, warm_up=order.warm_up, check=answers)


def main() -> int:
    """One process: read the order, connect, wait for the word, run, write what was measured."""
    order = msgspec.msgpack.decode(_receive(sys.stdin.buffer), type=Order)
    answers = Answers()
    run = uvloop.run(_work(order, answers))
    answer = Answer(
        report=run.report,
        latencies=run.latencies.tobytes(),
        lags=run.lags.tobytes(),
        by_port=run.by_port,
        heads=answers.heads,
        times=answers.times.tobytes(),
    )
    _send(sys.stdout.buffer, msgspec.msgpack.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
