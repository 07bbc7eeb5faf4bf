"""Which sizes of a packed batch there are. Pure: sizes in, a bucket out.

Buffers, captured graphs and ONNX Runtime's arena want few shapes, all of them seen at warm-up; real batches have any.
So a batch is padded to the smallest bucket that holds it, in three sizes that are chosen apart:

- `tokens` decides the time. Below 2,048 a small model's run costs what launching its kernels costs, so powers of two
  do, and their runs are captured as CUDA graphs. Above, each octave has eight steps. The last one lies just above the
  largest batch, so a full batch, which misses the bound by less than one text, is padded by little.
- `texts` decides the pooling matrix, texts x tokens, and the vectors: a fourth or a 64th of the tokens.
- `longest` decides how many blocks the attention starts. Its kernels take 128 queries a block, so steps of less than
  a doubling from 128 on would save nothing.

Every bucket leaves room for one text and one token of padding, and for as many texts as its padding tokens need.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

# A multiple of 8 keeps half-precision products on the fast kernels; of 64, whole tiles of most.
TOKEN_STEP = 64
# Up to here tokens come in powers of two and runs are captured.
CAPTURED_TOKENS = 2048
STEPS_PER_OCTAVE = 8
SHORTEST_LONGEST = 128
TEXTS_PER_TOKEN = (1 / 64, 1 / 4)


@dataclass(frozen=True, slots=True)
class Bucket:
    """The sizes of a padded batch; `is_captured` where its run is a CUDA graph."""

    tokens: int
    texts: int
    longest: int
    is_captured: bool


class Buckets:
    """All buckets for batches of at most `rows` texts and `tokens` tokens, of texts of at most `max_tokens`.

    A text longer than `tokens` goes alone, so the largest bucket holds it as well.
    """

    def __init__(self, rows: int, tokens: int, max_tokens: int) -> None:
        self._tokens = _token_sizes(max(tokens, max_tokens))
        self._longest = _longest_sizes(max_tokens)
        gaps = [size - below for below, size in zip([0, *self._tokens], self._tokens, strict=False)]
        # So many texts hold the padding, however short the longest text of the bucket may be.
        self._texts = [
            _text_sizes(size, rows, -(-gap // self._longest[0])) for size, gap in zip(self._tokens, gaps, strict=True)
        ]
        # The last takes every batch, also one of very many very short texts.
        self._texts[-1].append(rows + -(-self._tokens[-1] // self._longest[0]))
        self._all = {
            (tokens, texts, longest): Bucket(tokens, texts, longest, tokens <= CAPTURED_TOKENS)
            for tokens, choices in zip(self._tokens, self._texts, strict=True)
            for texts in choices
            for longest in self._longest
            # Fewer texts than this could not have all the tokens.
            if texts * longest >= tokens
        }

    def __iter__(self) -> Iterator[Bucket]:
        """All of them, the largest first."""
        return iter(sorted(self._all.values(), key=lambda b: (b.tokens, b.texts, b.longest), reverse=True))

    def __len__(self) -> int:
        return len(self._all)

    def choose(self, texts: int, tokens: int, longest: int) -> Bucket:
        """The smallest bucket for so many texts and tokens. Raises ValueError where none is large enough."""
        if longest > self._longest[-1]:
            raise ValueError(f"a text of {longest} tokens is longer than {self._longest[-1]}, the model's most")
        bound = self._longest[bisect_left(self._longest, longest)]
        for at in range(bisect_left(self._tokens, tokens + 1), len(self._tokens)):
            size = self._tokens[at]
            needed = texts + -(-(size - tokens) // bound)
            for choice in self._texts[at]:
                if choice >= needed:
                    return self._all[size, choice, bound]
        raise ValueError(f"no bucket holds {texts} texts of {tokens} tokens")


def _token_sizes(most: int) -> list[int]:
    """Ascending; the last is the first multiple of the step above `most`.

    Above what is captured each is a step more than a round number: as many texts as a batch may have, of one length,
    often come to that number, and there is a token of padding always.
    """
    last = (most // TOKEN_STEP + 1) * TOKEN_STEP
    sizes, size = [], TOKEN_STEP
    while size < min(last, CAPTURED_TOKENS + 1):
        sizes.append(size)
        size *= 2
    size = CAPTURED_TOKENS
    while (size := size + (1 << (size.bit_length() - 1)) // STEPS_PER_OCTAVE) + TOKEN_STEP < last:
        sizes.append(size + TOKEN_STEP)
    return [*sizes, last]


def _longest_sizes(most: int) -> list[int]:
    sizes, size = [], SHORTEST_LONGEST
    while size < most:
        sizes.append(size)
        size *= 2
    return [*sizes, most]


def _text_sizes(tokens: int, rows: int, spare: int) -> list[int]:
    return sorted({min(rows, max(1, int(tokens * part))) + spare for part in TEXTS_PER_TOKEN})
