"""Vectors that were computed before: the process's own, and those that all machines share in Redis.

A vector is found by what it was computed from: model, runner, precision and token ids. So nothing in a cache is ever
out of date, and what asks for it in another form (fewer dimensions, another encoding) finds the same whole vector.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np

from frontend import outcomes
from frontend.client import EngineClient
from frontend.flight import Call, Take
from frontend.remote_cache import RemoteCache
from ipc.messages import Ids
from ipc.priority import Priority
from ipc.slab import Row

KEY_BYTES: Final = 16
# What an entry costs besides the vector: key, headers of two objects, its places in the dictionary's tables. By
# tracemalloc that is 157 bytes in a new dictionary and up to 283 in one that has been full for long (a test measures
# it), and the allocators round each object up.
ENTRY_BYTES: Final = 312
# Encoding a vector takes about 7 us, so that a request of hits alone would hold up all others for long.
HITS_PER_TURN: Final = 64


class VectorCache:
    """Key → the vector's bytes, the least recently used ones dropped above `most_bytes`. One event loop's own."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._vectors: OrderedDict[bytes, bytes] = OrderedDict()
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, key: bytes) -> bytes | None:
        """The vector, which counts as used now, or None."""
        vector = self._vectors.get(key)
        if vector is not None:
            self._vectors.move_to_end(key)
        return vector

    def put(self, key: bytes, vector: bytes) -> None:
        """Keep a vector as the one used last; one that is larger than all there may be is not kept."""
        size = len(vector) + ENTRY_BYTES
        if size > self._most_bytes:
            return
        replaced = self._vectors.pop(key, None)
        if replaced is not None:
            self.bytes -= len(replaced) + ENTRY_BYTES
        self._vectors[key] = vector
        self.bytes += size
        while self.bytes > self._most_bytes:
            _, dropped = self._vectors.popitem(last=False)
            self.bytes -= len(dropped) + ENTRY_BYTES
            self.evicted += 1


@dataclass(slots=True)
class CacheCounters:
    """Texts since the start: `hits` here, `remote_hits` in Redis, `misses` in neither.

    `shared` of the misses had their vector computed for somebody else. `evicted` vectors were dropped for others,
    `remote_dropped` were not written to Redis because it was away or too slow. `bytes` are in use now.
    """

    hits: int = 0
    misses: int = 0
    shared: int = 0
    evicted: int = 0
    remote_hits: int = 0
    remote_dropped: int = 0
    bytes: int = 0


class CachedEngine:
    """`EngineClient.embed` with a cache before it; texts that are under way already are waited for, not sent again.

    `origin` names what computes the vectors, each float32 [dim]; `remote` is what lies behind the process's own cache.
    """

    def __init__(
        self, engine: EngineClient, cache: VectorCache, origin: str, remote: RemoteCache | None = None
    ) -> None:
        self._engine = engine
        self._cache = cache
        self._remote = remote
        self._seed = _seed(origin)
        self._nothing_missing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._nothing_missing.set_result(None)
        self._hits = self._misses = self._remote_hits = 0
        engine.keep = self._keep

    def change_model(self, origin: str, dim: int) -> None:
        """Find and keep the vectors of another model from now on; calls under way raise ModelChanged."""
        self._seed = _seed(origin)
        if self._remote is not None:
            self._remote.dim = dim

    async def close(self) -> None:
        """Stop writing to Redis; the engine's client is closed by its owner."""
        self._engine.keep = None
        if self._remote is not None:
            await self._remote.close()

    @property
    def counters(self) -> CacheCounters:
        """As they are now."""
        return CacheCounters(
            hits=self._hits,
            misses=self._misses,
            shared=self._engine.shared,
            evicted=self._cache.evicted,
            remote_hits=self._remote_hits,
            remote_dropped=self._remote.dropped if self._remote else 0,
            bytes=self._cache.bytes,
        )

    async def embed(
        self,
        texts: Sequence[Ids],
        take: Take | None,
        *,
        deadline_ns: int,
        priority: Priority,
        flow: int = 0,
        lost: asyncio.Future[None] | None = None,
    ) -> Call:
        """As `EngineClient.embed`, which is asked for what no cache has; the call's `hits` tells how many had been.

        `take` gets a read-only float32 [dim]: the row in the slab where the vector was computed now, else a copy.
        Without it a part is the vector's bytes, unless the call holds its row.
        """
        seed = self._seed
        keys = [self._key(ids) for ids in texts]
        parts = [b""] * len(texts)
        missing = await self._encode(range(len(texts)), keys, self._cache.get, take, parts)
        self._hits += len(texts) - len(missing)
        if missing and self._remote is not None:
            missing = await self._ask_remote(self._remote, missing, keys, flow, take, parts, deadline_ns)
        self._misses += len(missing)
        hits = len(texts) - len(missing)
        if not missing:
            return Call(take, parts, 0, self._nothing_missing, deadline_ns, hits=hits)
        if self._seed is not seed:
            raise outcomes.model_changed()
        call = await self._engine.embed(
            [texts[n] for n in missing] if hits else texts,
            take,
            deadline_ns=deadline_ns,
            priority=priority,
            flow=flow,
            lost=lost,
            keys=[keys[n] for n in missing] if hits else keys,
        )
        if hits:
            for n, part in zip(missing, call.parts, strict=True):
                parts[n] = part
            call.held = {missing[n]: lent for n, lent in call.held.items()}
            call.parts, call.hits = parts, hits
        return call

    def _key(self, ids: Ids) -> bytes:
        digest = self._seed.copy()
        digest.update(ids.data)
        return digest.digest()

    async def _encode(
        self,
        places: Iterable[int],
        keys: Sequence[bytes],
        find: Callable[[bytes], bytes | None],
        take: Take | None,
        parts: list[bytes],
    ) -> list[int]:
        """Fill in the parts of vectors that are found; gives the places of the others."""
        missing = []
        found = 0
        for n in places:
            vector = find(keys[n])
            if vector is None:
                missing.append(n)
                continue
            parts[n] = vector if take is None else take(np.frombuffer(vector, np.float32))
            found += 1
            if found % HITS_PER_TURN == 0:
                await asyncio.sleep(0)
        return missing

    async def _ask_remote(
        self,
        remote: RemoteCache,
        missing: list[int],
        keys: Sequence[bytes],
        flow: int,
        take: Take | None,
        parts: list[bytes],
        deadline_ns: int,
    ) -> list[int]:
        """The same for vectors in Redis. What the engine computes already is not asked for."""
        asked = list({keys[n]: None for n in missing if not self._engine.is_under_way(flow, keys[n])})
        if not asked:
            return missing
        try:
            async with asyncio.timeout((deadline_ns - time.monotonic_ns()) / 1e9):
                found = await remote.get(asked)
        except TimeoutError:
            raise outcomes.late(is_engine_away=self._engine.engine is None) from None
        for key in asked:
            if key in found:
                self._cache.put(key, found[key])

        def find(key: bytes) -> bytes | None:
            # Meanwhile the engine may have computed it for another request.
            return found.get(key) or self._cache.get(key)

        still_missing = await self._encode(missing, keys, find, take, parts)
        self._remote_hits += len(missing) - len(still_missing)
        return still_missing

    def _keep(self, key: bytes, row: Row) -> None:
        vector = row.tobytes()
        self._cache.put(key, vector)
        if self._remote is not None:
            self._remote.put(key, vector)


def _seed(origin: str) -> blake2b:
    return blake2b(origin.encode() + b"\0", digest_size=KEY_BYTES)
