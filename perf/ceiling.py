"""How near the server comes to ONNX Runtime alone: the same graph, lanes and batches, with and without a server.

Interleaved (alone, server, alone, server, ...) against one server that is warm and idle while the other runs, because
machines are noisy and drift. Each ratio compares a server phase with the mean of its two neighbours.
`perf.bench` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np

from engine.runners.onnx import OnnxRunner
from engine.scheduler import Limits
from ipc.bundle import load_bundle, locate_bundle
from ipc.settings import Settings, cores
from perf.alone import Alone, equal_batches, open_session, run_alone, single_ms, token_ids, vectors_alone
from perf.load import build_requests
from perf.phases import Phase, Server
from perf.stats import Spread, histogram, spread
from perf.texts import exact_texts, make_texts

# Share of the cores that others may have before rates mean little; then ratios are those of CPU time.
MOST_FOREIGN = 0.1
TOKENS = 16
TEXTS = 32_768
MIXED_TEXTS = 8192
SINGLE_CONNECTIONS = 64
MANY_TEXTS, MANY_CONNECTIONS = 32, 4
SMALL_BATCH = 8
LATENCY_ROUNDS = 3
EDGES_MS = (0, 2, 4, 6, 8, 10, 12, 16, 20, 30, 38, 45, 60)
# A phase of the server → the one of the runner alone that it is compared with.
BASE: Final = {"single": "alone", "many": "alone", "mixed": "alone_mixed", "equal": "alone_mixed"}


class Round(msgspec.Struct, frozen=True):
    """Every phase once. `alone_small` has batches of 8, `alone_mixed` the texts of `mixed` in full batches of one
    length each; `equal` has as many tokens as `mixed`, in texts of one length.
    """

    alone: Alone
    alone_small: Alone
    single: Phase
    many: Phase
    alone_mixed: Alone
    mixed: Phase
    equal: Phase


class OneConnection(msgspec.Struct, frozen=True):
    """One request at a time, milliseconds. The graph alone: with one thread, as the lanes have it, and with all cores.

    `histogram` shows that there are no steps of 40 ms, as there are where TCP_NODELAY is not set.
    """

    p50: Spread
    alone_one_thread: Spread
    alone_all_cores: Spread
    ratio: Spread
    histogram: dict[str, int]


class Ceiling(msgspec.Struct, frozen=True, kw_only=True):
    """The ratios, and everything they come from.

    `rates` are ratios of tokens per second, `cpu` of CPU time: that of a token alone over that of a token served, the
    load generator's included. On a machine that others use as well the CPU's decide, for a server of many threads then
    gets a larger share of the cores than the model alone.
    """

    rates: dict[str, Spread]
    cpu: dict[str, Spread]
    mixed_of_equal: Spread
    one_connection: OneConnection
    rounds: list[Round]


class Measured(Protocol):
    """What Alone and Phase have in common."""

    @property
    def texts_rate(self) -> float: ...  # noqa: D102
    @property
    def tokens_rate(self) -> float: ...  # noqa: D102
    @property
    def total_cpu_us(self) -> float: ...  # noqa: D102


class Measurement:
    """A warm server, the bare runner beside it, and the texts of both."""

    def __init__(self, server: Server, settings: Settings) -> None:
        self.server = server
        self._bundle = load_bundle(locate_bundle(settings.model, settings.data_path))
        self._runner = OnnxRunner(self._bundle, settings.device, settings.lanes, settings.precision)
        texts, mixed = exact_texts(TOKENS, TEXTS), make_texts("mixed", MIXED_TEXTS)
        self._ids, mixed_ids = token_ids(self._bundle, texts), token_ids(self._bundle, mixed)
        rows, tokens = settings.max_batch_rows, settings.max_batch_tokens
        self._batches = {
            "alone": equal_batches(self._ids, _limits(rows, tokens)),
            "alone_small": equal_batches(self._ids, _limits(min(rows, SMALL_BATCH), tokens)),
            "alone_mixed": equal_batches(mixed_ids, _limits(rows, tokens)),
        }
        mean = round(float(np.mean([len(ids) for ids in mixed_ids])))
        self._single = build_requests(server.target, texts)
        self._many = build_requests(server.target, texts, MANY_TEXTS)
        self._mixed = build_requests(server.target, mixed)
        self._equal = build_requests(server.target, exact_texts(mean, MIXED_TEXTS))

    def vectors(self, texts: Sequence[str]) -> list[bytes]:
        """The bits of each text's vector, float32 [dim], from the bare runner and alone in its batch."""
        return vectors_alone(self._runner, self._bundle, texts)

    def warm_up(self, seconds: float) -> None:
        """Both sides, each with both kinds of texts."""
        self.alone("alone", seconds)
        self.alone("alone_mixed", seconds)
        self.single(seconds)
        self.server.closed(self._mixed, SINGLE_CONNECTIONS, seconds)

    def round(self, seconds: float) -> Round:
        """Every phase once."""
        return Round(
            alone=self.alone("alone", seconds),
            alone_small=self.alone("alone_small", seconds / 2),
            single=self.single(seconds),
            many=self.server.closed(self._many, MANY_CONNECTIONS, seconds, texts=MANY_TEXTS),
            alone_mixed=self.alone("alone_mixed", seconds),
            mixed=self.server.closed(self._mixed, SINGLE_CONNECTIONS, seconds),
            equal=self.server.closed(self._equal, SINGLE_CONNECTIONS, seconds),
        )

    def alone(self, name: str, seconds: float) -> Alone:
        """The runner with one of the sets of batches, nothing else."""
        return run_alone(self._runner, self._bundle.dim, self._batches[name], seconds)

    def single(self, seconds: float, connections: int = SINGLE_CONNECTIONS) -> Phase:
        """One text a request."""
        return self.server.closed(self._single, connections, seconds)

    def one_connection(self, seconds: float) -> OneConnection:
        """Interleaved with the graph alone, as the rounds are."""
        sessions = [open_session(self._bundle, threads) for threads in (1, cores())]
        served, alone, times = [], [], []
        for _ in range(LATENCY_ROUNDS):
            alone.append([single_ms(session, self._ids[0], seconds / 4) for session in sessions])
            phase, latencies = self.server.run(self._single, 1, seconds)
            assert phase.report.latency_ms is not None
            served.append(phase.report.latency_ms.p50)
            times.append(latencies)
        one, all_cores = zip(*alone, strict=True)
        return OneConnection(
            spread(served),
            spread(one),
            spread(all_cores),
            spread([ours / min(best) for ours, best in zip(served, alone, strict=True)]),
            histogram(np.concatenate(times), EDGES_MS),
        )


