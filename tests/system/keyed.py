"""Keys of a running server, and connections to each of its front ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import AsyncExitStack

from perf.stack import ROOT, Stack
from tests.system.processes import server_end
from tests.system.wire import Connection


def keys(stack: Stack, *arguments: str) -> str:
    """Run `python -m tools.keys` as a user does; gives what it printed."""
    command = [sys.executable, "-m", "tools.keys", *arguments]
    return subprocess.run(command, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=True).stdout.strip()


async def connect_to_each(stack: Stack, block: AsyncExitStack) -> dict[int, Connection]:
    """A connection to each front end, by its pid."""
    pids = stack.pids("frontend")
    found: dict[int, Connection] = {}
    give_up = time.monotonic() + 30
    while len(found) < len(pids):
        assert time.monotonic() < give_up, f"no connection was accepted by {set(pids) - set(found)}"
        connection = await block.enter_async_context(await Connection.open(stack.port))
        assert (await connection.request("GET", "/health")).status == 200
        found.setdefault(server_end(pids, connection.local_port)[0], connection)
    return found


def bearer(key: str) -> dict[str, str]:
    """The header of a request with this key."""
    return {"Authorization": f"Bearer {key}"}


async def make_key(stack: Stack, name: str, *limits: str) -> str:
    """A new key, once every front end takes it: `await make_key(stack, "a", "--rpm", "2")`."""
    key = await asyncio.to_thread(keys, stack, "create", name, *limits)
    async with AsyncExitStack() as block:
        give_up = time.monotonic() + 30
        for connection in (await connect_to_each(stack, block)).values():
            while (await connection.request("GET", "/v1/models", headers=bearer(key))).status != 200:
                assert time.monotonic() < give_up, "the key is not taken"
                await asyncio.sleep(0.01)
    return key
