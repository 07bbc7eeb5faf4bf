"""The rolling restart of the front ends, by the command, on real processes under load."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ipc.bundle import TOKENIZER, Bundle
from ipc.liveness import serving_pids
from perf.stack import ROOT, Stack
from tests.chaos.load import Load
from tests.system.processes import is_tidy, wait_for
from tests.system.test_serve import quiet_bits
from tools.processes import all_processes
from tools.serve import supervisor

pytestmark = pytest.mark.system

CANNOT_START = 3
# Far above what an idle connection is waited for after SIGTERM, and below what it is waited for here.
SECONDS_BETWEEN = 2.5


def restart(stack: Stack) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.restart"]
    return subprocess.run(command, cwd=ROOT, env=stack.env, capture_output=True, text=True, timeout=100, check=False)


def running(stack: Stack) -> dict[str, int]:
    """The front ends that run: supervisord's name and the process id."""
    with supervisor(stack.run_dir) as server:
        processes = all_processes(server)
    return {p.full_name: p.pid for p in sorted(processes, key=lambda p: p.name) if p.group == "frontend" and p.pid}


def test_all_front_ends_are_replaced_and_no_request_is_lost() -> None:
    """Nobody tries again: busy connections, new ones for each request, and ones that ask every few seconds."""
    with Stack(frontends=2) as stack:
        bits = quiet_bits(stack)
        before, engine = running(stack), stack.pids("engine")
        loads = [
            Load(stack.port, bits, connections=8, seed=1, pause=0.1),
            Load(stack.port, bits, connections=8, seed=2, pause=0.1, fresh=True),
            Load(stack.port, bits, connections=8, seed=3, pause=SECONDS_BETWEEN),
        ]
        with ExitStack() as under_way:
            for load in loads:
                under_way.enter_context(load)
            wait_for(lambda: all(load.counts()["right"] > 8 for load in loads), "answers")
            done = restart(stack)
        after = running(stack)
        wait_for(lambda: is_tidy(stack), "files of the living alone")
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split(", ")[0] for line in done.stdout.splitlines()] == [
            f"{name}   pid {before[name]} → pid {after[name]}" for name in ("frontend:0", "frontend:1")
        ]
        assert not set(before.values()) & set(after.values())
        assert stack.pids("engine") == engine
    assert [set(load.counts()) for load in loads] == [{"right"}] * 3
    assert [load.refused for load in loads] == [0] * 3


SABOTAGE = """
import os, sys
if sys.orig_argv[1:] == ["-m", "frontend"] and os.path.exists(os.environ["SABOTAGE"]):
    os._exit(1)
"""


@pytest.fixture
def spoiled(bundle: Bundle, tmp_path: Path) -> Iterator[Stack]:
    """A server whose next front ends can be made to fail: with its tokenizer gone, or with a file named `sabotage`."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in bundle.folder.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    stack = Stack(bundle=folder, frontends=2)
    stack.env |= {"PYTHONPATH": str(tmp_path), "SABOTAGE": str(tmp_path / "sabotage")}
    with stack:
        yield stack


def test_a_front_end_that_cannot_start_leaves_the_others(spoiled: Stack, tmp_path: Path) -> None:
    tokenizer, sabotage = tmp_path / "bundle" / TOKENIZER, tmp_path / "sabotage"
    tokenizer.rename(tmp_path / "kept")
    leaves_the_others(spoiled, "the last line of the server's output says why")
    (tmp_path / "kept").rename(tokenizer)
    starts_all(spoiled)
    sabotage.touch()
    leaves_the_others(spoiled, "it ends again and again; the server's output says why")
    sabotage.unlink()
    starts_all(spoiled)


def leaves_the_others(stack: Stack, reason: str) -> None:
    """A restart while there is a fault ends with the first front end, and the server goes on."""
    before = running(stack)
    done = restart(stack)
    assert (done.returncode, done.stdout) == (CANNOT_START, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"embedlane: frontend:0 cannot start ({reason}), so it is left stopped")
    assert running(stack) == {"frontend:1": before["frontend:1"]}
    assert stack.status("/ready") == 200


def starts_all(stack: Stack) -> None:
    """One once the fault is mended starts the one that does not run, and then restarts the other."""
    second = running(stack)["frontend:1"]
    done = restart(stack)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(" → ")[0] for line in done.stdout.splitlines()] == [
        "frontend:0   not running",
        f"frontend:1   pid {second}",
    ]
    assert len(running(stack)) == 2
    assert second not in running(stack).values()


def test_one_front_end_alone_is_left_alone() -> None:
    with Stack(frontends=1) as stack:
        before = stack.pids("frontend")
        done = restart(stack)
        assert (done.returncode, done.stdout) == (CANNOT_START, "")
        assert "frontend:0 is the only front end that serves" in done.stderr
        assert "EMBEDLANE_FRONTENDS to 2" in done.stderr
        assert stack.pids("frontend") == before
        with stack.without_engine():
            wait_for(lambda: not serving_pids(stack.run_dir), "it has noticed")
            assert "No front end has an engine now" in restart(stack).stderr


@pytest.mark.parametrize("left", [[], ["supervisor.sock"]], ids=["no run directory", "what a crash left"])
def test_without_a_server_it_says_so(left: list[str]) -> None:
    stack = Stack()
    try:
        if left:
            stack.run_dir.mkdir(mode=0o700)
        for name in left:
            (stack.run_dir / name).touch()
        done = restart(stack)
        assert (done.returncode, done.stdout) == (CANNOT_START, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"embedlane: No server runs in {stack.run_dir}: start it")
    finally:
        shutil.rmtree(stack.run_dir, ignore_errors=True)
        stack.__exit__()
