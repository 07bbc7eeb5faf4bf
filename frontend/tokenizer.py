"""Text → token ids, with exact truncation that never tokenizes a megabyte to keep 256 tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from ipc.errors import InputTooLong, StartError
from ipc.messages import Ids

# About 1 ms of tokenizing: longer requests leave the event loop to the others meanwhile.
INLINE_CHARS = 8_000
# First guess of how many characters hold `max_tokens` tokens; doubled until it is proven to be enough.
CHARS_PER_TOKEN = 16


class Tokens(NamedTuple):
    """The ids of each text, int32 [length] with special tokens, and how many texts were truncated."""

    texts: list[Ids]
    truncated: int

    @property
    def total(self) -> int:
        """Tokens in all."""
        return sum(map(len, self.texts))


class Tokenizer:
    """A bundle's tokenizer; `max_tokens` counts the special tokens, `max_chars` bounds what is tokenized whole."""

    def __init__(self, path: Path, max_tokens: int, max_chars: int) -> None:
        self._max_tokens = max_tokens
        self._max_chars = max_chars
        self._whole = _load(path)
        self._cut = _load(path)
        self._cut.enable_truncation(max_tokens)
        # One thread: it keeps a long request off the event loop, and the engine needs the other cores.
        self._thread = ThreadPoolExecutor(1, "tokenizer")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    async def encode(self, texts: Sequence[str], *, truncate: bool) -> Tokens:
        """Tokenize, on a thread where it would hold up the event loop.

        A text with more than `max_tokens` is cut at the right if `truncate`, else InputTooLong is raised.
        """
        encode = self._encode_cut if truncate else self._encode_whole
        if sum(map(len, texts)) <= INLINE_CHARS:
            return encode(texts)
        return await asyncio.get_running_loop().run_in_executor(self._thread, encode, texts)

    def _encode_whole(self, texts: Sequence[str]) -> Tokens:
        for index, text in enumerate(texts):
            if len(text) > self._max_chars:
                raise InputTooLong(
                    f"Text {index} has {len(text)} characters, the most is {self._max_chars}: shorten or split it."
                )
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
                raise InputTooLong(
                    f"A text has {len(text)} characters, and the first {chars} of them fewer than "
                    f"{self._max_tokens} tokens (is it mostly white space?): shorten it."
                )
            chars = min(2 * chars, self._max_chars)
        return text[:chars]


def _load(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise StartError(f"The tokenizer {path} cannot be read ({error}): prepare the model again.") from None
