"""When a batch leaves, and which texts are in it. Pure: no socket, no clock of its own.

A batch holds the texts whose turn it is (`engine.queue`), of any lengths; or, for a runner that does not mix lengths,
texts of equal length, so that no token of it is padding. It leaves when it is full (rows or tokens), when its oldest
text has waited `max_wait`, or at once when no other lane works, for then waiting would gain nothing. It is formed as
late as possible, when a lane asks for it, so that later arrivals can join.

Interactive texts go before bulk, and while there are some a lane is kept free from bulk: a bulk batch is long, and
whoever comes while all lanes are at one waits for its end.

Suspects go before all others, one by one, while every other lane is idle: if the engine dies again, it was that text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from engine.queue import NOBODY, Item, Line, Queue
from engine.rates import BulkRate
from ipc.backlog import Backlog
from ipc.priority import Priority

# A bulk batch goes first once none has gone for so long, so that interactive traffic cannot starve them.
BULK_PATIENCE_NS = 500_000_000
# So long after an interactive text another one is expected.
INTERACTIVE_FOR_NS = 1_000_000_000
# How often bulk's rate is looked at.
LOOK_NS = 1_000_000_000
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


class Turn(NamedTuple):
    """What a free lane gets: texts to run, and those whose deadline has passed."""

    batch: list[Item]
    expired: list[Item]


class Scheduler:
    """A queue for each priority, each with its own limit, and the choice of the next batch.

    `backlog` is where front ends see what waits.
    """

    def __init__(self, limits: Limits, backlog: Backlog | None = None) -> None:
        self._limits = self._full_limits = limits
        self._small_until = 0
        self.backlog = backlog or Backlog.private()
        self._queues = {
            priority: Queue(limits.queue_items, self.backlog.part(priority), by_length=not limits.mixes_lengths)
            for priority in Priority
        }
        self._suspects = self._queues[Priority.SUSPECT]
        self._suspect_runs = False
        self._bulk_at = 0
        self._bulk_rate = BulkRate()
        # Tokens that left since it was looked at.
        self._left = dict.fromkeys(Priority, 0)
        # Until then a lane is kept for interactive texts.
        self._kept_until = 0

    def __len__(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def queued(self, priority: Priority) -> tuple[int, int]:
        """How many texts of a priority wait, and how many tokens they have."""
        queue = self._queues[priority]
        return len(queue.waiting), queue.tokens

    def has_more(self, priority: Priority, blocked: frozenset[int]) -> bool:
        """Whether a text of this priority waits that may go."""
        return self._queues[priority].oldest(blocked) is not None

    def add(self, item: Item, *, has_place: bool = False) -> bool:
        """Queue a text; False where its priority's queue is full, or has one of that front end and sequence.

        With `has_place` it is not asked whether it is full: the text was there until now.
        """
        queue = self._queues[item.priority]
        if not (has_place or queue.has_room(item.flow)) or item.key in queue.waiting:
            return False
        queue.add(item)
        if item.priority is Priority.INTERACTIVE:
            self._kept_until = item.arrived + INTERACTIVE_FOR_NS
        return True

    def add_again(self, items: Iterable[Item]) -> None:
        """Queue texts of which `finish` just said that they leave, the most urgent first: there is room for them."""
        for item in sorted(items, key=lambda item: item.priority):
            was_added = self.add(item, has_place=True)
            assert was_added, "this is a bug: a text has lost its place in the queue"

    def keep_small(self, tokens: int, *, until: int) -> None:
        """Let no batch have more tokens than this until then (ns), but for one text: larger ones found no memory."""
        self._limits = replace(self._limits, tokens=min(tokens, self._limits.tokens))
        self._small_until = until

    def look(self, now: int) -> None:
        """Let front ends see how fast bulk goes; to be called several times a second."""
        began = self._bulk_rate.began
        if now - began < LOOK_NS:
            return
        oldest = self._queues[Priority.BULK].oldest()
        left, self._left = self._left, dict.fromkeys(Priority, 0)
        self.backlog.bulk_rate = self._bulk_rate.after(
            now,
            self.backlog.rate,
            interactive=left[Priority.INTERACTIVE],
            bulk=left[Priority.BULK],
            # Then there was some at any time since.
            waited=oldest is not None and oldest.arrived <= began,
        )

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

    def next_batch(self, now: int, *, idle: bool, spare: bool = True, blocked: frozenset[int] = NOBODY) -> Turn:
        """The texts for a lane that is free; an empty batch where waiting is better.

        `idle` says that no other lane works, `spare` that another one would be without a bulk batch if this lane had
        one. Texts of front ends in `blocked` stay where they are.
        """
        if now >= self._small_until:
            self._limits = self._full_limits
        self._suspect_runs = self._suspect_runs and not idle
        suspect = self._suspects.oldest(blocked)
        if self._suspect_runs or (suspect and not idle):
            return Turn([], [])
        if suspect:
            turn = self._take([suspect], 1, now)
            self._suspect_runs = bool(turn.batch)
            return turn
        for priority in self._by_urgency(now, spare):
            ripe = self._from(self._queues[priority], now, idle, blocked)
            if ripe is not None:
                if priority is Priority.BULK and ripe.batch:
                    self._bulk_at = now
                return ripe
        return Turn([], [])

    def wake_at(self, *, spare: bool = True, blocked: frozenset[int] = NOBODY) -> int | None:
        """When a text will be due that is not yet; None where nothing waits, or all wait for a lane's end."""
        if self._suspect_runs or self._suspects.oldest(blocked):
            return None
        interactive, bulk = (self._queues[p].oldest(blocked) for p in (Priority.INTERACTIVE, Priority.BULK))
        due = [] if interactive is None else [interactive.arrived + self._limits.max_wait]
        if bulk is not None:
            earliest = 0 if spare else min(self._kept_until, self._bulk_due(bulk))
            due.append(max(bulk.arrived + self._limits.max_wait, earliest))
        return min(due, default=None)

    def _by_urgency(self, now: int, spare: bool) -> Iterator[Priority]:
        """The priorities that may have this lane."""
        oldest = self._queues[Priority.BULK].oldest()
        if oldest is not None and now >= self._bulk_due(oldest):
            yield Priority.BULK
        yield Priority.INTERACTIVE
        if spare or now >= self._kept_until:
            yield Priority.BULK

    def _bulk_due(self, oldest: Item) -> int:
        """When a bulk batch goes first."""
        return max(oldest.arrived, self._bulk_at) + BULK_PATIENCE_NS

    def _from(self, queue: Queue, now: int, idle: bool, blocked: frozenset[int]) -> Turn | None:
        """A queue's next batch; None where it is not due."""
        if self._limits.mixes_lengths:
            return self._take_any(queue, now, blocked) if self._is_ripe(queue, now, idle, blocked) else None
        length = self._ripe_length(queue, now, idle, blocked)
        return None if length is None else self._take(queue.in_turn(blocked, length), self._limits.rows_of(length), now)

    def _is_ripe(self, queue: Queue, now: int, idle: bool, blocked: frozenset[int]) -> bool:
        """Whether the oldest text is due, or there is a full batch of any lengths."""
        oldest, limits = queue.oldest(blocked), self._limits
        if oldest is None:
            return False
        # Texts of blocked front ends count as well: a batch may then leave before it is full.
        is_full = len(queue.waiting) >= limits.rows or queue.tokens >= limits.tokens
        return idle or is_full or now - oldest.arrived >= limits.max_wait

    def _take_any(self, queue: Queue, now: int, blocked: frozenset[int]) -> Turn:
        """The texts whose turn it is up to the first that has no place, so that none is overtaken."""
        turn, tokens = Turn([], []), 0
        for item in queue.in_turn(blocked):
            if item.deadline <= now:
                turn.expired.append(item)
                continue
            tokens += len(item.ids)
            if len(turn.batch) == self._limits.rows or (turn.batch and tokens > self._limits.tokens):
                break
            turn.batch.append(item)
        return self._leave(turn)

    def _ripe_length(self, queue: Queue, now: int, idle: bool, blocked: frozenset[int]) -> int | None:
        """The length to run now: that of the text whose turn it is, if one is due; else one with a full batch."""
        oldest = queue.oldest(blocked)
        if oldest is None:
            return None
        if idle or now - oldest.arrived >= self._limits.max_wait:
            first = queue.next(blocked)
            assert first is not None, "this is a bug: a text waits and has no turn"
            return len(first.ids)
        return next((length for length, line in queue.lines.items() if self._is_full(length, line)), None)

    def _is_full(self, length: int, line: Line) -> bool:
        return line.count >= self._limits.rows_of(length)

    def _take(self, items: Iterable[Item], room: int, now: int) -> Turn:
        candidates: list[Item] = []
        expired: list[Item] = []
        for item in items:
            (expired if item.deadline <= now else candidates).append(item)
            if len(candidates) == BATCHES_AHEAD * room:
                break
        return self._leave(Turn(_together(candidates)[:room], expired))

    def _leave(self, turn: Turn) -> Turn:
        if turn.batch:
            priority = turn.batch[0].priority
            self._left[priority] += sum(len(item.ids) for item in turn.batch)
            self._queues[priority].run(turn.batch)
        self._drop(turn.expired)
        return turn


def _together(items: list[Item]) -> list[Item]:
    """Texts of the oldest one's front end first: a batch of one front end is one REPLY and wakes one process.

    The oldest text leads every batch, so nothing is overtaken for long.
    """
    return sorted(items, key=lambda item: item.owner != items[0].owner)
