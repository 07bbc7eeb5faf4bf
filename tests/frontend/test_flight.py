from __future__ import annotations

import asyncio

import numpy as np
import pytest

from frontend.flight import Call, Flight, Holding, Lent
from ipc.log import correlation_id
from ipc.messages import Status, Submission
from ipc.slab import FREE, Row
from tests.frontend.peer import ids

pytestmark = pytest.mark.anyio


def encode(row: Row) -> bytes:
    if row[0] < 0:
        raise ValueError("below zero")
    return b"%d" % row[0]


def make(count: int) -> tuple[Call, list[Flight]]:
    call = Call(encode, [b""] * count, count, asyncio.get_running_loop().create_future(), deadline_ns=0)
    return call, [Flight(Submission(n + 1, 0, 0, ids(1)), {call: [n]}) for n in range(count)]


def row(value: float) -> Lent:
    """Row 1 of three, which this process holds."""
    return Lent(np.array([[0], [value], [0]], np.float32), np.array([7, 8, 9], np.uint32), 1)


async def test_a_call_is_done_with_its_last_text() -> None:
    call, flights = make(3)
    for n in (2, 0):
        flights[n].land(row(n), wait_ns=n, compute_ns=10 - n)
    assert not call.done.done()
    flights[1].land(row(1), wait_ns=1, compute_ns=1)
    assert call.done.done()
    assert call.parts == [b"0", b"1", b"2"]
    assert (call.wait_ns, call.compute_ns) == (2, 10), "the slowest text's times"


async def test_what_take_raises_ends_the_call_and_the_first_error_wins() -> None:
    call, flights = make(3)
    flights[0].land(row(-1), 0, 0)
    flights[1].land(row(1), 0, 0)
    call.fail(OverflowError("too late"))
    with pytest.raises(ValueError, match="below zero"):
        call.done.result()
    assert call.missing == 2


async def test_a_row_is_given_back_once_it_is_encoded_or_has_failed() -> None:
    call, flights = make(2)
    for flight, lent in zip(flights, (row(1), row(-1)), strict=True):
        flight.land(lent, 0, 0)
        assert lent.leases.tolist() == [7, FREE, 9]
    assert isinstance(call.done.exception(), ValueError)


async def test_without_take_the_rows_are_held_until_the_call_is_released() -> None:
    call, flights = make(2)
    call.take, call.holding = None, Holding(2)
    rows = row(1), row(2)
    for flight, lent in zip(flights, rows, strict=True):
        flight.land(lent, 0, 0)
    assert call.done.done()
    assert [call.held[n].rows is lent.rows for n, lent in enumerate(rows)] == [True, True]
    assert all(lent.leases[1] == 8 for lent in rows)
    call.release()
    assert all(lent.leases.tolist() == [7, FREE, 9] for lent in rows)
    assert not call.held


async def test_rows_are_copied_where_the_calls_have_no_room_to_hold_more() -> None:
    holding = Holding(2)
    first, second, third = (make(2) for _ in range(3))
    for call, flights in (first, second):
        call.take, call.holding = None, holding
        for flight in flights:
            flight.land(row(1), 0, 0)
    assert (sorted(first[0].held), sorted(second[0].held)) == ([0, 1], [])
    assert second[0].parts == [np.float32(1).tobytes()] * 2
    first[0].release()
    third[0].take, third[0].holding = None, holding
    third[1][0].land(row(1), 0, 0)
    assert sorted(third[0].held) == [0], "what was released makes room"


async def test_texts_may_land_after_the_call_was_given_up() -> None:
    call, flights = make(1)
    call.done.cancel()
    flights[0].land(row(1), 0, 0)
    flights[0].fail(lambda: OverflowError("too late"))
    assert call.done.cancelled()


@pytest.mark.parametrize("status", [Status.FAILED, Status.INVALID, Status.REFUSED])
async def test_what_the_engine_failed_is_told_with_whose_it_was(
    caplog: pytest.LogCaptureFixture, status: Status
) -> None:
    told = correlation_id.set("whose")
    call, flights = make(1)
    correlation_id.reset(told)
    assert flights[0].end(status) is None
    assert call.done.exception() is not None
    found = [(record.__dict__["sequence"], record.__dict__["correlation_ids"]) for record in caplog.records]
    assert found == ([] if status is Status.REFUSED else [(1, ["whose"])])
