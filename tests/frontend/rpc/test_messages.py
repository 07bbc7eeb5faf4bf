"""What is on the wire is what protobuf would have made, and what protoc made is of the definitions as they are."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.flight import Call, Holding, Lent
from frontend.rpc.messages import Options, dimensions, parse, varint, with_vectors
from frontend.rpc.protos import embedlane_pb2, tei_pb2
from ipc.errors import InvalidRequest
from ipc.slab import FREE

ROOT = Path(__file__).parents[3]
PROTOS = ROOT / "frontend" / "rpc" / "protos"
DIM = 8


def call_of(
    held: list[int], texts: int, room: int = 100
) -> tuple[Call, np.ndarray[tuple[int, ...], np.dtype[np.uint32]]]:
    """A call whose texts `held` hold rows of a slab, and the others have copies."""
    rows = np.arange(texts * DIM, dtype=np.float32).reshape(texts, DIM)
    leases = np.ones(texts, np.uint32)
    loop = asyncio.new_event_loop()
    call = Call(None, [b""] * texts, 0, loop.create_future(), 0, Holding(room))
    loop.close()
    for number in range(texts):
        lent = Lent(rows, leases, number)
        if number in held:
            assert call.holding is not None
            kept = call.holding.hold(lent)
            assert kept is not None
            call.held[number] = kept
        else:
            call.parts[number] = rows[number].tobytes()
            lent.release()
    return call, leases


@given(st.sets(st.integers(0, 19)), st.integers(1, 20))
def test_vectors_are_laid_into_a_message_as_protobuf_would(held: set[int], texts: int) -> None:
    call, leases = call_of([n for n in held if n < texts], texts)
    message = embedlane_pb2.EmbedResponse(dimensions=DIM, model="m", tokens=3, cached=False)
    assert dimensions(call) == DIM
    encoded = with_vectors(message, embedlane_pb2.EmbedResponse.EMBEDDINGS_FIELD_NUMBER, call)
    message.embeddings = np.arange(texts * DIM, dtype="<f4").tobytes()
    assert embedlane_pb2.EmbedResponse.FromString(encoded) == message
    assert len(encoded) == len(message.SerializeToString())
    assert (leases == FREE).all(), "every row was given back"
    assert call.holding is not None and call.holding.room == 100


def test_packed_floats_are_the_same_bytes() -> None:
    call, _ = call_of([0], 1)
    encoded = with_vectors(tei_pb2.EmbedResponse(), tei_pb2.EmbedResponse.EMBEDDINGS_FIELD_NUMBER, call)
    message = tei_pb2.EmbedResponse(embeddings=range(DIM))
    assert encoded == message.SerializeToString()


@given(st.integers(0, 1 << 40))
def test_a_length_is_seven_bits_a_byte(number: int) -> None:
    metadata = tei_pb2.Metadata(total_time_ns=number)
    assert varint(number) == metadata.SerializeToString()[1:] or not number


def test_zero_is_one_byte() -> None:
    assert varint(0) == b"\0"


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x0a\x01\xff", b"\x0a\x03\xed\xa0\x80", b"\xff" * 20])
def test_what_is_no_message_is_refused_by_its_name(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"embedlane\.v1\.EmbedRequest"):
        parse(embedlane_pb2.EmbedRequest, data)


def test_options_that_are_not_given_are_left_to_the_core() -> None:
    assert Options.of(embedlane_pb2.EmbedRequest()) == Options(False, "right", None, None, None)
    given = embedlane_pb2.EmbedRequest(
        truncate=True, truncation_direction="TRUNCATION_DIRECTION_LEFT", prompt_name="", normalize=False, dimensions=3
    )
    assert Options.of(given) == Options(True, "left", "", False, 3)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (embedlane_pb2.EmbedRequest(dimensions=0), "dimensions"),
        (embedlane_pb2.EmbedRequest.FromString(b"\x18\x02"), "truncation_direction"),
        (tei_pb2.EmbedRequest.FromString(b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "truncation_direction"),
    ],
    ids=["no dimensions", "unknown direction", "negative direction"],
)
def test_options_that_cannot_be_had_are_refused(request_: embedlane_pb2.EmbedRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Options.of(request_)
    assert refused.value.param == field


@pytest.mark.parametrize("name", ["embedlane", "tei"])
def test_what_protoc_makes_is_up_to_date(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", f"{name}.proto"], check=True)
    for suffix in ("_pb2.py", "_pb2.pyi"):
        made, kept = (folder / f"{name}{suffix}" for folder in (tmp_path, PROTOS))
        assert made.read_text() == kept.read_text(), "run `make protos`"
