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
from frontend.model import Model
from frontend.redis_link import RedisLink
from frontend.remote_cache import RemoteCache
from frontend.token_ids import Decoder
from ipc.messages import Welcome
from ipc.settings import Settings


@asynccontextmanager
async def open_embedder(
    settings: Settings,
    model: Model,
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

        async def adopt(engine: Welcome) -> None:
            await embedder.adopt(engine)

        client = EngineClient(
            settings.run_path,
            model.bundle.digest,
            adopt,
            most_flights=settings.queue_items,
            most_held=settings.most_held,
            most_queue_s=settings.max_queue_ms / 1e3,
            grace_s=settings.engine_grace_ms / 1e3,
            stall_s=settings.engine_stall_ms / 1e3,
        )
        ends.callback(client.close)
        cache = None
        if settings.cache_mb:
            remote = RemoteCache(link, model.bundle.dim, settings.cache_ttl_s) if link else None
            cache = CachedEngine(client, VectorCache(settings.cache_mb << 20), model.origin, remote)
            ends.push_async_callback(cache.close)
        embedder = Embedder(settings, model, client, Admission(limiter, settings), cache, cl100k)
        ends.callback(embedder.close)
        yield embedder
