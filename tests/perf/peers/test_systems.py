"""Systems that are started: a commit in a worktree of its own, and how a peer's processes begin and end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ipc.errors import StartError
from perf.http import Target
from perf.peers.answers import compare_with_reference
from perf.peers.systems import Launch, Running, parse_system, worktree
from perf.procfs import descendants
from perf.stack import ROOT, free_port

PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=subprocess.PIPE).wait()
"""


def is_alive(pid: int) -> bool:
    """A zombie does not count: the child is nobody's now but init's, who may not have buried it yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def worktrees() -> str:
    return subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_worktree_has_the_commit_and_is_removed() -> None:
    before = worktrees()
    with worktree("HEAD") as tree:
        assert (tree / "ipc" / "settings.py").is_file()
        assert str(tree) in worktrees()
    assert not tree.exists()
    assert worktrees() == before


def test_a_worktree_is_removed_after_a_failure() -> None:
    before = worktrees()
    with pytest.raises(RuntimeError, match="in between"), worktree("HEAD") as tree:
        raise RuntimeError("in between")
    assert not tree.exists()
    assert worktrees() == before


def test_a_commit_that_is_none_leaves_no_worktree() -> None:
    before = worktrees()
    with pytest.raises(StartError, match="cannot be checked out"), worktree("no-such-commit"):
        raise AssertionError("there is no such commit")
    assert worktrees() == before


@pytest.mark.system
def test_a_commit_serves_the_reference_and_is_gone_after_a_failure() -> None:
    before = worktrees()
    system = parse_system("commit:HEAD")
    with pytest.raises(RuntimeError, match="in mid-run"), system.start() as running:
        assert compare_with_reference(running.ask).lowest_cosine > 0.99999
        pids = descendants(process.pid for process in running.processes)
        folders = {Path(psutil.Process(pid).cwd()) for pid in pids}
        assert ROOT not in folders
        raise RuntimeError("in mid-run")
    assert len(pids) > 3
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert worktrees() == before


def test_a_url_may_have_a_prefix_and_a_port_or_not() -> None:
    targets = []
    for url in ("http://a:1", "http://a/", "http://a:1/prefix/v1/"):
        with parse_system(f"url:{url}", "key", "a-model").start() as running:
            targets.append(running.target)
            assert running.fields == {"model": "a-model"}
    assert targets == [
        Target("a", 1, "key", "/v1/embeddings"),
        Target("a", 80, "key", "/v1/embeddings"),
        Target("a", 1, "key", "/prefix/v1/embeddings"),
    ]


def test_a_peer_is_ended_with_all_that_it_started() -> None:
    with Launch() as launch:
        process = launch.start([sys.executable, "-c", PARENT], {})
        log = launch.folder / "output.log"
        while not log.read_text():
            assert process.poll() is None
        pids = descendants([process.pid])
        assert len(pids) == 2
    assert process.returncode is not None
    assert not launch.folder.exists()
    # The child's end is on its way; one that lives on ends this test by its time limit.
    while any(is_alive(pid) for pid in pids):
        os.sched_yield()


def test_a_peer_that_does_not_start_says_why() -> None:
    with Launch() as launch:
        process = launch.start([sys.executable, "-c", "raise SystemExit('there is no model')"], {})
        running = Running(Target("127.0.0.1", free_port(), ""), [process])
        with pytest.raises(StartError, match="there is no model"):
            launch.wait_ready(running)
