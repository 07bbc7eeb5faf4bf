"""The embedded store's own: processes that die or stop at the worst moment, and a table that is full."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from frontend.limits import embedded, ring
from frontend.limits.embedded import EmbeddedWindows
from frontend.limits.quota import Quota, Verdict
from frontend.limits.table import ROW_WORDS, RULES, TABLE_WORDS, WRITING, ring_of
from ipc.errors import StartError
from tests.frontend.limits.clocked import OwnClock
from tests.frontend.peer import mappings

pytestmark = pytest.mark.anyio

QUOTA = Quota(rpm=10, rph=100, tpm=1000)


class Killed(Exception):
    """In the place of SIGKILL: nothing that comes after a write happens, but for the lock's end."""


class Dying:
    """The table's words, until so many writes were done."""

    def __init__(self, words: memoryview[int], writes: int) -> None:
        self._words = words
        self._left = writes

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        if not self._left:
            raise Killed
        self._left -= 1
        self._words[index] = value

    def release(self) -> None:
        self._words.release()


@pytest.fixture
def stopping(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that was stopped while it held the lock."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.frontend.limits.stopping", str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    yield process
    process.kill()
    process.communicate()


def assert_sound(store: EmbeddedWindows) -> None:
    """Every ring's total is the sum of its buckets."""
    words = store._table.words
    for row in range(TABLE_WORDS, len(words), ROW_WORDS):
        for base in (ring_of(row, rule) for rule in range(RULES)):
            assert words[base + ring.TOTAL] == sum(words[base + ring.FIRST : base + ring.WORDS])


def remaining(verdict: Verdict) -> int:
    assert verdict.rpm is not None
    return verdict.rpm.remaining


async def die_in(store: EmbeddedWindows, writes: int, key: str) -> bool:
    """Ask, and die after so many writes; False: it was done before."""
    words = store._table.words
    store._table.words = cast("memoryview[int]", Dying(words, writes))
    try:
        await store.admit(key, QUOTA, 7)
    except Killed:
        return True
    finally:
        store._table.words = words
    return False


async def test_a_process_that_dies_between_any_two_writes_leaves_the_truth(tmp_path: Path) -> None:
    """A known key whose old buckets must leave first, and a new key that takes the row of an idle one."""
    writes, done = 0, set[str]()
    while len(done) < 2:
        folder = tmp_path / str(writes)
        folder.mkdir()
        clock = OwnClock()
        dying, other = (EmbeddedWindows(folder, capacity=2, clock=clock) for _ in range(2))
        await other.admit("idle", QUOTA, 3)
        clock.advance(7200)
        for _ in range(4):
            assert (await other.admit("known", QUOTA, 5)).admitted
            clock.advance(17)
        for key, left in (("known", 10 - 3), ("new", 10)):
            if not await die_in(dying, writes, key):
                done.add(key)
            assert remaining(await other.usage(key, QUOTA)) in {left, left - 1}, "neither free nor locked out"
            assert (await other.admit(key, QUOTA, 1)).admitted
            assert_sound(other)
            assert other._table.words[WRITING] == 0
        clock.advance(3661)
        for key in ("known", "new"):
            assert remaining(await other.usage(key, QUOTA)) == 10
        dying.close()
        other.close()
        writes += 1
    assert writes > 20, "it died at many places"


async def test_a_holder_that_is_killed_holds_up_nobody(tmp_path: Path, stopping: subprocess.Popen[str]) -> None:
    stopping.kill()
    stopping.wait()
    store = EmbeddedWindows(tmp_path)
    assert store._lock.try_acquire(), "the kernel let go of it"
    store._release()
    assert remaining(await store.admit("key", QUOTA, 1)) == 9
    store.close()


async def test_a_holder_that_is_stopped_is_done_without_and_may_go_on_later(
    tmp_path: Path, stopping: subprocess.Popen[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many turns of the loop, also where this process has to wait for a core.
    monkeypatch.setattr(embedded, "STUCK_SECONDS", 0.5)
    quota = Quota(rpm=100)
    stores = [EmbeddedWindows(tmp_path) for _ in range(3)]
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    verdicts = await asyncio.gather(*(store.admit("key", quota, 1) for store in stores for _ in range(10)))
    counting.cancel()
    assert turns > 10, "the loop went on meanwhile"
    assert sorted(map(remaining, verdicts)) == list(range(70, 100)), "exact among the others"
    assert len(caplog.records) == 1, "one of them replaced the lock and said so"
    stopping.send_signal(signal.SIGCONT)
    assert stopping.stdout is not None
    assert stopping.stdout.readline() == "True\n"
    stopping.wait()
    assert remaining(await stores[0].usage("key", quota)) == 69, "its charge came as well"
    assert_sound(stores[0])
    for store in stores:
        store.close()


async def test_a_late_writer_makes_right_what_it_wrote_beside_others(tmp_path: Path) -> None:
    late, other = (EmbeddedWindows(tmp_path) for _ in range(2))
    await other.admit("key", QUOTA, 1)
    assert late._lock.try_acquire()
    assert other._lock.replace()
    assert not late._lock.replace(), "one replaces it"
    # The late one writes a total that it had read before the other's charge.
    late._row = cast(int, late._table.find("key"))
    await other.admit("key", QUOTA, 1)
    late._table.words[ring_of(late._row, 0) + ring.TOTAL] = 1
    late._release()
    assert remaining(await late.usage("key", QUOTA)) == 8
    late.close()
    other.close()


async def test_a_full_table_gives_up_the_key_charged_longest_ago(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    clock = OwnClock()
    store = EmbeddedWindows(tmp_path, capacity=4, clock=clock)
    keys = [f"key {n}" for n in range(5)]
    for key in [*keys[:4], keys[0]]:
        clock.advance(1)
        assert (await store.admit(key, QUOTA, 1)).admitted
    assert not caplog.records
    assert remaining(await store.admit(keys[4], QUOTA, 1)) == 9
    assert [remaining(await store.usage(key, QUOTA)) for key in keys] == [8, 10, 9, 9, 9]
    await store.admit(keys[1], QUOTA, 1)
    assert store._table.evicted == 2
    assert len(caplog.records) == 1, "it is told once"
    store.close()


async def test_idle_rows_go_to_other_keys(tmp_path: Path) -> None:
    clock = OwnClock()
    store = EmbeddedWindows(tmp_path, capacity=2, clock=clock)
    for n in range(50):
        assert remaining(await store.admit(f"key {n}", QUOTA, 1)) == 9
        clock.advance(1831)
    assert store._table.evicted == 0
    store.close()


async def test_what_is_refunded_is_free_and_what_is_past_is_not_refunded(tmp_path: Path) -> None:
    clock = OwnClock()
    store = EmbeddedWindows(tmp_path, clock=clock)
    first = await store.admit("key", QUOTA, 400)
    clock.advance(2)
    second = await store.admit("key", QUOTA, 300)
    await store.refund("key", QUOTA, 400, 1, first.at)
    found = await store.usage("key", QUOTA)
    assert (remaining(found), found.tpm and found.tpm.remaining) == (9, 700)
    clock.advance(61)
    await store.admit("key", QUOTA, 1)
    await store.refund("key", QUOTA, 300, 1, second.at)
    found = await store.usage("key", QUOTA)
    assert (remaining(found), found.tpm and found.tpm.remaining) == (9, 999)
    assert (found.rph and found.rph.remaining) == 99, "the hour still counts it, so there it is taken back"
    await store.refund("unknown", QUOTA, 1, 1, 0)
    assert_sound(store)
    store.close()


async def test_a_table_of_another_boot_is_removed_and_of_the_same_boot_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot_id"
    monkeypatch.setattr("frontend.limits.table.BOOT_ID", boot)
    for boot_id, left in (("one", 9), ("one", 8), ("two", 9)):
        boot.write_text(boot_id)
        store = EmbeddedWindows(tmp_path)
        assert remaining(await store.admit("key", QUOTA, 1)) == left
        store.close()
    left_there = sorted(name.rpartition(".")[2] for name in os.listdir(tmp_path) if name.startswith("limits-"))  # noqa: PTH208
    assert left_there == ["lock0", "table"]


def test_a_folder_without_room_is_told_at_the_start(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(StartError, match="The table of limits needs 7 MiB"):
            EmbeddedWindows(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_closed_store_leaves_nothing_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    store = EmbeddedWindows(tmp_path)
    await store.admit("key", QUOTA, 1)
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert not [line for line in mappings() if str(tmp_path) in line]


def test_a_bucket_is_never_shorter_than_its_share_of_the_window() -> None:
    assert embedded.bucket_width(60, 1e9) == 1_000_000_000
    assert embedded.bucket_width(2, 1e9) == 33_333_334
