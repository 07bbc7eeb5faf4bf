"""Spans of a real server at a real OTLP receiver: whose children they are, what they say and what they never do."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from typing import Any

import numpy as np
import pytest

from frontend.request_log import NAME
from perf.stack import KEY, Stack, free_port
from tests.system.collector import Collector, Received
from tests.system.processes import log_records, wait_for
from tests.system.wire import Answer, Connection, openai_bits, openai_body

pytestmark = pytest.mark.system

MARK = "zyxquartz"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
EMBED = "/v1/embeddings"
LOST = "spans are lost: the collector is away or slow"


def traced(url: str, frontends: int = 2, **variables: str) -> Stack:
    """A server that is not started yet."""
    stack = Stack(frontends=frontends, tracing=True, cache_mb=8, max_inputs=64)
    stack.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "100", **variables}
    return stack


def ask(stack: Stack, text: str | list[str], **headers: str) -> Answer:
    async def run() -> Answer:
        async with await Connection.open(stack.port) as connection:
            return await connection.post(EMBED, openai_body(text), **headers)

    return asyncio.run(run())


async def everything(stack: Stack) -> dict[str, Answer]:
    """Each kind of request once."""
    async with await Connection.open(stack.port) as connection:
        return {
            "continued": await connection.post(
                EMBED,
                openai_body([f"{MARK} a", f"{MARK} b"]),
                Traceparent=f"00-{TRACE}-{PARENT}-01",
                Tracestate="vendor=kept",
                X_Correlation_ID="mine",
            ),
            "hit": await connection.post(EMBED, openai_body(f"{MARK} a")),
            "wrong": await connection.post(EMBED, {"input": [MARK] * 65}, Traceparent=f"00-{MARK}-{PARENT}-01"),
            "unknown": await connection.request("GET", f"/nowhere?{MARK}", headers={"Authorization": f"Bearer {KEY}"}),
            "no key": await connection.request("POST", "/embed", b"{}", {"Authorization": f"Bearer el-{MARK}"}),
        }


@pytest.fixture(scope="module")
def run() -> tuple[dict[str, Answer], Collector, list[dict[str, Any]]]:
    """The answers, what the collector has, and the log's lines; the server has stopped."""
    # So rarely that all there is was sent by the stop.
    with Collector() as collector, traced(collector.url, OTEL_BSP_SCHEDULE_DELAY="3600000") as stack:
        answers = asyncio.run(everything(stack))
        assert not collector.spans
        assert stack.stop() == 0
        lines = log_records(stack.log, "request")
        print(stack.log.read_text()[-10_000:])
    return answers, collector, lines


def trace_of(answer: Answer) -> str:
    found = re.fullmatch(r"00-([0-9a-f]{32})-[0-9a-f]{16}-0[13]", answer.headers["traceparent"])
    assert found is not None
    return found[1]


def spans_of(collector: Collector, answer: Answer) -> dict[str, Received]:
    """By name."""
    found = [each for each in collector.spans if each.trace_id == trace_of(answer)]
    spans = {each.span.name: each for each in found}
    assert len(spans) == len(found)
    return spans


Run = tuple[dict[str, Answer], Collector, list[dict[str, Any]]]


def test_a_request_continues_the_clients_trace_and_has_its_parts_within(run: Run) -> None:
    answers, collector, _ = run
    answer = answers["continued"]
    spans = spans_of(collector, answer)
    assert spans.keys() == {f"POST {EMBED}", "tokenize", "queue", "compute"}
    server = spans.pop(f"POST {EMBED}")
    assert (server.trace_id, server.span.parent_span_id.hex()) == (TRACE, PARENT)
    assert server.span.trace_state == answer.headers["tracestate"] == "vendor=kept"
    assert server.span.span_id.hex() in answer.headers["traceparent"]
    assert server.span.kind == server.span.SPAN_KIND_SERVER
    assert server.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": EMBED,
        "network.protocol.version": "1.1",
        "url.path": EMBED,
        "url.scheme": "http",
        "embedlane.cache": "miss",
        "embedlane.correlation_id": "mine",
        "embedlane.key": "default",
        "embedlane.texts": 2,
        "embedlane.tokens": int(answer.headers["x-compute-tokens"]),
    }
    assert server.resource["service.name"] == "embedlane"
    assert re.fullmatch(r".+/frontend-[01]", str(server.resource["service.instance.id"]))
    assert all(part.span.parent_span_id == server.span.span_id for part in spans.values())


