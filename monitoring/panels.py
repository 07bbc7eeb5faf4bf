"""What Grafana shows: rows of panels, in the order in which one looks for a fault. Units are Grafana's names."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

SERVER: Final = 'instance=~"$instance"'
# What orchestrators and Prometheus ask all the time says nothing of clients.
WORK: Final = SERVER + ', route!~"/health|/ready|/readiness|/ping|/metrics"'
_STATUS_5XX: Final = ', status=~"5.."'
QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Kind(Enum):
    """How a panel looks: lines, stacked areas, a heat map, one number, or the name of what it finds."""

    LINES = auto()
    AREAS = auto()
    HEATMAP = auto()
    NUMBER = auto()
    NAME = auto()


class Query(NamedTuple):
    """PromQL with Grafana's `$instance` and `$__rate_interval`, and what its series are called."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """`values` names the numbers 0, 1, … of a state; from `warn` on a number is red; width is of 24 columns."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = Kind.LINES
    width: int = 12
    description: str = ""
    values: tuple[str, ...] = ()
    warn: float | None = None


def rate(metric: str, by: str = "", where: str = SERVER) -> str:
    """Sum of a counter's rates; `by` names the labels that stay apart."""
    return f"sum{f' by ({by})' if by else ''} (rate(embedlane_{metric}{{{where}}}[$__rate_interval]))"


def gauge(metric: str, by: str, where: str = SERVER) -> str:
    """Sum of a gauge."""
    return f"sum by ({by}) (embedlane_{metric}{{{where}}})"


def quantile(part: float, metric: str, by: str = "", where: str = SERVER) -> str:
    """Of a histogram, over all that was observed."""
    return f"histogram_quantile({part}, {rate(f'{metric}_bucket', f'le, {by}' if by else 'le', where)})"


def quantiles(metric: str, where: str = SERVER) -> tuple[Query, ...]:
    """p50, p95 and p99."""
    return tuple(Query(quantile(part, metric, where=where), name) for name, part in QUANTILES.items())


def mean(metric: str) -> str:
    """Of what a histogram observed."""
    return f"{rate(f'{metric}_sum')} / {rate(f'{metric}_count')}"


