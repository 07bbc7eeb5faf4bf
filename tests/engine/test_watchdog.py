from __future__ import annotations

import subprocess
import sys

import pytest

from engine.watchdog import Watchdog

S = 1_000_000_000
TICK = S // 4
LIMIT = 30 * S


class Armed:
    """When the process would end, as the watchdog last said."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.now = 1000 * S
        self.at = 0.0
        self.times = 0
        self.dog = Watchdog(limit, self.arm)

    def arm(self, seconds: float) -> None:
        self.times += 1
        self.at = self.now + seconds * S

    def turn(self, oldest: int | None, turns: int = 1) -> None:
        """As many turns of the loop, four a second."""
        for _ in range(turns):
            self.dog.tend(self.now, oldest)
            self.now += TICK


def test_a_loop_that_stops_turning_has_the_limit() -> None:
    armed = Armed()
    armed.turn(None)
    assert armed.at == armed.now - TICK + LIMIT


def test_it_is_armed_once_a_second() -> None:
    armed = Armed()
    armed.turn(None, 40)
    assert armed.times == 10


def test_a_loop_that_did_not_turn_for_the_limit_is_left_to_its_fate() -> None:
    armed = Armed()
    armed.turn(None)
    armed.now += LIMIT
    armed.turn(None, 40)
    assert armed.times == 1, "it was stopped, and its watchdog is about to notice"


def test_a_batch_has_the_limit_from_its_start_whatever_the_loop_does() -> None:
    armed = Armed()
    began = armed.now - 2 * S
    armed.turn(began, 28 * 4)
    assert armed.at == began + LIMIT
    times = armed.times
    armed.turn(began, 40)
    assert armed.times == times, "one that has run for the limit is left to its fate"


def test_a_batch_that_ends_in_time_is_forgotten() -> None:
    armed = Armed()
    began = armed.now
    armed.turn(began, 29 * 4)
    armed.turn(None, 8)
    assert armed.at > began + LIMIT
    assert armed.at >= armed.now - 2 * S + LIMIT


@pytest.mark.parametrize("limit", [S, 2 * S])
def test_a_short_limit_is_armed_more_often(limit: int) -> None:
    armed = Armed(limit)
    for _ in range(100):
        armed.turn(None)
        assert armed.at > armed.now, "or a loop that turns would be ended"


SCRIPT = """
import sys, threading, time
from engine.watchdog import Watchdog
dog = Watchdog(1_000_000_000)
dog.tend(time.monotonic_ns(), None)
if sys.argv[1] == "stop":
    dog.stop()
    time.sleep(1.5)
    print("lives")
else:
    def stuck_here():
        threading.Event().wait()
    stuck_here()
"""


def run(word: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, word], capture_output=True, text=True, check=False)


def test_a_process_that_hangs_says_where_and_ends() -> None:
    ended = run("hang")
    assert ended.returncode == 1
    assert "Timeout (0:00:01)!" in ended.stderr
    assert "stuck_here" in ended.stderr


def test_one_that_ends_in_order_is_let_be() -> None:
    ended = run("stop")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "lives\n", "")
