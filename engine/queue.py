"""Texts of one priority that wait, and the order in which their turn comes.

Flows take turns by start-time fair queueing (Goyal, Vin and Cheng, 1996): each has a clock that its tokens advance when
they are run, and the one whose clock is least comes next. So a flow that brings ten times its share waits ten times as
long, and the others as long as they would without it. Within a flow the oldest text is first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from typing import TypeAlias

from ipc.backlog import ACTIVE, FIRST, TOTAL
from ipc.messages import Ids
from ipc.priority import Priority

Key: TypeAlias = tuple[int, int]
NOBODY: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One text: ids int32 [length], deadline and arrival in ns on the monotonic clock, flow as in `ipc.backlog`."""

    owner: int
    sequence: int
    ids: Ids
    priority: Priority
    deadline: int
    arrived: int
    flow: int = 0

    @property
    def key(self) -> Key:
        """Unique among all items of all front ends."""
        return self.owner, self.sequence


Texts: TypeAlias = OrderedDict[Key, Item]


class Line:
    """Texts by flow, each flow's in order of arrival."""

    def __init__(self) -> None:
        self.flows: dict[int, Texts] = {}
        self.count = 0

    def add(self, item: Item) -> None:
        """Append a text to its flow."""
        self.count += 1
        texts = self.flows.get(item.flow)
        if texts is None:
            texts = self.flows[item.flow] = OrderedDict()
        texts[item.key] = item

    def remove(self, item: Item) -> None:
        """Take out a text that is here."""
        self.count -= 1
        texts = self.flows[item.flow]
        del texts[item.key]
        if not texts:
            del self.flows[item.flow]

    def in_turn(self, clocks: dict[int, int], now: int, blocked: frozenset[int]) -> Iterator[Item]:
        """All texts that may go as their turn comes if every one is run; `clocks` of the flows are read, not moved.

        But for a flow that is passed over because it is blocked: it has no claim to make up for that, so its clock is
        `now` at least.
        """
        if len(self.flows) == 1:
            yield from (item for item in next(iter(self.flows.values())).values() if item.owner not in blocked)
            return
        turns = [(clocks[flow], flow, iter(texts.values())) for flow, texts in self.flows.items()]
        heapify(turns)
        while turns:
            clock, flow, texts = turns[0]
            item = next(texts, None)
            if item is None:
                heappop(turns)
            elif item.owner in blocked:
                clocks[flow] = max(clocks[flow], now)
            else:
                yield item
                heapreplace(turns, (clock + len(item.ids), flow, texts))


class Queue:
    """`most` is how many texts have a place; `backlog` is where front ends see what waits (`Backlog.part`).

    A flow may have as many places as are free (dynamic thresholds: Choudhury and Hahne, 1998): one that asks for far
    too much gets half of them, and one that has none finds a place. With `by_length` the texts of each length stand in
    a line of their own as well.
    """

    def __init__(self, most: int, backlog: memoryview[int], *, by_length: bool) -> None:
        self._free = most
        self._places: dict[int, int] = {}
        self.waiting: Texts = OrderedDict()
        self.line = Line()
        self.lines: dict[int, Line] = {}
        self._by_length = by_length
        self._backlog = backlog
        self._clocks: dict[int, int] = {}
        # The clock of the text that ran last: who has been away starts from here, and has saved up nothing.
        self._now = 0

    def has_room(self, flow: int) -> bool:
        """Whether another text of this flow may wait here."""
        return self._places.get(flow, 0) < self._free

    def take_place(self, flow: int) -> None:
        """Count one more text of this flow that waits, here or for another's vector."""
        self._free -= 1
        self._places[flow] = self._places.get(flow, 0) + 1

    def give_place(self, flow: int) -> None:
        """Count one less."""
        self._free += 1
        self._places[flow] -= 1
        if not self._places[flow]:
            del self._places[flow]

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return self._backlog[TOTAL]

    def add(self, item: Item) -> None:
        """Append a text."""
        flow, tokens = item.flow, len(item.ids)
        self.take_place(flow)
        if flow not in self.line.flows:
            self._clocks[flow] = max(self._clocks.get(flow, 0), self._now)
            self._backlog[ACTIVE] += 1
        self._backlog[TOTAL] += tokens
        self._backlog[FIRST + flow] += tokens
        self.waiting[item.key] = item
        self.line.add(item)
        if self._by_length:
            self.lines.setdefault(tokens, Line()).add(item)

    def remove(self, item: Item) -> None:
        """Take out a text that waits here and does not run."""
        flow, tokens = item.flow, len(item.ids)
        self.give_place(flow)
        del self.waiting[item.key]
        self.line.remove(item)
        self._backlog[TOTAL] -= tokens
        self._backlog[FIRST + flow] -= tokens
        if flow not in self.line.flows:
            self._backlog[ACTIVE] -= 1
        if self._by_length:
            line = self.lines[tokens]
            line.remove(item)
            if not line.count:
                del self.lines[tokens]

    def run(self, items: Iterable[Item]) -> None:
        """Take out texts that run now, in their order: their flows' clocks advance."""
        for item in items:
            self._now = max(self._now, self._clocks[item.flow])
            self._clocks[item.flow] += len(item.ids)
            self.remove(item)

    def oldest(self, blocked: frozenset[int] = NOBODY) -> Item | None:
        """The text that has waited longest among those that may go."""
        return next((item for item in self.waiting.values() if item.owner not in blocked), None)

    def next(self, blocked: frozenset[int]) -> Item | None:
        """The text whose turn it is, among those that may go."""
        return next(self.in_turn(blocked), None)

    def in_turn(self, blocked: frozenset[int] = NOBODY, length: int | None = None) -> Iterator[Item]:
        """Texts that may go as their turn comes, of one length or all."""
        line = self.line if length is None else self.lines[length]
        return line.in_turn(self._clocks, self._now, blocked)
