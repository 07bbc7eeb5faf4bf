from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runners import mixing
from engine.runners.mixing import TOKEN_COST, Int32, arrange
from ipc.bundle import MIXED_GROUPS, MIXED_STEP
from ipc.messages import Ids

lengths_of_texts = st.one_of(
    st.lists(st.one_of(st.integers(1, 24), st.integers(1, 300)), min_size=1, max_size=40),
    st.builds(lambda length, count: [length] * count, st.integers(1, 300), st.integers(1, 8)),
)


def make(lengths: list[int]) -> list[Ids]:
    """Ids that are all different, so that each says which token of which text it is."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end, dtype=np.int32) for end, length in zip(ends, lengths, strict=True)]


def groups(arrays: dict[str, Int32]) -> list[tuple[Int32, Int32]]:
    return [(arrays[f"places_{group}"], arrays[f"lengths_{group}"]) for group in range(MIXED_GROUPS)]


@pytest.mark.parametrize("fill", [False, True])
@settings(deadline=None, max_examples=200)
@given(lengths_of_texts)
def test_every_token_is_in_its_place_and_finds_back(fill: bool, lengths: list[int]) -> None:
    texts = make(lengths)
    arrays = arrange(texts, fill=fill)
    assert np.array_equal(arrays["input_ids"], np.concatenate(texts))
    assert np.array_equal(arrays["position_ids"], np.concatenate([np.arange(length) for length in lengths]))
    rows = [row for places, _ in groups(arrays) for row in arrays["input_ids"][places]]
    sizes = np.concatenate([sizes for _, sizes in groups(arrays)])
    for text, row in zip(texts, arrays["order"], strict=True):
        assert sizes[row] == len(text)
        assert np.array_equal(rows[row][: len(text)], text)
        assert (rows[row][len(text) :] == text[0]).all(), (
            "padding is the text's own, for what is in it may be no number"
        )
    assert np.array_equal(np.concatenate(rows)[arrays["back"]], arrays["input_ids"])
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("at_any_length", [False, True])
@settings(deadline=None, max_examples=200)
@given(lengths_of_texts)
def test_widths_are_multiples_where_there_is_padding(at_any_length: bool, lengths: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "PLAIN_AT_ANY_LENGTH", at_any_length)
        *masked, (plain, plain_lengths) = groups(arrange(make(lengths)))
    for places, sizes in masked:
        assert places.shape[1] % MIXED_STEP == 0
        assert not len(sizes) or 0 <= places.shape[1] - sizes.max() < MIXED_STEP
    has_plain = at_any_length or max(lengths) % MIXED_STEP == 0
    assert plain_lengths.tolist() == [length for length in lengths if has_plain and length == max(lengths)]
    assert not has_plain or plain.shape[1] == max(lengths)
    assert sum(len(sizes) for _, sizes in masked) + len(plain_lengths) == len(lengths)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_no_other_cut_would_cost_less(lengths: list[int]) -> None:
    def cost(rows: int, width: int) -> int:
        return rows * width * (width + TOKEN_COST)

    *masked, _ = groups(arrange(make(lengths)))
    widths = sorted(-(-int(size) // MIXED_STEP) * MIXED_STEP for _, sizes in masked for size in sizes)
    every = [
        sum(cost(len(part), part[-1]) for part in (widths[:cut], widths[cut:]) if part)
        for cut in range(len(widths) + 1)
    ]
    assert sum(cost(*places.shape) for places, _ in masked) == min(every)


def test_where_every_group_must_have_a_row_the_empty_ones_get_one() -> None:
    made = groups(arrange(make([8, 8, 8]), fill=True))
    assert [sizes.tolist() for _, sizes in made] == [[1], [1], [8, 8, 8]]
    assert [len(sizes) for _, sizes in groups(arrange(make([8, 8, 8])))] == [0, 0, 3]
    assert [len(sizes) for _, sizes in groups(arrange(make([8])))] == [0, 0, 1]
    assert [len(sizes) for _, sizes in groups(arrange(make([8]), fill=True))] == [1, 1, 1]
