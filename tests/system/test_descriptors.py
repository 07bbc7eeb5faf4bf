"""A front end that runs out of descriptors: it says so once, closes what is too many, and serves all others."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack

import psutil
import pytest

from frontend.drain import FULL, OTHER_DESCRIPTORS
from perf.stack import ROOT, Stack
from tests.system.processes import log_records, wait_for
from tests.system.wire import Connection

pytestmark = pytest.mark.system

ROOM = 20
# The soft limit is below the hard one, and all is used.
LIMITS = f"ulimit -Sn 32; ulimit -Hn {OTHER_DESCRIPTORS + ROOM}; exec {sys.executable} -m frontend"


async def ask_in_crowd(stack: Stack) -> None:
    async with AsyncExitStack() as ends:
        kept = [await ends.enter_async_context(await Connection.open(stack.port)) for _ in range(ROOM)]
        # Each is accepted before the next one comes.
        for connection in kept:
            assert (await connection.request("GET", "/health")).status == 200
        for _ in range(3 * ROOM):
            async with await Connection.open(stack.port) as too_many:
                assert await too_many.ends()
        for connection in kept:
            assert (await connection.request("GET", "/health")).status == 200
    async with await Connection.open(stack.port) as after:
        assert (await after.request("GET", "/health")).status == 200


def test_out_of_descriptors() -> None:
    stack = Stack(frontends=1)
    with stack.log.open("ab") as output:
        process = subprocess.Popen(
            ["sh", "-c", LIMITS], cwd=ROOT, env=stack.env, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: stack.status("/health") == 200, "a front end")
        wait_for(lambda: len(psutil.Process(process.pid).net_connections("tcp")) == 1, "its listening socket alone")
        asyncio.run(ask_in_crowd(stack))
        (said,) = log_records(stack.log, FULL)
        assert said["connections"] == ROOM
        assert said["level"] == "ERROR"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(stack.run_dir, ignore_errors=True)
        stack.__exit__()
