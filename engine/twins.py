"""Identical texts of one flow that wait or run at the same time are computed once, whichever front end sent them.

Those of another flow join one that runs. Pure too.

The first of them, the leader, goes its way through the queue and a lane. The others, its twins, wait for its vector.

Only leaders are in the slab's `running`. So an engine that dies leaves twins unsuspected: their front ends send them
again as ordinary texts, which do not join the leader, a suspect now. If the text is deadly, each front end learns it
from its own deaths, as it does where nothing is shared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.queue import NOBODY, Item, Key
from engine.scheduler import Limits, Scheduler, Turn
from ipc.backlog import Backlog
from ipc.priority import Priority

SUSPECT = Priority.SUSPECT


class Twins(Scheduler):
    """A scheduler that queues a text only if none with the same ids runs, or waits no longer than it would.

    That is one at least as urgent, and of the same flow: another's turn may come much later. A twin always has a leader
    that waits or runs, and it counts as waiting in its own priority's queue. Suspects must run alone: they neither lead
    nor join.
    """

    def __init__(self, limits: Limits, backlog: Backlog | None = None) -> None:
        super().__init__(limits, backlog)
        self._leaders: dict[bytes, Item] = {}
        # Leader → its twins, in order of arrival; only leaders that have some.
        self._twins: dict[Item, dict[Key, Item]] = {}
        self._leader_of: dict[Key, Item] = {}

    def add(self, item: Item, *, has_place: bool = False) -> bool:
        """Queue a text or keep it with its leader; False where its priority's queue is full."""
        if item.priority is SUSPECT:
            return super().add(item, has_place=has_place)
        ids = item.ids.tobytes()
        leader = self._leaders.get(ids)
        if leader is not None and self._comes_first(leader, item):
            return self._join(leader, item, has_place)
        if not super().add(item, has_place=has_place):
            return False
        # A later leader keeps the twins it has; from now on others join this one.
        self._leaders[ids] = item
        return True

    def finish(self, item: Item) -> Sequence[Item]:
        """To be called for every text that has run; gives its twins, which leave too unless they are added again."""
        ids = item.ids.tobytes()
        leader = self._leaders.pop(ids, None)
        if leader is not None and leader is not item:
            self._leaders[ids] = leader
        return self._part(self._twins[item].values()) if item in self._twins else ()

    def cancel(self, owner: int, sequences: Sequence[int]) -> list[Item]:
        """As in a scheduler. The first twin of a leader that waited is the next leader."""
        theirs = {(owner, sequence) for sequence in sequences}
        twins = self._part([self._twins[self._leader_of[key]][key] for key in theirs if key in self._leader_of])
        return [*twins, *self._succeed(super().cancel(owner, sequences))]

    def drop_owner(self, owner: int) -> list[Item]:
        """As in a scheduler. The first twin of a leader that waited is the next leader."""
        twins = self._part([self._twins[leader][key] for key, leader in self._leader_of.items() if key[0] == owner])
        return [*twins, *self._succeed(super().drop_owner(owner))]

    def next_batch(self, now: int, *, idle: bool, spare: bool = True, blocked: frozenset[int] = NOBODY) -> Turn:
        """As in a scheduler. Twins neither expire with their leader nor wait where it is blocked."""
        if blocked:
            self._leave_blocked(blocked)
        turn = super().next_batch(now, idle=idle, spare=spare, blocked=blocked)
        self._succeed(turn.expired)
        return turn

    def _comes_first(self, leader: Item, item: Item) -> bool:
        """Whether the leader's vector comes no later than the text's own would."""
        return leader.priority <= item.priority and (leader.flow == item.flow or not self._is_waiting(leader))

    def _join(self, leader: Item, item: Item, has_place: bool) -> bool:
        queue = self._queues[item.priority]
        if not (has_place or queue.has_room(item.flow)) or item.key in self._leader_of:
            return False
        queue.take_place(item.flow)
        self._twins.setdefault(leader, {})[item.key] = item
        self._leader_of[item.key] = leader
        return True

    def _part(self, twins: Iterable[Item]) -> list[Item]:
        """Take twins from their leaders."""
        parted = list(twins)
        for twin in parted:
            leader = self._leader_of.pop(twin.key)
            del self._twins[leader][twin.key]
            if not self._twins[leader]:
                del self._twins[leader]
            self._queues[twin.priority].give_place(twin.flow)
        return parted

    def _succeed(self, leaders: list[Item]) -> list[Item]:
        """Add the twins of texts that left without a vector; gives those texts."""
        for leader in leaders:
            self.add_again(self.finish(leader))
        return leaders

    def _leave_blocked(self, blocked: frozenset[int]) -> None:
        """Let nobody wait for a front end that holds too many rows."""
        for leader in [leader for leader in self._twins if leader.owner in blocked and self._is_waiting(leader)]:
            twins = self._part([twin for twin in self._twins[leader].values() if twin.owner not in blocked])
            ids = leader.ids.tobytes()
            if twins and self._leaders.get(ids) is leader:
                del self._leaders[ids]
            self.add_again(twins)
