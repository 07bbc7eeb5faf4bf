"""What a front end counts for Prometheus: each request as it ends, and once a second how everything behind it is."""

from __future__ import annotations

import asyncio
import time
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Scope

from frontend.auth import SCOPE_KEY
from frontend.embed import Embedder
from frontend.keys import Key
from frontend.redis_link import RedisLink
from frontend.request_log import CLIENT_LEFT, Facts
from ipc.errors import codes
from ipc.metrics import SECONDS, Advance
from ipc.process import cpu_seconds, resident_bytes

REFRESH_SECONDS = 1.0
# Names in labels come from people: what is beyond these bounds is counted together, and fits into ipc.metrics' files.
MOST_KEYS: Final = 100
MOST_SERIES: Final = 500
OTHER: Final = "other"
NO_KEY: Final = "none"


class Series(NamedTuple):
    """The metrics of requests with the same route, status and key."""

    requests: Counter
    seconds: Histogram
    tokenize_seconds: Histogram
    texts: Counter
    tokens: Counter


class RequestMetrics:
    """Requests by route, status and name of the key; `routes` are the paths that are told apart."""

    def __init__(self, registry: CollectorRegistry, routes: frozenset[str]) -> None:
        self._routes = routes
        self._keys: set[str] = set()
        # Labels → metrics: finding these by prometheus_client takes five times as long as counting.
        self._series: dict[tuple[str, int, str], Series] = {}
        self._requests = Counter(
            "embedlane_requests", "Requests that ended.", ["route", "status", "key"], registry=registry
        )
        self._seconds = Histogram(
            "embedlane_request_seconds",
            "From a request's head to the end of its answer, in a front end.",
            ["route"],
            registry=registry,
            buckets=SECONDS,
        )
        self._tokenize = Histogram(
            "embedlane_tokenize_seconds",
            "What reading and tokenizing a request's texts took.",
            registry=registry,
            buckets=SECONDS,
        )
        self._texts = Counter("embedlane_texts", "Texts that were asked for.", ["key"], registry=registry)
        self._tokens = Counter("embedlane_tokens", "Tokens of these texts.", ["key"], registry=registry)
        errors = Counter(
            "embedlane_request_errors", "Requests that got an error, by its code.", ["code"], registry=registry
        )
        # All of them from the start: a rate sees nothing of a series' first value.
        self._errors = {code: errors.labels(code) for code in codes()}

    def note(self, scope: Scope, facts: Facts) -> None:
        """Count a request that has ended."""
        key: Key | None = scope.get(SCOPE_KEY)
        path, status = scope["path"], facts.status or CLIENT_LEFT
        labels = path if path in self._routes else OTHER, status, NO_KEY if key is None else self._key(key.name)
        series = self._series.get(labels) or self._make(*labels)
        series.requests.inc()
        if facts.error is not None:
            self._errors[facts.error].inc()
        series.seconds.observe((time.monotonic_ns() - facts.began_ns) / 1e9)
        if facts.texts:
            series.tokenize_seconds.observe(facts.tokenize_ns / 1e9)
            series.texts.inc(facts.texts)
            series.tokens.inc(facts.tokens)

    def _make(self, path: str, status: int, key: str) -> Series:
        if len(self._series) >= MOST_SERIES:
            # Still apart by status, of which there are few.
            path = key = OTHER
        made = Series(
            self._requests.labels(path, str(status), key),
            self._seconds.labels(path),
            self._tokenize,
            self._texts.labels(key),
            self._tokens.labels(key),
        )
        if len(self._series) < MOST_SERIES:
            self._series[path, status, key] = made
        return made

    def _key(self, name: str) -> str:
        if len(self._keys) < MOST_KEYS:
            self._keys.add(name)
        return name if name in self._keys else OTHER


class StateMetrics:
    """How the parts behind the dialects are, read once a second while the event loop runs."""

    def __init__(self, registry: CollectorRegistry, process: str, embedder: Embedder, link: RedisLink | None) -> None:
        self._embedder = embedder
        self._link = link
        self._timer: asyncio.TimerHandle | None = None

        def gauge(name: str, text: str) -> Gauge:
            found: Gauge = Gauge(name, text, ["process"], registry=registry, multiprocess_mode="livesum").labels(
                process
            )
            return found

        self._in_flight = gauge("embedlane_texts_in_flight", "Texts on their way to the engine or back.")
        self._leases = gauge("embedlane_leases", "Rows of the slab that are lent to this front end.")
        self._breaker = gauge("embedlane_breaker_state", "0: closed, 1: half-open, 2: open.")
        self._cache_bytes = gauge("embedlane_cache_bytes", "Bytes in use by cached vectors.")
        self._memory = gauge("embedlane_process_resident_bytes", "Resident memory of a process.")
        cpu = Counter("embedlane_process_cpu_seconds", "CPU time of a process.", ["process"], registry=registry)
        self._cpu = Advance(cpu.labels(process))
        starts = Counter("embedlane_frontend_starts", "How often a front end started.", ["process"], registry=registry)
        starts.labels(process).inc()
        opened = Counter("embedlane_breaker_opened", "How often the breaker opened.", registry=registry)
        self._opened = Advance(opened)
        decisions = Counter(
            "embedlane_limit_decisions", "Requests that the limits let pass or refused.", ["outcome"], registry=registry
        )
        self._passed, self._refused = (Advance(decisions.labels(outcome)) for outcome in ("passed", "refused"))
        looked_up = Counter(
            "embedlane_cache_texts", "Texts by where their vector was found.", ["result"], registry=registry
        )
        self._hits, self._remote, self._misses = (
            Advance(looked_up.labels(result)) for result in ("hit", "remote_hit", "miss")
        )
        self._shared = Advance(
            Counter("embedlane_cache_shared_texts", "Misses that waited for another's vector.", registry=registry)
        )
        self._evicted = Advance(
            Counter("embedlane_cache_evictions", "Vectors that were dropped for others.", registry=registry)
        )
        if link is not None:
            self._redis_up = gauge("embedlane_redis_up", "1 while Redis answers, 0 while it is away.")
        self._failures = Advance(Counter("embedlane_redis_failures", "Calls that Redis failed.", registry=registry))
        self._fallbacks = Advance(
            Counter("embedlane_redis_fallbacks", "Times that limits or cache went on without Redis.", registry=registry)
        )

    def start(self) -> None:
        """Read now, and again every second."""
        self.refresh()
        self._timer = asyncio.get_running_loop().call_later(REFRESH_SECONDS, self.start)

    def close(self) -> None:
        """Read for the last time."""
        if self._timer is not None:
            self._timer.cancel()
        self.refresh()

    def refresh(self) -> None:
        """Bring every metric up to date."""
        client, admission, cache = self._embedder.client, self._embedder.admission, self._embedder.cache
        in_flight, leases = client.load()
        self._in_flight.set(in_flight)
        self._leases.set(leases)
        self._breaker.set(client.breaker.state)
        self._opened.to(client.breaker.opened)
        self._memory.set(resident_bytes())
        self._cpu.to(cpu_seconds())
        self._passed.to(admission.passed)
        self._refused.to(admission.refused)
        if cache is not None:
            counters = cache.counters
            self._cache_bytes.set(counters.bytes)
            self._hits.to(counters.hits)
            self._remote.to(counters.remote_hits)
            self._misses.to(counters.misses)
            self._shared.to(counters.shared)
            self._evicted.to(counters.evicted)
        if self._link is not None:
            self._redis_up.set(self._link.is_up)
            self._failures.to(self._link.failures)
            self._fallbacks.to(self._link.fallbacks)
