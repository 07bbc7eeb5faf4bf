"""Text → token ids, with exact truncation that never tokenizes a megabyte to keep 256 tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
import tokenizers

from ipc.errors import InputTooLong, StartError
from ipc.messages import Ids

# About 1 ms of tokenizing: longer requests leave the event loop to the others meanwhile.
INLINE_CHARS = 8_000
# First guess of how many characters hold `max_tokens` tokens; doubled until it is proven to be enough.
CHARS_PER_TOKEN = 16

Side = Literal["left", "right"]
T = TypeVar("T")


class Tokens(NamedTuple):
    """The ids of each text, int32 [length] with special tokens, and how many texts were truncated."""

    texts: list[Ids]
    truncated: int

    @property
    def total(self) -> int:
        """Tokens in all."""
        return sum(map(len, self.texts))


class Token(msgspec.Struct, frozen=True, gc=False):
    """One token: the part of the text it stands for, from byte `start` to before byte `stop` of its UTF-8.

    A special token stands for no part: its `text` is its name.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokenizer:
    """A bundle's tokenizer; `max_tokens` counts the special tokens, `max_chars` bounds what is tokenized whole."""

    def __init__(self, path: Path, max_tokens: int, max_chars: int) -> None:
        self._max_tokens = max_tokens
        self._max_chars = max_chars
        self._whole = _load(path)
        self._cut = _load(path)
        self._cut.enable_truncation(max_tokens)
        # One thread: it keeps a long request off the event loop, and the engine needs the other cores. Without `close`
        # it ends with the tokenizer's last user, which may be a request that began before the model changed.
        self._thread = ThreadPoolExecutor(1, "tokenizer")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    async def encode(self, texts: Sequence[str], *, truncate: bool, side: Side = "right") -> Tokens:
        """Tokenize, on a thread where it would hold up the event loop.

        A text with more than `max_tokens` loses those at its `side` if `truncate`, else InputTooLong is raised.
        """
        cut = self._encode_cut if side == "right" else self._encode_end
        return await self.off_loop(sum(map(len, texts)), cut if truncate else self._encode_whole, texts)

    def encode_here(self, texts: Sequence[str], *, truncate: bool) -> Tokens:
        """As `encode`, on the caller's thread, for programs that have no event loop."""
        return self._encode_cut(texts) if truncate else self._encode_whole(texts)

    async def split(self, texts: Sequence[str], take: Callable[[list[Token]], bytes], *, special: bool) -> list[bytes]:
        """What `take` makes of the tokens of each text, however many they are; with `special`, those around it too.

        Raises InputTooLong for a text of more than `max_chars` characters.
        """
        return await self.off_loop(sum(map(len, texts)), self._split, texts, take, special)

    async def off_loop(self, size: int, work: Callable[..., T], *arguments: object) -> T:
        """Do `work`, on the thread if its `size` is more than INLINE_CHARS: it must then not touch the loop."""
        if size <= INLINE_CHARS:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _check_chars(self, texts: Sequence[str]) -> None:
        for index, text in enumerate(texts):
            if len(text) > self._max_chars:
                raise InputTooLong(
                    f"Text {index} has {len(text)} characters, the most is {self._max_chars}: shorten or split it."
                )

    def _split(self, texts: Sequence[str], take: Callable[[list[Token]], bytes], special: bool) -> list[bytes]:
        self._check_chars(texts)
        return [take(_tokens_of(text, self._whole.encode(text, add_special_tokens=special))) for text in texts]

    def _encode_whole(self, texts: Sequence[str]) -> Tokens:
        self._check_chars(texts)
        ids = [np.array(encoding.ids, np.int32) for encoding in self._whole.encode_batch_fast(texts)]
        for index, text_ids in enumerate(ids):
            if len(text_ids) > self._max_tokens:
                raise InputTooLong(
                    f"Text {index} has {len(text_ids)} tokens, the model takes {self._max_tokens}: "
                    "shorten it, or ask for truncation."
                )
        return Tokens(ids, 0)

    def _encode_cut(self, texts: Sequence[str]) -> Tokens:
        encodings = self._cut.encode_batch_fast([self._prefix(text) for text in texts])
        truncated = sum(1 for encoding in encodings if encoding.overflowing)
        return Tokens([np.array(encoding.ids, np.int32) for encoding in encodings], truncated)

    def _encode_end(self, texts: Sequence[str]) -> Tokens:
        most = self._max_tokens - self._whole.num_special_tokens_to_add(False)
        ids, truncated = [], 0
        for text in texts:
            encoding, is_all = self._end(text)
            if len(encoding) > most or not is_all:
                truncated += 1
                encoding.truncate(most, direction="left")
            # This adds the special tokens.
            ids.append(np.array(self._whole.post_process(encoding).ids, np.int32))
        return Tokens(ids, truncated)

    def _prefix(self, text: str) -> str:
        """The shortest of a few prefixes that has the same first `max_tokens` tokens as the whole text.

        A cut can change only the word it goes through, which is the prefix's last; so a prefix is enough once
        the words before its last one hold `max_tokens` tokens. Raises InputTooLong where `max_chars` do not.
        """
        chars = min(CHARS_PER_TOKEN * self._max_tokens, self._max_chars)
        while chars < len(text):
            words = self._whole.encode(text[:chars], add_special_tokens=False).word_ids
            if words and len(words) - words.count(words[-1]) > self._max_tokens:
                break
            if chars == self._max_chars:
                raise self._too_sparse(text, "first")
            chars = min(2 * chars, self._max_chars)
        return text[:chars]

    def _end(self, text: str) -> tuple[tokenizers.Encoding, bool]:
        """What `_prefix` is at the other end, tokenized without special tokens, and whether it is the whole text.

        Here the cut goes through the first word. Words must not depend on those before them, as BERT's do not.
        """
        chars = min(CHARS_PER_TOKEN * self._max_tokens, self._max_chars)
        while chars < len(text):
            encoding = self._whole.encode(text[-chars:], add_special_tokens=False)
            words = encoding.word_ids
            if words and len(words) - words.count(words[0]) > self._max_tokens:
                return encoding, False
            if chars == self._max_chars:
                raise self._too_sparse(text, "last")
            chars = min(2 * chars, self._max_chars)
        return self._whole.encode(text, add_special_tokens=False), True

    def _too_sparse(self, text: str, which: str) -> InputTooLong:
        return InputTooLong(
            f"A text has {len(text)} characters, and the {which} {self._max_chars} of them fewer than "
            f"{self._max_tokens} tokens (is it mostly white space?): shorten it."
        )


def _tokens_of(text: str, encoding: tokenizers.Encoding) -> list[Token]:
    encoded = text.encode()
    # The library counts characters; where each begins among the bytes, and where the last ends.
    starts = [*accumulate((len(char.encode()) for char in text), initial=0)] if len(encoded) != len(text) else None
    tokens = []
    for id_, token, (first, end), special in zip(
        encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True
    ):
        if special:
            tokens.append(Token(id_, token, True, None, None))
        else:
            start, stop = (starts[first], starts[end]) if starts else (first, end)
            tokens.append(Token(id_, text[first:end], False, start, stop))
    return tokens


def _load(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise StartError(f"The tokenizer {path} cannot be read ({error}): prepare the model again.") from None
