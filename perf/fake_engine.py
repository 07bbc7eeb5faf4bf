"""Two engines without a model, for measuring what is around it.

python -m perf.fake_engine echo     answers every text at once, with rows of a real slab: for a front end alone
python -m perf.fake_engine null     the real engine around a runner that does nothing: for the engine alone
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import numpy as np
import zmq

import engine.__main__ as real
from ipc import messages
from ipc.bundle import Bundle, load_bundle, locate_bundle
from ipc.liveness import ENGINE_LOCK, ProcessLock, ensure_run_dir
from ipc.messages import Ids, Status, Type, Welcome
from ipc.settings import Settings, load_settings
from ipc.slab import Epoch, Rows, Slab, new_epoch
from ipc.sockets import Socket, bind_engine, frontend_id


class NullRunner:
    """A runner whose vectors are whatever is in the slab."""

    device = "none"
    precision = "fp32"
    mixes_lengths = False

    def __init__(self, settings: Settings, bundle: Bundle) -> None:
        self.lanes = settings.lanes or 1

    def warm_up(self, rows: Rows) -> None:
        """Fill the slab with a vector such as a model gives, so that encoding it costs what it does."""
        unit = np.random.default_rng(1).normal(size=rows.shape[1])
        rows[:] = unit / np.linalg.norm(unit)

    def run(self, texts: Sequence[Ids], rows: Rows) -> int:
        """Nothing."""
        return 0


class Echo:
    """Answers each SUBMIT with one REPLY, rows taken in turn; that a row is free again is not looked at."""

    def __init__(self, settings: Settings, router: Socket, bundle: Bundle, epoch: Epoch) -> None:
        self._router = router
        self._epoch = epoch
        self._slab = Slab.create(settings.run_path, self._epoch, settings.slab_rows, bundle.dim)
        NullRunner(settings, bundle).warm_up(self._slab.rows)
        self._next = itertools.cycle(range(settings.slab_rows))
        welcome = Welcome(bundle.id, bundle.digest, str(bundle.folder), settings.slab_rows, bundle.dim, "none", "fp32")
        self._welcome = messages.welcome(welcome, self._epoch)

    def run(self) -> None:
        """For ever."""
        while True:
            identity, frame = self._router.recv_multipart()
            header = messages.parse_header(frame)
            if header.type is Type.HELLO:
                self._router.send_multipart([identity, self._welcome])
            elif header.type is Type.SUBMIT:
                self._router.send_multipart([identity, self._answer(identity, frame)])

    def _answer(self, identity: bytes, frame: bytes) -> bytes:
        items, _ = messages.parse_submit(frame, messages.parse_header(frame))
        owner = frontend_id(identity)
        assert owner is not None
        results = []
        for sequence in items["sequence"].tolist():
            row = next(self._next)
            self._slab.leases[row] = owner
            results.append((sequence, row, int(Status.OK), 0))
        # A run of 1 ns: one of none would be a hit of a cache.
        return messages.reply(results, 1, self._epoch)


def main() -> int:
    """Run one of the two until killed."""
    if sys.argv[1:] == ["null"]:
        setattr(real, "open_runner", NullRunner)  # noqa: B010 - the one thing of the engine that is replaced
        return real.main()
    settings = load_settings()
    lock = ProcessLock.try_acquire(ensure_run_dir(settings.run_path) / ENGINE_LOCK)
    assert lock is not None, "an engine runs in this run directory"
    with lock, new_epoch(settings.run_path) as epoch:
        router = bind_engine(zmq.Context(), settings.run_path)
        bundle = load_bundle(locate_bundle(settings.model, settings.data_path), verify=False)
        Echo(settings, router, bundle, epoch).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