def measure(measurement: Measurement, rounds: int, seconds: float, say: Callable[[str], None]) -> Ceiling:
    """Go round, and end with what each round begins with, so that every server phase has one on either side."""
    done = []
    for number in range(rounds):
        done.append(measurement.round(seconds))
        say(f"round {number + 1} of {rounds}: {_line(done[-1])}")
    last = {name: measurement.alone(name, seconds) for name in ("alone", "alone_mixed")}
    ends = {name: [*(getattr(each, name) for each in done), last[name]] for name in last}
    served = {name: [getattr(each, name) for each in done] for name in BASE}
    return Ceiling(
        rates={name: spread(ratios(ends[base], served[name])) for name, base in BASE.items()},
        cpu={name: spread(cpu_ratios(ends[base], served[name])) for name, base in BASE.items()},
        mixed_of_equal=spread([each.mixed.tokens_rate / each.equal.tokens_rate for each in done]),
        one_connection=measurement.one_connection(seconds),
        rounds=done,
    )


def ratios(alone: Sequence[Measured], served: Sequence[Measured]) -> list[float]:
    """Tokens per second served over the mean of the measurements alone before and after."""
    return [
        2 * phase.tokens_rate / (before.tokens_rate + after.tokens_rate)
        for before, phase, after in zip(alone, served, alone[1:], strict=False)
    ]


def cpu_ratios(alone: Sequence[Measured], served: Sequence[Measured]) -> list[float]:
    """CPU time of a token alone over that of a token served."""
    return [
        (_token_us(before) + _token_us(after)) / 2 / _token_us(phase)
        for before, phase, after in zip(alone, served, alone[1:], strict=False)
    ]


def _token_us(measured: Measured) -> float:
    return measured.total_cpu_us * measured.texts_rate / measured.tokens_rate


def _limits(rows: int, tokens: int) -> Limits:
    return Limits(rows=rows, tokens=tokens, max_wait=0, queue_items=0)


def _line(done: Round) -> str:
    return (
        f"alone {done.alone.texts_rate:.0f}, one text a request {done.single.texts_rate:.0f}, "
        f"{MANY_TEXTS} texts {done.many.texts_rate:.0f}, mixed {done.mixed.texts_rate:.0f} "
        f"(alone {done.alone_mixed.texts_rate:.0f}) texts/s; others had {done.single.foreign:.0%} of the cores"
    )
