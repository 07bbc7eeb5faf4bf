from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipc import messages
from ipc.errors import MalformedFrame
from ipc.messages import Header, Submission, Type, Welcome
from ipc.slab import Epoch

EPOCH = Epoch(0x0123456789ABCDEF)
EPOCH_BYTES = "efcdab8967452301"


def ids(*values: int) -> messages.Ids:
    return np.array(values, np.int32)


# The format is between processes that may be restarted one by one, so it is pinned to the byte.
GOLDEN = {
    "hello": (messages.hello(), "454c0101 00000000 0000000000000000 0000000000000000"),
    "bye": (messages.bye(EPOCH), f"454c0106 00000000 0000000000000000 {EPOCH_BYTES}"),
    "submit": (
        messages.submit([Submission(7, 1_000, 1, ids(101, 102)), Submission(8, -1, 0, ids(5))], EPOCH),
        f"454c0103 02000000 0300000000000000 {EPOCH_BYTES}"
        "0700000000000000 e803000000000000 02000000 01000000"
        "0800000000000000 ffffffffffffffff 01000000 00000000"
        "65000000 66000000 05000000",
    ),
    "cancel": (
        messages.cancel([7, 8], EPOCH),
        f"454c0104 02000000 0000000000000000 {EPOCH_BYTES} 0700000000000000 0800000000000000",
    ),
    "reply": (
        messages.reply([(7, 3, 0, 250), (8, 0, 4, 0)], 1_000_000, EPOCH),
        f"454c0105 02000000 40420f0000000000 {EPOCH_BYTES}"
        "0700000000000000 03000000 00000000 fa00000000000000"
        "0800000000000000 00000000 04000000 0000000000000000",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_pinned(name: str) -> None:
    frame, expected = GOLDEN[name]
    assert frame.hex() == expected.replace(" ", "")


def test_welcome_carries_the_model_and_the_slab() -> None:
    welcome = Welcome(model="m", digest="f", folder="/b", rows=8, dim=4, device="cpu", precision="fp32")
    frame = messages.welcome(welcome, EPOCH)
    assert messages.parse_header(frame) == Header(Type.WELCOME, 0, 0, EPOCH)
    assert messages.parse_welcome(frame) == welcome


items = st.builds(
    Submission,
    sequence=st.integers(1, 2**64 - 1),
    deadline=st.integers(-(2**63), 2**63 - 1),
    priority=st.integers(0, 2),
    flow=st.integers(0, 255),
    ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9).map(lambda values: np.array(values, np.int32)),
)


@given(st.lists(items, max_size=9))
def test_submit_comes_back_as_it_went(submissions: list[Submission]) -> None:
    frame = messages.submit(submissions, EPOCH)
    table, all_ids = messages.parse_submit(frame, messages.parse_header(frame))
    assert table.tolist() == [(s.sequence, s.deadline, len(s.ids), s.priority, s.flow) for s in submissions]
    assert all_ids.tolist() == [i for s in submissions for i in s.ids.tolist()]


def test_ids_are_read_in_place() -> None:
    frame = messages.submit([Submission(1, 0, 0, ids(1, 2, 3))], EPOCH)
    _, all_ids = messages.parse_submit(frame, messages.parse_header(frame))
    assert np.shares_memory(all_ids, np.frombuffer(frame, np.uint8))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=9))
def test_cancel_comes_back_as_it_went(sequences: list[int]) -> None:
    frame = messages.cancel(sequences, EPOCH)
    assert messages.parse_cancel(frame, messages.parse_header(frame)).tolist() == sequences


results = st.tuples(
    st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
)


@given(st.lists(results, max_size=9))
def test_reply_comes_back_as_it_went(outcomes: list[tuple[int, int, int, int]]) -> None:
    frame = messages.reply(outcomes, 5, EPOCH)
    assert messages.parse_reply(frame, messages.parse_header(frame)) == outcomes


def swallow_malformed(frame: bytes) -> None:
    readers = (
        lambda: messages.parse_submit(frame, messages.parse_header(frame)),
        lambda: messages.parse_cancel(frame, messages.parse_header(frame)),
        lambda: messages.parse_reply(frame, messages.parse_header(frame)),
        lambda: messages.parse_welcome(frame),
    )
    for read in readers:
        try:
            read()
        except MalformedFrame:
            continue


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_malformed(frame: bytes) -> None:
    swallow_malformed(frame)


@given(st.sampled_from([frame for frame, _ in GOLDEN.values()]), st.data())
def test_damaged_frames_raise_nothing_but_malformed(frame: bytes, data: st.DataObject) -> None:
    damaged = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    swallow_malformed(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"XX" + messages.hello()[2:],
        messages.hello()[:2] + b"\x02" + messages.hello()[3:],
        messages.hello()[:3] + b"\x63" + messages.hello()[4:],
    ],
    ids=["empty", "magic", "version", "type"],
)
def test_header_says_what_is_wrong(frame: bytes) -> None:
    with pytest.raises(MalformedFrame):
        messages.parse_header(frame)


@pytest.mark.parametrize(("length", "claimed"), [(0, 0), (-1, 1), (2, 1)], ids=["zero", "negative", "too long"])
def test_lengths_must_add_up(length: int, claimed: int) -> None:
    frame = bytearray(messages.submit([Submission(1, 0, 0, ids(*range(claimed)))], EPOCH))
    frame[24 + 16 : 24 + 20] = length.to_bytes(4, "little", signed=True)
    with pytest.raises(MalformedFrame):
        messages.parse_submit(bytes(frame), messages.parse_header(bytes(frame)))


def test_sequence_0_is_no_text() -> None:
    frame = messages.submit([Submission(0, 0, 0, ids(1))], EPOCH)
    with pytest.raises(MalformedFrame):
        messages.parse_submit(frame, messages.parse_header(frame))


def test_a_welcome_that_is_no_text_is_malformed() -> None:
    body = Welcome(model="model", digest="f", folder="/b", rows=1, dim=1, device="cpu", precision="fp32")
    frame = messages.welcome(body, EPOCH).replace(b"model\xa5model", b"model\xa5m\xffdel")
    assert b"\xff" in frame
    with pytest.raises(MalformedFrame):
        messages.parse_welcome(frame)
