"""When requests leave: schedules made beforehand, and the pacer that keeps to them."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Schedule: TypeAlias = NDArray[np.int64]
Arrivals: TypeAlias = Literal["constant", "poisson"]


def make_schedule(arrivals: Arrivals, rate: float, seconds: float, seed: int = 0) -> Schedule:
    """Times of departure in ns from the start, ascending, all below `seconds`; `rate` is per second."""
    if arrivals == "constant":
        return np.asarray(np.arange(int(rate * seconds)) * (1e9 / rate), np.int64)
    gaps = np.random.default_rng(seed).exponential(1e9 / rate, int(rate * seconds * 1.2) + 100)
    times = np.asarray(np.cumsum(gaps), np.int64)
    return times[times < seconds * 1e9]


class Pacer:
    """Lets requests go at absolute times: a late wake-up delays what was due, and nothing after it.

    `clock` gives ns. `arm` asks for a call of `wake` at a time of that clock. `depart` gets a request's number and
    when it should have left. Lags in ns are kept for the report.
    """

    def __init__(
        self,
        schedule: Schedule,
        start_ns: int,
        clock: Callable[[], int],
        arm: Callable[[int], None],
        depart: Callable[[int, int], None],
    ) -> None:
        self._times: list[int] = (schedule + start_ns).tolist()
        self._clock = clock
        self._arm = arm
        self._depart = depart
        self.lags = np.zeros(len(schedule), np.int64)
        self.gone = 0

    @property
    def is_finished(self) -> bool:
        """Whether every request has left."""
        return self.gone == len(self._times)

    def wake(self) -> None:
        """Let go of all that is due; each request's lag is measured when it leaves, not when its batch does."""
        times, total = self._times, len(self._times)
        while self.gone < total and (lag := self._clock() - times[self.gone]) >= 0:
            number = self.gone
            self.gone += 1
            self.lags[number] = lag
            self._depart(number, times[number])
        if self.gone < total:
            self._arm(times[self.gone])


class Timer:
    """A kernel timer that an event loop can watch (`fileno`): asyncio's own timers are whole milliseconds."""

    _CLOCK_MONOTONIC: Final = 1
    _NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC
    _ABSOLUTE: Final = 1

    def __init__(self) -> None:
        # os.timerfd_create is there from Python 3.13 on.
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _checked(self._libc.timerfd_create(self._CLOCK_MONOTONIC, self._NONBLOCK_CLOEXEC))

    def fileno(self) -> int:
        """Readable once the time has come."""
        return self._fd

    def arm(self, at_ns: int) -> None:
        """Become readable at `at_ns` of CLOCK_MONOTONIC; at once where that is past."""
        when = struct.pack("<qqqq", 0, 0, *divmod(max(at_ns, 1), 1_000_000_000))
        _checked(self._libc.timerfd_settime(self._fd, self._ABSOLUTE, when, None))

    def drain(self) -> None:
        """Make it unreadable again."""
        os.read(self._fd, 8)

    def close(self) -> None:
        """Give it back to the kernel."""
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "timerfd")
    return result
