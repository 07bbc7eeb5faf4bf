"""The schedules of test_client_schedules with a small cache before the client, and few texts that many ask for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.cache import ENTRY_BYTES, CachedEngine, VectorCache
from ipc.errors import PoisonRequest
from ipc.priority import Priority
from tests.frontend.peer import DIGEST, DIM, expected, ids, start_call
from tests.frontend.test_client_schedules import MOST_DEATHS, STEPS, Asked, Schedule, run_alone

TEXTS = [ids(101, n, 102) for n in range(7)]
KEPT = 3


class SharedSchedule(Schedule):
    """Every call but those of `settle` draws from the same few texts, with repetition and any priority."""

    def __init__(self, run_dir: Path, random: Random) -> None:
        super().__init__(run_dir, random)
        # The numbers of the texts that are only once asked for begin behind the others.
        self.number = len(TEXTS)
        self.cached = CachedEngine(self.client, VectorCache(KEPT * (4 * DIM + ENTRY_BYTES)), DIGEST)
        self.deaths: Counter[int] = Counter()
        self.asked = 0

    async def submit(self) -> None:
        texts = [self.random.choice(TEXTS) for _ in range(self.random.randint(1, 4))]
        priority = self.random.choice([Priority.INTERACTIVE, Priority.BULK])
        self.asked += len(texts)
        self.calls.append(Asked(texts, start_call(self.cached, texts, priority=priority), [0] * len(texts)))

    async def settle(self) -> None:
        """With a text of its own, which no cache has."""
        texts = [ids(101, self.number, 102)]
        self.calls.append(Asked(texts, start_call(self.client, texts), [0]))
        self.number += 1
        await self.has_come(self.number - 1)

    async def die(self) -> None:
        before = self.peer
        await super().die()
        running = set(before.slab.running.tolist())
        self.deaths.update(int(text.ids[1]) for text in before.texts if text.sequence in running)

    def check(self) -> None:
        for call in self.calls:
            if call.task.cancelled():
                assert call.is_cancelled
            elif isinstance(call.task.exception(), PoisonRequest):
                assert max(self.deaths[int(text[1])] for text in call.texts) >= MOST_DEATHS
            else:
                assert call.task.result().parts == expected(call.texts)
        counters = self.cached.counters
        assert counters.hits + counters.misses <= self.asked, "a call may be cancelled before it began"
        assert counters.shared <= counters.misses
        assert counters.bytes <= KEPT * (4 * DIM + ENTRY_BYTES)
        assert not len(self.client._flights), "all have ended"
        assert not self.client.is_under_way(0, self.cached._key(TEXTS[0]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=4, max_size=40), st.integers(0, 2**32))
def test_every_call_ends_once_with_its_own_vectors_whoever_shares_them(steps: list[str], seed: int) -> None:
    run_alone(SharedSchedule, steps, seed)