FAILED: Final = f"({rate('requests_total', where=WORK + _STATUS_5XX)} or vector(0))"
ERROR_SHARE: Final = f"{FAILED} / {rate('requests_total', where=WORK)}"
PADDING: Final = rate("engine_padding_tokens_total")
HITS: Final = rate("cache_texts_total", where=SERVER + ', result=~"hit|remote_hit"')
REFUSED: Final = rate("requests_total", "key", SERVER + ', status="429"')

ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Now": (
        Panel(
            "Model that runs",
            "none",
            (Query(f"embedlane_engine_info{{{SERVER}}}", "{{model}} {{device}} {{precision}}"),),
            Kind.NAME,
            8,
            "Nothing here: no engine runs.",
        ),
        Panel(
            "Servers down",
            "none",
            (Query(f'count(up{{job="embedlane", {SERVER}}} == 0) or vector(0)', "down"),),
            Kind.NUMBER,
            4,
            warn=1,
        ),
        Panel("Requests", "reqps", (Query(rate("requests_total", where=WORK), "requests"),), Kind.NUMBER, 4),
        Panel("Failed", "percentunit", (Query(ERROR_SHARE, "failed"),), Kind.NUMBER, 4, warn=0.02),
        Panel(
            "Queue",
            "s",
            (Query(f"max(embedlane_engine_queue_seconds{{{SERVER}}})", "to run what waits"),),
            Kind.NUMBER,
            4,
            warn=10,
        ),
    ),
    "Traffic": (
        Panel("Requests by route", "reqps", (Query(rate("requests_total", "route", WORK), "{{route}}"),)),
        Panel("Requests by status", "reqps", (Query(rate("requests_total", "status", WORK), "{{status}}"),)),
        Panel("Requests by key", "reqps", (Query(rate("requests_total", "key", WORK), "{{key}}"),)),
        Panel("Texts by key", "cps", (Query(rate("texts_total", "key"), "{{key}}"),), description="Texts a second."),
        Panel("Tokens by key", "cps", (Query(rate("tokens_total", "key"), "{{key}}"),), description="Tokens a second."),
    ),
    "Errors": (
        Panel("Requests that failed (5xx)", "percentunit", (Query(ERROR_SHARE, "of all requests"),)),
        Panel("Errors by code", "reqps", (Query(rate("request_errors_total", "code"), "{{code}}"),)),
        Panel(
            "Texts without a vector",
            "cps",
            (Query(rate("engine_texts_total", "outcome", SERVER + ', outcome!~"computed|shared"'), "{{outcome}}"),),
            description="Texts a second, by why the engine gave none.",
        ),
    ),
    "Latency": (
        Panel("Request time", "s", quantiles("request_seconds", WORK)),
        Panel("p99 by route", "s", (Query(quantile(0.99, "request_seconds", "route", WORK), "{{route}}"),)),
        Panel("Tokenizing", "s", quantiles("tokenize_seconds")),
    ),
    "Queue and compute": (
        Panel(
            "Wait and compute, mean",
            "s",
            (Query(mean("engine_wait_seconds"), "wait"), Query(mean("engine_compute_seconds"), "compute")),
            description="Where wait is far above compute, more is asked for than one engine can do.",
        ),
        Panel("Wait for a batch", "s", quantiles("engine_wait_seconds")),
        Panel("Compute of a batch", "s", quantiles("engine_compute_seconds")),
        Panel("Texts that wait", "short", (Query(gauge("engine_queued_texts", "priority"), "{{priority}}"),)),
        Panel("Tokens that wait", "short", (Query(gauge("engine_queued_tokens", "priority"), "{{priority}}"),)),
        Panel("Batches that run", "short", (Query(gauge("engine_busy_lanes", "instance"), "{{instance}}"),)),
        Panel("Texts in flight", "short", (Query(gauge("texts_in_flight", "process"), "{{process}}"),), Kind.AREAS),
    ),
    "Batches": (
        Panel("Texts in a batch, mean", "short", (Query(mean("engine_batch_texts"), "texts"),)),
        Panel("Tokens in a batch, mean", "short", (Query(mean("engine_batch_tokens"), "tokens"),)),
        Panel(
            "Batch sizes",
            "short",
            (
                Query(
                    "sum by (le) (increase(embedlane_engine_batch_texts_bucket{" + SERVER + "}[$__rate_interval]))",
                    "{{le}}",
                ),
            ),
            Kind.HEATMAP,
            description="Batches by how many texts they had.",
        ),
        Panel(
            "Batches a second", "cps", (Query(rate("engine_batch_texts_count"), "batches"),), description="A second."
        ),
        Panel(
            "Padding",
            "percentunit",
            (Query(f"{PADDING} / ({PADDING} + {rate('engine_batch_tokens_sum')})", "of computed tokens"),),
            description="Tokens that were computed for nothing but a batch's shape; none on a CPU.",
        ),
        Panel(
            "Texts by outcome",
            "cps",
            (Query(rate("engine_texts_total", "outcome"), "{{outcome}}"),),
            description="A second; shared: an identical text's vector.",
        ),
    ),
    "Slab": (
        Panel("Rows by state", "short", (Query(gauge("slab_rows", "state"), "{{state}}"),), Kind.AREAS),
        Panel("Rows lent, by front end", "short", (Query(gauge("leases", "process"), "{{process}}"),), Kind.AREAS),
    ),
    "Limits": (
        Panel(
            "Requests of limited keys",
            "reqps",
            (Query(rate("limit_decisions_total", "outcome"), "{{outcome}}"),),
        ),
        Panel(
            "Refused (429), by key",
            "reqps",
            (Query(f"{REFUSED} or 0 * {rate('requests_total', 'key')}", "{{key}}"),),
            description="By the key's limit or a full queue.",
        ),
    ),
    "Cache": (
        Panel("Texts found", "percentunit", (Query(f"{HITS} / {rate('cache_texts_total')}", "of all texts"),)),
        Panel("Texts by result", "cps", (Query(rate("cache_texts_total", "result"), "{{result}}"),), Kind.AREAS),
        Panel("Memory in use", "bytes", (Query(gauge("cache_bytes", "process"), "{{process}}"),), Kind.AREAS),
        Panel(
            "Shared and dropped",
            "cps",
            (
                Query(rate("cache_shared_texts_total"), "waited for an identical text"),
                Query(rate("cache_evictions_total"), "dropped for others"),
            ),
        ),
    ),
    "Breaker and Redis": (
        Panel(
            "Breaker",
            "none",
            (Query(f"max by (instance, process) (embedlane_breaker_state{{{SERVER}}})", "{{process}}"),),
            values=("closed", "half-open", "open"),
            description="While one is open its front end refuses requests.",
        ),
        Panel(
            "Redis",
            "none",
            (Query(f"min by (instance, process) (embedlane_redis_up{{{SERVER}}})", "{{process}}"),),
            values=("away", "there"),
            description="Nothing here: the server has no Redis.",
        ),
        Panel(
            "Without Redis",
            "cps",
            (Query(rate("redis_failures_total"), "failed"), Query(rate("redis_fallbacks_total"), "done without")),
            description="Calls a second.",
        ),
        Panel(
            "Breaker opened",
            "short",
            (Query(f"sum(increase(embedlane_breaker_opened_total{{{SERVER}}}[$__rate_interval]))", "times"),),
        ),
    ),
    "GPU": (
        Panel(
            "GPU memory",
            "bytes",
            (
                Query(gauge("gpu_memory_used_bytes", "instance"), "{{instance}} used"),
                Query(gauge("gpu_memory_total_bytes", "instance"), "{{instance}} there is"),
            ),
            description="Of the engine's GPU, by all programs. Nothing here: the engine runs on a CPU.",
        ),
        Panel(
            "GPU busy",
            "percentunit",
            (Query(f"max by (instance) (embedlane_gpu_utilization_ratio{{{SERVER}}})", "{{instance}}"),),
            description="Part of the time in which it ran anything: at 100 % it may still have room for more at once.",
        ),
        Panel("GPU power", "watt", (Query(gauge("gpu_power_watts", "instance"), "{{instance}}"),)),
        Panel(
            "GPU temperature",
            "celsius",
            (Query(f"max by (instance) (embedlane_gpu_temperature_celsius{{{SERVER}}})", "{{instance}}"),),
        ),
    ),
    "Processes": (
        Panel(
            "CPU", "short", (Query(rate("process_cpu_seconds_total", "process"), "{{process}}"),), description="Cores."
        ),
        Panel("Memory", "bytes", (Query(gauge("process_resident_bytes", "process"), "{{process}}"),)),
        Panel(
            "Starts",
            "short",
            (
                Query(f"sum(increase(embedlane_engine_starts_total{{{SERVER}}}[$__rate_interval]))", "engine"),
                Query(f"sum(increase(embedlane_frontend_starts_total{{{SERVER}}}[$__rate_interval]))", "front ends"),
            ),
        ),
        Panel(
            "Engine runs for",
            "s",
            (Query(f"time() - max by (instance) (embedlane_engine_start_time_seconds{{{SERVER}}})", "{{instance}}"),),
        ),
        Panel(
            "Messages dropped",
            "cps",
            (
                Query(rate("engine_malformed_frames_total"), "malformed"),
                Query(rate("engine_unsent_messages_total"), "not taken"),
            ),
        ),
    ),
}
