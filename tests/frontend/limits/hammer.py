"""One of several processes that ask for one key far more often than its limit allows, and note what was admitted when.

python -m tests.frontend.limits.hammer FOLDER REDIS_URL LIMIT BURST PAUSE SECONDS

An empty URL: the embedded store. Every PAUSE seconds BURST requests are asked for at once. It starts at the time of
CLOCK_BOOTTIME that it reads from its input, and writes for each admission the two ns between which it was decided.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import uvloop

from frontend import redis_link
from frontend.limits.embedded import EmbeddedWindows, boot_clock
from frontend.limits.quota import Quota
from frontend.limits.shared import RedisWindows
from frontend.redis_link import RedisLink

WINDOW_SECONDS = 2.0


async def hammer(store: EmbeddedWindows | RedisWindows, quota: Quota, start: int, options: list[str]) -> None:
    burst, pause, seconds = int(options[0]), float(options[1]), float(options[2])
    admitted: list[tuple[int, int]] = []

    async def ask() -> None:
        before = boot_clock()
        verdict = await store.admit("key", quota, 1)
        assert verdict is not None
        if verdict.admitted:
            admitted.append((verdict.at, verdict.at) if verdict.at else (before, boot_clock()))

    due = start
    while due < start + seconds * 1e9:
        await asyncio.sleep(max(0.0, (due - boot_clock()) / 1e9))
        await asyncio.gather(*(ask() for _ in range(burst)))
        due += int(pause * 1e9)
    print(json.dumps(admitted), flush=True)


async def main() -> None:
    folder, url, limit, *options = sys.argv[1:]
    # How quick Redis is, is not what is tested.
    redis_link.TIMEOUT_SECONDS = 10.0
    link = RedisLink(url) if url else None
    store = RedisWindows(link, minute=WINDOW_SECONDS) if link else EmbeddedWindows(Path(folder), minute=WINDOW_SECONDS)
    print("ready", flush=True)
    await hammer(store, Quota(rpm=int(limit)), int(sys.stdin.readline()), options)
    if isinstance(store, EmbeddedWindows):
        store.close()
    if link:
        await link.close()


if __name__ == "__main__":
    uvloop.run(main())
