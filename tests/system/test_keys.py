"""Keys made and revoked while the server runs: in force in every front end within a second, and nobody else notices."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from frontend.keys import KEYS_FILE
from perf.stack import Stack
from tests.chaos.load import Load
from tests.system.keyed import connect_to_each, keys
from tests.system.processes import log_records, wait_for, waited_for_cpu
from tests.system.wire import Connection, fetch_bits

pytestmark = pytest.mark.system

FRONTENDS = 4
PROMISED_SECONDS = 1.0
NEW_CONNECTIONS = 64
CANNOT_START = 3


@pytest.fixture(scope="module")
def four() -> Iterator[Stack]:
    with Stack(frontends=FRONTENDS, log_level="debug") as stack:
        yield stack
        # pytest shows this where a test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])


def key_file(stack: Stack) -> Path:
    return stack.folder / "data" / KEYS_FILE


async def status(connection: Connection, key: str) -> int:
    """What a client with this key gets from the front end at the other end."""
    return (await connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})).status


async def late_seconds(connection: Connection, pid: int, key: str, expected: int, changed: float) -> float:
    """How long after the change the last request was sent that did not get what it should; never again after that.

    Less the time in which the front end was ready to run and other processes had the cores.
    """
    others = {200, 401} - {expected}
    late, right, waited = 0.0, 0, waited_for_cpu(pid)
    while right < 20:
        sent = time.monotonic()
        got = await status(connection, key)
        if got == expected:
            right += 1
        else:
            assert got in others
            assert not right, "a change that is in force stays so"
            late = sent - changed - (waited_for_cpu(pid) - waited)
            assert late < 30
        await asyncio.sleep(0.005)
    return late


async def everywhere(stack: Stack, each: dict[int, Connection], key: str, expected: int) -> None:
    """Every front end gives the expected status within a second, and so does whichever takes a new connection."""
    changed = time.monotonic()
    late = await asyncio.gather(*(late_seconds(c, pid, key, expected, changed) for pid, c in each.items()))
    assert max(late) < PROMISED_SECONDS
    for _ in range(NEW_CONNECTIONS):
        async with await Connection.open(stack.port) as connection:
            assert await status(connection, key) == expected


async def make_and_revoke(stack: Stack, name: str) -> str:
    async with AsyncExitStack() as block:
        each = await connect_to_each(stack, block)
        key = await asyncio.to_thread(keys, stack, "create", name, "--rpm", "0")
        await everywhere(stack, each, key, 200)
        await asyncio.to_thread(keys, stack, "revoke", name)
        await everywhere(stack, each, key, 401)
    return key


def quiet_bits(stack: Stack) -> dict[str, bytes]:
    async def ask() -> dict[str, bytes]:
        async with await Connection.open(stack.port) as connection:
            return {text: await fetch_bits(connection, text) for text in ("a", "two words", "long " * 60)}

    return asyncio.run(ask())


def test_a_key_is_good_everywhere_within_a_second_and_so_is_its_end(four: Stack) -> None:
    with Load(four.port, quiet_bits(four), connections=8, pause=0.1) as load:
        wait_for(lambda: load.counts()["right"] > 16, "answers")
        made = [asyncio.run(make_and_revoke(four, f"client-{number}")) for number in range(3)]
        answered = load.counts()["right"]
        wait_for(lambda: load.counts()["right"] > answered + 16, "answers")
    assert set(load.counts()) == {"right"}
    assert load.refused == 0
    log = four.log.read_text()
    for key in made:
        assert key not in log
        assert hashlib.sha256(key.encode()).hexdigest() not in log
    assert {record["keys"] for record in log_records(four.log, "keys read")} == {0, 1}


def test_a_slip_in_the_file_locks_nobody_out(four: Stack) -> None:
    async def all_answer(key: str, expected: int) -> None:
        async with AsyncExitStack() as block:
            await everywhere(four, await connect_to_each(four, block), key, expected)

    key = keys(four, "create", "careful")
    asyncio.run(all_answer(key, 200))
    half = key_file(four).read_bytes()[:-10]
    key_file(four).write_bytes(half)
    message = "key file not usable, the keys read last stay in force"
    wait_for(lambda: len(log_records(four.log, message)) == FRONTENDS, "an error of each front end")
    asyncio.run(all_answer(key, 200))
    assert len(log_records(four.log, message)) == FRONTENDS, "said once"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        keys(four, "create", "another")
    assert refused.value.returncode == CANNOT_START
    assert key_file(four).read_bytes() == half
    key_file(four).unlink()
    asyncio.run(all_answer(key, 401))


def test_a_broken_key_file_stops_the_start() -> None:
    stack = Stack()
    try:
        key_file(stack).parent.mkdir()
        key_file(stack).write_text("{")
        stack.start(wait=False)
        assert stack.process is not None
        assert stack.process.wait(30) == CANNOT_START
        (line,) = stack.log.read_text().splitlines()
        assert str(key_file(stack)) in line
        assert not stack.run_dir.exists()
    finally:
        stack.__exit__()
