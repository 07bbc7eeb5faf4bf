"""The engine's loop: receive → schedule → run → publish. One thread, and the only one that touches the socket."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import zmq

from engine.lanes import Batch, Lanes
from engine.metrics import EngineMetrics
from engine.outcomes import NO_ROW, Counters, Outcome, Outcomes
from engine.queue import Item
from engine.scheduler import Scheduler
from engine.slots import Slots
from engine.waking import drain, make_poller
from engine.watchdog import Watchdog
from ipc import messages
from ipc.backlog import FLOWS
from ipc.errors import MalformedFrame
from ipc.liveness import frontend_lives, living_frontends
from ipc.messages import Header, Status, Type, Welcome
from ipc.priority import Priority
from ipc.slab import Epoch
from ipc.sockets import Socket, frontend_id, routing_id

log = logging.getLogger(__name__)

# Bound on one turn's reading, so that a flood of messages cannot keep finished batches from their readers.
RECEIVE_BUDGET = 256
BURY_EVERY_NS = 250_000_000
WARN_EVERY_NS = 1_000_000_000
ROWS_RETRY_NS = 1_000_000
# While every lane works nothing new could start, and each waking would only take a core from them.
BUSY_READ_NS = 10_000_000
# Once texts have met, they will again: for so long none counts as alone, and each runs on one core as it comes.
COMPANY_NS = 100_000_000
# A number that is not here is a newer front end's: the least urgent one is the safe reading.
PRIORITIES = {priority.value: priority for priority in Priority}


@dataclass(frozen=True, slots=True)
class Model:
    """The bounds of a valid text: ids in 0..vocab_size-1, 1..max_tokens of them."""

    vocab_size: int
    max_tokens: int


class Engine:
    """Wires scheduler, lanes and slots to the ROUTER; `run` returns once `stop` was called and all is answered."""

    def __init__(
        self,
        router: Socket,
        scheduler: Scheduler,
        lanes: Lanes,
        slots: Slots,
        max_rows: int,
        model: Model,
        welcome: Welcome,
        epoch: Epoch,
        run_dir: Path,
        wake_fd: int,
        metrics: EngineMetrics,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.counters = Counters()
        self._metrics = metrics
        self._watchdog = watchdog
        self._router = router
        self._scheduler = scheduler
        self._lanes = lanes
        self._slots = slots
        self._max_rows = max_rows
        self._model = model
        self._epoch = epoch
        self._welcome = messages.welcome(welcome, epoch)
        self._run_dir = run_dir
        self._frontends: set[int] = set()
        self._quiet: set[int] = set()
        self._outcomes = Outcomes(scheduler, lanes, slots, self._frontends, self.counters)
        self._poller = make_poller(router, wake_fd)
        self._wake_poller = make_poller(wake_fd)
        self._wake_fd = wake_fd
        self._stop_by: int | None = None
        self._says_bye = False
        self._bury_at = self._warn_at = 0
        self._short_of_rows = False
        self._company_until = 0
        self._handlers: dict[Type, Callable[[int, bytes, Header], None]] = {
            Type.HELLO: self._on_hello,
            Type.SUBMIT: self._on_submit,
            Type.CANCEL: self._on_cancel,
            Type.BYE: self._on_bye,
        }

    def stop(self, grace_ns: int) -> None:
        """End once nothing waits or runs, or after `grace_ns`; safe in a signal handler."""
        self._stop_by = time.monotonic_ns() + grace_ns
        self._says_bye = True

    def run(self) -> None:
        """Serve until stopped."""
        while not self._is_finished():
            self._poll()
            self._say_bye()
            self._receive()
            self._publish()
            self._dispatch()
            now = time.monotonic_ns()
            if now >= self._bury_at:
                self._bury_at = now + BURY_EVERY_NS
                self._bury()
                self._scheduler.look(now)
                if self._watchdog is not None:
                    self._watchdog.tend(now, self._lanes.oldest)
                self._metrics.refresh(self.counters, self._scheduler, self._slots, self._lanes.busy)
        log.info("stopped", extra=asdict(self.counters))

    def _is_finished(self) -> bool:
        if self._stop_by is None:
            return False
        # A twin is no work of its own: its leader waits or runs.
        is_idle = not self._scheduler and not self._lanes.busy and self._frontends <= self._quiet
        return is_idle or time.monotonic_ns() >= self._stop_by

    def _say_bye(self) -> None:
        """Ask front ends to send nothing more; each says BYE after its last message, so nothing is lost."""
        if self._says_bye:
            self._says_bye = False
            self._bury()
            for owner in self._frontends:
                self._send(owner, messages.bye(self._epoch))

    def _poll(self) -> None:
        if self._lanes.has_ended:
            # A brief batch has run in this thread: nothing is waited for, but what came meanwhile is read first.
            return
        now = time.monotonic_ns()
        # Front ends free rows without a word, so a loop that is short of them looks again soon.
        until = now + ROWS_RETRY_NS if self._short_of_rows else self._bury_at
        poller = self._poller
        if not self._lanes.free:
            until, poller = min(until, now + BUSY_READ_NS), self._wake_poller
        elif not self._short_of_rows and (due := self._scheduler.wake_at(spare=self._lanes.has_spare)) is not None:
            until = min(until, due)
        # Rounded up: a poll that ends early would only turn round again.
        timeout_ms = max(0, -(-(until - now) // 1_000_000))
        for source, _ in poller.poll(timeout_ms):
            if source == self._wake_fd:
                drain(self._wake_fd)

    # receive

    def _receive(self) -> None:
        for _ in range(RECEIVE_BUDGET):
            try:
                identity, *rest = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                self._scheduler.backlog.end_round()
                return
            self._on_message(identity, rest)

    def _on_message(self, identity: bytes, rest: list[bytes]) -> None:
        try:
            owner = frontend_id(identity)
            if owner is None or len(rest) != 1:
                raise MalformedFrame(f"{len(rest)} frames from {identity!r}")
            header = messages.parse_header(rest[0])
            handler = self._handlers.get(header.type)
            if handler is None:
                raise MalformedFrame(f"{header.type.name} is nothing an engine takes")
            if header.type is not Type.HELLO and (owner not in self._frontends or header.epoch != self._epoch):
                raise MalformedFrame(f"{header.type.name} from a front end that was not welcomed in this epoch")
            handler(owner, rest[0], header)
        except MalformedFrame as error:
            self.counters.malformed += 1
            # Not each: who sends one may send a million.
            if time.monotonic_ns() >= self._warn_at:
                self._warn_at = time.monotonic_ns() + WARN_EVERY_NS
                log.warning("frame dropped", extra={"reason": str(error), "dropped": self.counters.malformed})

    def _on_hello(self, owner: int, frame: bytes, header: Header) -> None:
        # A HELLO can outlive its sender in the socket's buffer; rows lent to the dead would never come back.
        try:
            lives = frontend_lives(self._run_dir, owner)
        except OSError as error:
            # It is said again where it is not answered.
            log.error("a front end's lock cannot be looked at", extra={"reason": str(error)})
            return
        if lives and self._send(owner, self._welcome):
            self._frontends.add(owner)
            log.info("front end joined", extra={"frontend": f"{owner:08x}"})

    def _on_submit(self, owner: int, frame: bytes, header: Header) -> None:
        table, ids = messages.parse_submit(frame, header)
        now = time.monotonic_ns()
        if self._lanes.busy or self._scheduler:
            self._company_until = now + COMPANY_NS
        in_range = not len(ids) or (ids.min() >= 0 and ids.max() < self._model.vocab_size)
        rejected: list[tuple[int, int, int, int]] = []
        begin = 0
        for sequence, deadline, length, priority, flow in table.tolist():
            text = ids[begin : begin + length]
            begin += length
            if not in_range or length > self._model.max_tokens:
                rejected.append((sequence, NO_ROW, Status.INVALID, 0))
                continue
            queue = PRIORITIES.get(priority, Priority.BULK)
            if not self._scheduler.add(Item(owner, sequence, text, queue, deadline, now, flow % FLOWS)):
                self.counters.refused += 1
                rejected.append((sequence, NO_ROW, Status.REFUSED, 0))
        if rejected:
            self._send(owner, messages.reply(rejected, 0, self._epoch))

    def _on_cancel(self, owner: int, frame: bytes, header: Header) -> None:
        self._scheduler.cancel(owner, messages.parse_cancel(frame, header).tolist())

    def _on_bye(self, owner: int, frame: bytes, header: Header) -> None:
        self._quiet.add(owner)

    # schedule and run

    def _dispatch(self) -> None:
        self._short_of_rows = False
        while self._lanes.free and self._scheduler:
            if not self._start_batch():
                return

    def _start_batch(self) -> bool:
        """Give a free lane a batch; False where there is none to give now."""
        # The rows come first: a batch that is formed can then always run.
        first = self._slots.find(self._max_rows)
        if first is None:
            self._short_of_rows = True
            return False
        now = time.monotonic_ns()
        blocked = self._slots.over_share()
        idle, spare = not self._lanes.busy, self._lanes.has_spare
        batch, expired = self._scheduler.next_batch(now, idle=idle, spare=spare, blocked=blocked)
        self._short_of_rows = bool(blocked)
        if expired:
            self.counters.expired += len(expired)
            self._reply((item, NO_ROW, Status.EXPIRED, now - item.arrived) for item in expired)
        if batch:
            self._slots.compute(first, [item.sequence for item in batch])
            left_others = self._scheduler.has_more(batch[0].priority, blocked)
            alone = idle and not self._scheduler and now >= self._company_until
            self._lanes.start(Batch(batch, first, now, alone, left_others))
        return bool(batch or expired)

    # publish

    def _publish(self) -> None:
        for batch in self._lanes.collect():
            self._reply(self._outcomes.of(batch), batch.compute_ns)
            self._metrics.note(batch)

    def _reply(self, outcomes: Iterable[Outcome], compute_ns: int = 0) -> None:
        """One message to each front end that has a text among the outcomes."""
        by_owner: defaultdict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
        for item, row, status, wait in outcomes:
            by_owner[item.owner].append((item.sequence, row, status, wait))
        for owner, results in by_owner.items():
            if not self._send(owner, messages.reply(results, compute_ns, self._epoch)):
                for _, row, outcome, _ in results:
                    if outcome == Status.OK:
                        self._slots.retract(row)

    def _send(self, owner: int, frame: bytes) -> bool:
        """False where the front end is gone, or reads so little that its pipe is full: it gets no answer then."""
        try:
            self._router.send_multipart([routing_id(owner), frame], zmq.NOBLOCK)
        except (zmq.Again, zmq.ZMQError) as error:
            self.counters.unsent += 1
            log.warning("message not sent", extra={"frontend": f"{owner:08x}", "reason": str(error)})
            return False
        return True

    # the dead

    def _bury(self) -> None:
        """Take back the texts and rows of front ends that died or left."""
        try:
            living = living_frontends(self._run_dir)
        except OSError as error:
            log.error("front ends' locks cannot be looked at", extra={"reason": str(error)})
            return
        for owner in self._frontends - living:
            self._frontends.remove(owner)
            dropped, reclaimed = len(self._scheduler.drop_owner(owner)), self._slots.reclaim(owner)
            log.info(
                "front end left",
                extra={"frontend": f"{owner:08x}", "texts_dropped": dropped, "rows_reclaimed": reclaimed},
            )
