"""Token ids where a text is expected: OpenAI's API allows them, and what they mean is the setting `token_input`.

Clients that do not know this model (langchain-openai among them) send ids of OpenAI's vocabulary, cl100k. Taking those
for ours would give wrong vectors and no error, so ids are refused unless the setting says whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ipc.errors import InputTooLong, InvalidRequest, StartError
from ipc.messages import Ids

REFUSAL = (
    "`input` holds token ids, which are another model's unless the client knows this one: send text (with "
    "langchain-openai, pass check_embedding_ctx_length=False), or have EMBEDLANE_TOKEN_INPUT set on the server."
)

IdLists = Sequence[Sequence[int]]


class Decoder(Protocol):
    """What is needed of tiktoken's encoding."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""


def load_cl100k() -> Decoder:
    """Load tiktoken's cl100k_base: about 0.2 s and 45 MB. Raises StartError where it cannot be had."""
    try:
        # An extra, and only this setting needs it.
        import tiktoken  # noqa: PLC0415
    except ImportError:
        raise StartError(
            "EMBEDLANE_TOKEN_INPUT=cl100k needs the package tiktoken: install the extra `cl100k`."
        ) from None
    try:
        return tiktoken.get_encoding("cl100k_base")
    except Exception as error:  # tiktoken lets through whatever its HTTP library and the file system raise
        raise StartError(
            "EMBEDLANE_TOKEN_INPUT=cl100k needs tiktoken's vocabulary cl100k_base, which could neither be downloaded "
            f"nor found ({type(error).__name__}): point TIKTOKEN_CACHE_DIR to a folder that holds it."
        ) from None


def decode(decoder: Decoder, lists: IdLists) -> list[str]:
    """The text of each list of ids. Raises InvalidRequest for an id that the vocabulary lacks."""
    texts = []
    for index, ids in enumerate(lists):
        try:
            texts.append(decoder.decode(ids))
        except (KeyError, OverflowError):
            raise InvalidRequest(
                f"Text {index} of `input` has a token id that is not in cl100k_base: send text.", param="input"
            ) from None
    return texts


def accept(lists: IdLists, vocab_size: int, max_tokens: int) -> list[Ids]:
    """Each list as int32 [length], as it is: nothing is added or cut. Raises InvalidRequest for what no model takes."""
    for index, ids in enumerate(lists):
        if not ids:
            raise InvalidRequest(f"Text {index} of `input` is empty.", param="input")
        if len(ids) > max_tokens:
            raise InputTooLong(
                f"Text {index} has {len(ids)} token ids, the model takes {max_tokens}: shorten it.", param="input"
            )
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise InvalidRequest(
                f"Text {index} of `input` has a token id outside the model's vocabulary of {vocab_size}.", param="input"
            )
    return [np.array(ids, np.int32) for ids in lists]
