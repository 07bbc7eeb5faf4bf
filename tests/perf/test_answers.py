from __future__ import annotations

import numpy as np

from perf.answers import BATCH_SPAN_NS, Answers, batch_sizes
from perf.http import Connection

HEAD = (
    b"HTTP/1.1 200 OK\r\nx-compute-tokens: %d\r\nx-total-time: 10.0\r\nx-tokenization-time: 1.0"
    b"\r\nx-queue-time: 2.0\r\nx-inference-time: %f\r\nx-cache: %b"
)


def answered(head: bytes, at_ns: int) -> Connection:
    connection = Connection(lambda _: None)
    connection.head, connection.answered_ns = head, at_ns
    return connection


def test_texts_of_one_batch_have_one_compute_time_and_come_together() -> None:
    compute = np.array([1.5, 2.5, 1.5, 2.5, 2.5, 1.5])
    later = 5 * BATCH_SPAN_NS
    times = np.array([0, 10, 20, 30, 40, later])
    assert batch_sizes(compute, times) == {1: 1, 2: 1, 3: 1}


def test_what_came_from_a_cache_is_no_run() -> None:
    assert batch_sizes(np.array([0.0, 0.0, 1.5]), np.array([0, 1, 2])) == {1: 1}
    assert batch_sizes(np.array([0.0]), np.array([0])) == {}


def test_the_rest_is_what_no_other_time_holds() -> None:
    answers = Answers()
    for n, cache in enumerate((b"hit", b"miss")):
        assert answers(answered(HEAD % (16 + n, 3.0, cache), n))
    served = answers.served(texts=1)
    assert served is not None
    assert (served.tokens, served.hits, served.batch) == (16.5, 0.5, 2.0)
    assert (served.queue_ms.p50, served.compute_ms.p50, served.rest_ms.p50) == (2.0, 3.0, 4.0)


def test_batches_are_not_known_where_a_request_holds_several_texts() -> None:
    answers = Answers()
    answers(answered(HEAD % (16, 3.0, b"miss"), 0))
    served = answers.served(texts=32)
    assert served is not None
    assert served.batch is None


def test_answers_of_another_server_tell_nothing() -> None:
    answers = Answers()
    assert answers.served(texts=1) is None
    answers(answered(b"HTTP/1.1 200 OK", 0))
    assert answers.served(texts=1) is None
