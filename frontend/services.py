"""What a front end holds while it runs: the way to the engine, the cache, the limits, the keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from frontend.admission import Admission
from frontend.cache import CachedEngine, VectorCache
from frontend.client import EngineClient
from frontend.embed import Embedder
from frontend.limits.embedded import EmbeddedWindows
from frontend.limits.limiter import Limiter
from frontend.limits.shared import RedisWindows
from frontend.redis_link import RedisLink
from frontend.remote_cache import RemoteCache
from frontend.token_ids import Decoder
from frontend.tokenizer import Tokenizer
from ipc.bundle import Bundle
from ipc.settings import Settings


@asynccontextmanager
async def open_embedder(
    settings: Settings,
    bundle: Bundle,
    tokenizer: Tokenizer,
    cl100k: Decoder | None,
    windows: EmbeddedWindows,
    link: RedisLink | None,
) -> AsyncIterator[Embedder]:
    """Everything behind the dialects, on the running loop; ended in reverse order. `link` is Redis, if there is one."""
    async with AsyncExitStack() as ends:
        if link is not None:
            ends.push_async_callback(link.close)
        limiter = Limiter(windows, RedisWindows(link) if link else None)
        ends.callback(limiter.close)
        client = EngineClient(
            settings.run_path,
            bundle.fingerprint,
            most_flights=settings.queue_items,
            most_held=settings.most_held,
            grace_s=settings.engine_grace_ms / 1e3,
            stall_s=settings.engine_stall_ms / 1e3,
        )
        ends.callback(client.close)
        cache = None
        if settings.cache_mb:
            remote = RemoteCache(link, bundle.dim, settings.cache_ttl_s) if link else None
            # One model has other vectors in another precision, and may have in another runner.
            origin = f"{bundle.fingerprint} {settings.runner} {settings.precision}"
            cache = CachedEngine(client, VectorCache(settings.cache_mb << 20), origin, remote)
            ends.push_async_callback(cache.close)
        yield Embedder(settings, bundle, tokenizer, client, Admission(limiter, settings), cache, cl100k)