def test_the_parts_times_are_those_of_the_answer_and_lie_in_order(run: Run) -> None:
    answers, collector, _ = run
    spans = spans_of(collector, answers["continued"])
    order = [spans[name].span for name in ("tokenize", "queue", "compute")]
    server = spans[f"POST {EMBED}"].span
    moments = [moment for part in order for moment in (part.start_time_unix_nano, part.end_time_unix_nano)]
    assert moments == sorted(moments)
    assert server.start_time_unix_nano <= moments[0] and moments[-1] <= server.end_time_unix_nano
    assert abs(server.end_time_unix_nano - time.time_ns()) < 600e9, "the time of day"
    for part, header in zip(order, ("x-tokenization-time", "x-queue-time", "x-inference-time"), strict=True):
        took = (part.end_time_unix_nano - part.start_time_unix_nano) / 1e6
        assert took == pytest.approx(float(answers["continued"].headers[header]), abs=0.002)


def test_a_hit_of_the_cache_has_no_queue_and_no_run(run: Run) -> None:
    answers, collector, _ = run
    spans = spans_of(collector, answers["hit"])
    assert spans.keys() == {f"POST {EMBED}", "tokenize"}
    assert spans[f"POST {EMBED}"].attributes["embedlane.cache"] == "hit"
    assert not spans[f"POST {EMBED}"].span.parent_span_id


def test_requests_that_are_refused_have_a_span_that_says_why(run: Run) -> None:
    answers, collector, _ = run
    (wrong,) = spans_of(collector, answers["wrong"]).values()
    assert (wrong.attributes["http.response.status_code"], wrong.attributes["embedlane.error"]) == (
        400,
        "VALIDATION_ERROR",
    )
    assert wrong.span.status.code == wrong.span.status.STATUS_CODE_UNSET, "the client's fault is no error of ours"
    (unknown,) = spans_of(collector, answers["unknown"]).values()
    assert (unknown.span.name, unknown.attributes["url.path"]) == ("GET", "/nowhere")
    assert "http.route" not in unknown.attributes
    (refused,) = spans_of(collector, answers["no key"]).values()
    assert "embedlane.key" not in refused.attributes


def test_the_log_has_each_trace_and_only_what_was_asked_is_traced(run: Run) -> None:
    answers, collector, lines = run
    found = {line["correlation_id"]: line for line in lines if line["logger"] == NAME}
    for answer in answers.values():
        assert found[answer.headers["x-correlation-id"]]["trace_id"] == trace_of(answer)
    ready = [line for line in found.values() if line["path"] == "/ready"]
    assert ready and not [line for line in ready if "trace_id" in line]
    servers = [each for each in collector.spans if each.span.kind == each.span.SPAN_KIND_SERVER]
    assert len(servers) == len(answers)


def test_no_text_key_or_vector_leaves_with_a_span(run: Run) -> None:
    answers, collector, _ = run
    sent = b"".join(collector.bodies)
    assert EMBED.encode() in sent
    assert MARK.encode() not in sent
    assert KEY.encode() not in sent
    for bits in openai_bits(answers["continued"]):
        number = np.frombuffer(bits, np.float32)[0]
        for telling in (bits[:12], base64.b64encode(bits[:12]), str(number).encode(), np.float64(number).tobytes()):
            assert telling not in sent


def test_a_collector_that_is_away_fails_no_request_and_is_told_once() -> None:
    port = free_port()
    with traced(f"http://127.0.0.1:{port}", 1, OTEL_EXPORTER_OTLP_TIMEOUT="2") as stack:
        for n in range(40):
            assert ask(stack, f"text {n}").status == 200
        wait_for(lambda: log_records(stack.log, LOST), "the loss to be told")
        for n in range(40):
            assert ask(stack, f"text {n}").status == 200
        with Collector(port) as collector:

            def is_back() -> bool:
                assert ask(stack, "text").status == 200
                return bool(collector.spans)

            wait_for(is_back, "the collector to be found")
            stack.stop()
        (lost,) = log_records(stack.log, LOST)
        assert str(port) in lost["reason"]
        assert not [line for line in stack.log.read_text().splitlines() if "opentelemetry" in line]


def test_a_collector_that_never_answers_holds_up_neither_requests_nor_the_stop() -> None:
    with Collector() as collector:
        collector.is_stuck = True
        with traced(collector.url, 1, OTEL_BSP_MAX_QUEUE_SIZE="64", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="16") as stack:
            assert ask(stack, "first").status == 200
            wait_for(collector.asked.is_set, "an export to be under way")
            # More than the queue holds: what is over is lost, and nobody waits.
            for n in range(60):
                assert ask(stack, f"text {n}").status == 200
            assert stack.stop() == 0
            assert len(log_records(stack.log, LOST)) == 1
            assert not [line for line in stack.log.read_text().splitlines() if "opentelemetry" in line]
            assert len(log_records(stack.log, "stopped")) == 1, "the engine was stopped in order, after the front ends"
