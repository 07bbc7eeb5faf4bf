"""Texts of any lengths as the four arrays of a packed graph, padded to a bucket. Pure NumPy.

    input_ids     int32 [tokens]          the texts' ids, one text after the other
    position_ids  int32 [tokens]          each token's place in its text, from 0
    cu_seqlens    int32 [texts + 1]       where each text begins, and the number of tokens
    token_offset  int32 [texts, longest]  where each token lies in a padded batch (row · longest + column), in order;
                                          then where its padding lies

as ONNX Runtime's PackedMultiHeadAttention takes them (its operator's description in bert_defs.cc; its flash kernel
reads cu_seqlens alone, the others token_offset too).

Every token belongs to a text, so the tokens that fill a bucket are texts of their own behind the real ones. Attention,
pooling and all else work within a text, so they change nothing real. Padding texts that get no token come first among
them: their beginning is then the place of a token that exists, and a graph that looks it up finds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.runners.buckets import Bucket
from ipc.messages import Ids

Int32 = NDArray[np.int32]
PADDING_ID = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """The arrays, in the order of the graph's inputs."""

    input_ids: Int32
    position_ids: Int32
    cu_seqlens: Int32
    token_offset: Int32


def empty(bucket: Bucket) -> Packed:
    """Arrays of a bucket's sizes, with nothing in them."""
    return Packed(*(np.zeros(shape, np.int32) for shape in shapes(bucket).values()))


def shapes(bucket: Bucket) -> dict[str, tuple[int, ...]]:
    """The graph's inputs by name, in order."""
    return {
        "input_ids": (bucket.tokens,),
        "position_ids": (bucket.tokens,),
        "cu_seqlens": (bucket.texts + 1,),
        "token_offset": (bucket.texts, bucket.longest),
    }


def pack(texts: Sequence[Ids], bucket: Bucket, into: Packed) -> None:
    """Write texts (int32 [length] each, 1 to `bucket.longest` long) into arrays of the bucket's sizes.

    Raises ValueError where they do not fit, which would be a bug of whoever chose the bucket.
    """
    lengths = _lengths(texts, bucket)
    real = sum(map(len, texts))
    np.concatenate(texts, out=into.input_ids[:real])
    into.input_ids[real:] = PADDING_ID
    into.cu_seqlens[0] = 0
    np.cumsum(lengths, out=into.cu_seqlens[1:])
    begins = np.repeat(into.cu_seqlens[:-1], lengths)
    np.subtract(np.arange(bucket.tokens, dtype=np.int32), begins, out=into.position_ids)
    _place(lengths, bucket, into)


def _lengths(texts: Sequence[Ids], bucket: Bucket) -> NDArray[np.int64]:
    """The tokens of each text of the bucket: what is left goes to the last of the padding texts."""
    own = [len(text) for text in texts]
    left = bucket.tokens - sum(own)
    full, rest = divmod(left, bucket.longest)
    if left < 0 or len(own) + full + bool(rest) > bucket.texts:
        raise ValueError(f"{len(own)} texts and {left} tokens of padding do not fit into {bucket}")
    padding = [rest, *[bucket.longest] * full] if rest else [bucket.longest] * full
    return np.array([*own, *[0] * (bucket.texts - len(own) - len(padding)), *padding])


def _place(lengths: NDArray[np.int64], bucket: Bucket, into: Packed) -> None:
    offsets = into.token_offset.reshape(-1)
    rows = np.repeat(np.arange(bucket.texts, dtype=np.int32) * bucket.longest, lengths)
    np.add(rows, into.position_ids, out=offsets[: bucket.tokens])
    is_padding = np.ones(offsets.size, bool)
    is_padding[offsets[: bucket.tokens]] = False
    offsets[bucket.tokens :] = np.flatnonzero(is_padding)
