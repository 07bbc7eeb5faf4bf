"""Heads that come again: found byte for byte, and only around a whole request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import heads
from frontend.heads import Heads
from frontend.protocol import RawHeaders

HEAD = b"POST /embed HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n"
READ: RawHeaders = [(b"host", b"a"), (b"content-length", b"4")]


@pytest.fixture
def kept() -> Heads[str]:
    """One that has seen HEAD."""
    found: Heads[str] = Heads()
    found.keep(HEAD + b"text", READ, "asked")
    return found


@pytest.mark.parametrize("body", [b"text", b"else", b"\r\n\r\n"])
def test_a_head_is_found_whatever_its_body_says(kept: Heads[str], body: bytes) -> None:
    assert kept.find(HEAD + body) == "asked"


@pytest.mark.parametrize(
    "whole",
    [
        HEAD,
        HEAD + b"tex",
        HEAD + b"textPOST",
        HEAD[:-1],
        b"",
        b"\r\n\r\n" + HEAD + b"text",
        HEAD.replace(b"host", b"Host") + b"text",
        HEAD.replace(b"/embed", b"/other") + b"text",
    ],
)
def test_what_is_not_that_head_and_one_whole_body_is_not_found(kept: Heads[str], whole: bytes) -> None:
    assert kept.find(whole) is None


@pytest.mark.parametrize(
    ("whole", "headers"),
    [
        (b"\r\n\r\n" + HEAD + b"text", READ),
        (HEAD + b"text" + HEAD + b"text", READ),
        (HEAD + b"te", READ),
        (HEAD, READ),
        (b"", READ),
        (HEAD + b"text", [*READ, (b"transfer-encoding", b"chunked")]),
        (HEAD + b"text", [*READ, (b"upgrade", b"h2c")]),
        (HEAD + b"text", [*READ, (b"content-length", b"4")]),
        (HEAD + b"text", [(b"host", b"a")]),
        (HEAD + b"text", [(b"content-length", b"+4")]),
    ],
)
def test_what_is_not_one_whole_plain_request_is_not_kept(whole: bytes, headers: RawHeaders) -> None:
    found: Heads[str] = Heads()
    found.keep(whole, headers, "asked")
    assert found.find(whole) is found.find(HEAD + b"text") is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "MOST_HEADS", 2)
    found: Heads[int] = Heads()
    paths = [b"%d" % number for number in range(5)]
    for number, path in enumerate(paths):
        found.keep(HEAD.replace(b"/embed", path) + b"text", READ, number)
    asked = [found.find(HEAD.replace(b"/embed", path) + b"text") for path in paths]
    assert asked[-1] == 4
    assert sum(one is not None for one in asked) <= 2


@given(st.lists(st.tuples(st.sampled_from([b"/a", b"/b"]), st.binary(max_size=6)), max_size=8), st.binary(max_size=6))
def test_what_is_found_is_what_that_head_asked_for(sent: list[tuple[bytes, bytes]], body: bytes) -> None:
    found: Heads[tuple[bytes, int]] = Heads()
    known = set()
    for path, text in sent:
        head = b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (path, len(text))
        found.keep(head + text, [(b"content-length", b"%d" % len(text))], (path, len(text)))
        known.add((path, len(text)))
    for path in (b"/a", b"/b"):
        head = b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (path, len(body))
        asked = path, len(body)
        assert found.find(head + body) == (asked if asked in known else None)
