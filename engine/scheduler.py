"""When a batch leaves, and which texts are in it. Pure: no socket, no clock of its own.

A batch holds the oldest texts in order, of any lengths; or, for a runner that does not mix lengths, texts of equal
length, so that no token of it is padding. It leaves when it is full (rows or tokens), when its oldest text has
waited `max_wait`, or at once when no other lane works, for then waiting would gain nothing. It is formed as late as
possible, when a lane asks for it, so that later arrivals can join.

Suspects go before all others, one by one, while every other lane is idle: if the engine dies again, it was that text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from ipc.messages import Ids, Priority

Key: TypeAlias = tuple[int, int]
NOBODY: frozenset[int] = frozenset()
# Bulk texts go first once they have waited this long, so that interactive traffic cannot starve them.
BULK_PATIENCE_NS = 500_000_000
# How many batches' texts a batch looks through for those of one front end.
BATCHES_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a batch and of each priority's queue; max_wait in ns. `mixes_lengths` is the runner's."""

    rows: int
    tokens: int
    max_wait: int
    queue_items: int
    mixes_lengths: bool = False

    def rows_of(self, length: int) -> int:
        """Most texts of this many tokens in one batch."""
        return min(self.rows, max(1, self.tokens // length))


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One text: ids int32 [length], deadline and arrival in ns on the monotonic clock."""

    owner: int
    sequence: int
    ids: Ids
    priority: Priority
    deadline: int
    arrived: int

    @property
    def key(self) -> Key:
        """Unique among all items of all front ends."""
        return self.owner, self.sequence


class Turn(NamedTuple):
    """What a free lane gets: texts to run, and those whose deadline has passed."""

    batch: list[Item]
    expired: list[Item]


class Queue:
    """Waiting texts of one priority, in order of arrival, and the same by length.

    `most` is how many there may be, `tokens` how many tokens they have.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.tokens = 0
        self.waiting: OrderedDict[Key, Item] = OrderedDict()
        self.by_length: dict[int, OrderedDict[Key, Item]] = {}

    @property
    def has_room(self) -> bool:
        """Whether another text may wait here."""
        return len(self.waiting) < self.most

    def add(self, item: Item) -> None:
        """Append a text."""
        self.tokens += len(item.ids)
        self.waiting[item.key] = item
        self.by_length.setdefault(len(item.ids), OrderedDict())[item.key] = item

    def remove(self, item: Item) -> None:
        """Take out a text that waits here."""
        self.tokens -= len(item.ids)
        del self.waiting[item.key]
        group = self.by_length[len(item.ids)]
        del group[item.key]
        if not group:
            del self.by_length[len(item.ids)]

    def oldest(self, blocked: frozenset[int]) -> Item | None:
        """The text that has waited longest among those that may go."""
        return next((item for item in self.waiting.values() if item.owner not in blocked), None)


class Scheduler:
    """A queue for each priority, each with its own limit, and the choice of the next batch."""

    def __init__(self, limits: Limits) -> None:
        self._limits = self._full_limits = limits
        self._small_until = 0
        self._queues = {priority: Queue(limits.queue_items) for priority in Priority}
        self._suspects = self._queues[Priority.SUSPECT]
        self._suspect_runs = False

    def __len__(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def queued(self, priority: Priority) -> tuple[int, int]:
        """How many texts of a priority wait, and how many tokens they have."""
        queue = self._queues[priority]
        return len(queue.waiting), queue.tokens

    def add(self, item: Item) -> bool:
        """Queue a text; False where its priority's queue is full, or has one of that front end and sequence."""
        queue = self._queues[item.priority]
        if not queue.has_room or item.key in queue.waiting:
            return False
        queue.add(item)
        return True

    def add_again(self, items: Iterable[Item]) -> None:
        """Queue texts of which `finish` just said that they leave, the most urgent first: there is room for them."""
        for item in sorted(items, key=lambda item: item.priority):
            was_added = self.add(item)
            assert was_added, "this is a bug: a text has lost its place in the queue"

    def keep_small(self, tokens: int, *, until: int) -> None:
        """Let no batch have more tokens than this until then (ns), but for one text: larger ones found no memory."""
        self._limits = replace(self._limits, tokens=min(tokens, self._limits.tokens))
        self._small_until = until

    def finish(self, item: Item) -> Sequence[Item]:
        """To be called for every text that has run; gives others that its vector serves too, none here."""
        return ()

    def cancel(self, owner: int, sequences: Sequence[int]) -> list[Item]:
        """Drop texts that nobody waits for, and give them; those already in a batch run to its end."""
        keys = {(owner, sequence) for sequence in sequences}
        return self._drop(
            [queue.waiting[key] for key in keys for queue in self._queues.values() if key in queue.waiting]
        )

    def drop_owner(self, owner: int) -> list[Item]:
        """Drop every text of a dead front end, and give them."""
        waiting = [item for queue in self._queues.values() for item in queue.waiting.values()]
        return self._drop([item for item in waiting if item.owner == owner])

    def _is_waiting(self, item: Item) -> bool:
        return item.key in self._queues[item.priority].waiting

    def _drop(self, items: list[Item]) -> list[Item]:
        for item in items:
            self._queues[item.priority].remove(item)
        return items

    def next_batch(self, now: int, *, idle: bool, blocked: frozenset[int] = NOBODY) -> Turn:
        """The texts for a lane that is free; an empty batch where waiting is better.

        `idle` says that no other lane works. Texts of front ends in `blocked` stay where they are.
        """
        if now >= self._small_until:
            self._limits = self._full_limits
        self._suspect_runs = self._suspect_runs and not idle
        suspect = self._suspects.oldest(blocked)
        if self._suspect_runs or (suspect and not idle):
            return Turn([], [])
        if suspect:
            turn = self._take(self._suspects, len(suspect.ids), 1, now, blocked)
            self._suspect_runs = bool(turn.batch)
            return turn
        for queue in self._by_urgency(now):
            ripe = self._from(queue, now, idle, blocked)
            if ripe is not None:
                return ripe
        return Turn([], [])

    def wake_at(self, blocked: frozenset[int] = NOBODY) -> int | None:
        """When the oldest text will have waited `max_wait`; None where nothing waits, or all wait for a lane's end."""
        if self._suspect_runs or self._suspects.oldest(blocked):
            return None
        heads = [queue.oldest(blocked) for queue in self._queues.values()]
        return min((item.arrived + self._limits.max_wait for item in heads if item), default=None)

    def _by_urgency(self, now: int) -> Iterator[Queue]:
        interactive, bulk = self._queues[Priority.INTERACTIVE], self._queues[Priority.BULK]
        oldest = bulk.oldest(NOBODY)
        patient = oldest is None or now - oldest.arrived < BULK_PATIENCE_NS
        return iter((interactive, bulk) if patient else (bulk, interactive))

    def _from(self, queue: Queue, now: int, idle: bool, blocked: frozenset[int]) -> Turn | None:
        """A queue's next batch; None where it is not due."""
        if self._limits.mixes_lengths:
            return self._take_oldest(queue, now, blocked) if self._is_ripe(queue, now, idle, blocked) else None
        length = self._ripe_length(queue, now, idle, blocked)
        return None if length is None else self._take(queue, length, self._limits.rows_of(length), now, blocked)

    def _is_ripe(self, queue: Queue, now: int, idle: bool, blocked: frozenset[int]) -> bool:
        """Whether the oldest text is due, or there is a full batch of any lengths."""
        oldest, limits = queue.oldest(blocked), self._limits
        if oldest is None:
            return False
        # Texts of blocked front ends count as well: a batch may then leave before it is full.
        is_full = len(queue.waiting) >= limits.rows or queue.tokens >= limits.tokens
        return idle or is_full or now - oldest.arrived >= limits.max_wait

    def _take_oldest(self, queue: Queue, now: int, blocked: frozenset[int]) -> Turn:
        """The oldest texts up to the first that has no place, so that none is overtaken."""
        turn, tokens = Turn([], []), 0
        for item in queue.waiting.values():
            if item.owner in blocked:
                continue
            if item.deadline <= now:
                turn.expired.append(item)
                continue
            tokens += len(item.ids)
            if len(turn.batch) == self._limits.rows or (turn.batch and tokens > self._limits.tokens):
                break
            turn.batch.append(item)
        self._drop([*turn.batch, *turn.expired])
        return turn

    def _ripe_length(self, queue: Queue, now: int, idle: bool, blocked: frozenset[int]) -> int | None:
        """The length to run now: the oldest text's if it is due, else one of which there is a full batch."""
        oldest = queue.oldest(blocked)
        if oldest is None:
            return None
        if idle or now - oldest.arrived >= self._limits.max_wait:
            return len(oldest.ids)
        return next((length for length, group in queue.by_length.items() if self._is_full(length, group)), None)

    def _is_full(self, length: int, group: OrderedDict[Key, Item]) -> bool:
        return len(group) >= self._limits.rows_of(length)

    def _take(self, queue: Queue, length: int, room: int, now: int, blocked: frozenset[int]) -> Turn:
        candidates: list[Item] = []
        expired: list[Item] = []
        for item in queue.by_length[length].values():
            if item.owner not in blocked:
                (expired if item.deadline <= now else candidates).append(item)
            if len(candidates) == BATCHES_AHEAD * room:
                break
        turn = Turn(_together(candidates)[:room], expired)
        for item in (*turn.batch, *turn.expired):
            queue.remove(item)
        return turn


def _together(items: list[Item]) -> list[Item]:
    """Texts of the oldest one's front end first: a batch of one front end is one REPLY and wakes one process.

    The oldest text leads every batch, so nothing is overtaken for long.
    """
    return sorted(items, key=lambda item: item.owner != items[0].owner)
