from __future__ import annotations

import base64

import pytest

from perf.exact import Comparison
from perf.http import Connection

VECTORS = [bytes([n] * 8) for n in range(4)]


def answer(vectors: list[bytes], number: int) -> Connection:
    connection = Connection(lambda _: None)
    data = b",".join(b'{"embedding":"%b"}' % base64.b64encode(vector) for vector in vectors)
    connection.body, connection.number = b'{"data":[%b]}' % data, number
    return connection


@pytest.mark.parametrize("number", [1, 3, 5])
def test_the_same_bits_are_right_round_after_round(number: int) -> None:
    compare = Comparison(VECTORS, 2)
    assert compare(answer(VECTORS[2:], number))
    assert (compare.vectors, compare.different) == (2, 0)


def test_one_other_bit_is_seen() -> None:
    compare = Comparison(VECTORS, 2)
    assert not compare(answer([VECTORS[0], VECTORS[1][:-1] + b"\0"], 0))
    assert (compare.vectors, compare.different) == (2, 1)


def test_a_vector_that_is_missing_is_different() -> None:
    compare = Comparison(VECTORS, 2)
    assert not compare(answer(VECTORS[:1], 0))
    assert compare.different == 1
