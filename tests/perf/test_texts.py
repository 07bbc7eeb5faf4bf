from __future__ import annotations

import statistics
from collections import Counter

import pytest
import tokenizers

from ipc.bundle import TOKENIZER, Bundle
from perf.texts import KINDS, LONGEST, SHORTEST, WORDS, Kind, exact_texts, make_texts, original_texts, repeated_texts


@pytest.fixture(scope="module")
def tokenizer(bundle: Bundle) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(bundle.path(TOKENIZER)))


def lengths(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[int]:
    return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)]


def test_every_word_is_one_token(tokenizer: tokenizers.Tokenizer) -> None:
    assert set(lengths(tokenizer, list(WORDS))) == {3}
    assert len(set(WORDS)) == len(WORDS)


@pytest.mark.parametrize("tokens", [4, 5, 16, 50, 128, 256])
def test_exact_texts_have_exactly_so_many_tokens(tokenizer: tokenizers.Tokenizer, tokens: int) -> None:
    assert set(lengths(tokenizer, exact_texts(tokens, 200))) == {tokens}


@pytest.mark.parametrize(
    ("kind", "low", "high", "mean"), [("short", 12, 20, 16), ("passage", 112, 144, 128), ("mixed", 4, 256, None)]
)
def test_sets_have_the_lengths_they_promise(
    tokenizer: tokenizers.Tokenizer, kind: Kind, low: int, high: int, mean: int | None
) -> None:
    found = lengths(tokenizer, make_texts(kind, 2000))
    assert low <= min(found) <= max(found) <= high
    assert mean is None or statistics.mean(found) == pytest.approx(mean, rel=0.02)


def test_mixed_lengths_are_log_normal_and_not_piled_up_at_the_ends(tokenizer: tokenizers.Tokenizer) -> None:
    found = lengths(tokenizer, make_texts("mixed", 2000))
    assert statistics.median(found) < statistics.mean(found)
    assert found.count(SHORTEST) < 100
    assert found.count(LONGEST) < 20


@pytest.mark.parametrize("kind", KINDS)
def test_sets_are_distinct_and_repeatable(kind: Kind) -> None:
    texts = make_texts(kind, 2000, seed=5)
    assert len(set(texts)) == 2000
    assert make_texts(kind, 2000, seed=5) == texts
    assert make_texts(kind, 2000, seed=6) != texts


def test_exact_texts_are_distinct() -> None:
    assert len(set(exact_texts(16, 20_000))) == 20_000


@pytest.mark.parametrize(("tokens", "count"), [(3, 1), (SHORTEST, len(WORDS) + 1)])
def test_texts_that_cannot_be_are_refused(tokens: int, count: int) -> None:
    with pytest.raises(ValueError, match="4 tokens"):
        exact_texts(tokens, count)


def test_repeated_texts_come_again_as_zipf_says() -> None:
    texts = repeated_texts(5000)
    counts = [count for _, count in Counter(texts).most_common()]
    assert len(counts) < len(texts)
    # The commonest of 20,000 has a weight of 1 among 10.5.
    assert counts[0] / len(texts) == pytest.approx(1 / 10.5, rel=0.2)


def test_the_original_texts_are_a_quarter_of_each_kind() -> None:
    texts = original_texts(4000)
    kinds = Counter(text.split()[0] + str(text == "Short text") for text in texts)
    assert set(kinds) == {"QueryFalse", "DocumentFalse", "ShortTrue", "LongerFalse"}
    assert all(count == pytest.approx(1000, rel=0.15) for count in kinds.values())
    assert texts == original_texts(4000)
