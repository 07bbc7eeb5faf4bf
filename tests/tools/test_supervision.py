"""What a killed supervisor leaves behind, by processes that stand for ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.system.processes import is_gone, wait_for

# Its children stand for the programs: one is a front end, one an engine, one of them does not listen.
PARENT = """
import subprocess, sys, time
for name in ("frontend", "engine"):
    subprocess.Popen([sys.executable, "-c", sys.argv[1], name])
time.sleep(600)
"""
CHILD = """
import pathlib, signal, sys, time
def note(*_):
    with open("ended", "a") as file:
        file.write(sys.argv[1] + "\\n")
    sys.exit()
signal.signal(signal.SIGTERM, {"frontend": note, "engine": note}[sys.argv[1]])
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
ADOPTER = """
import os, signal, subprocess, sys
from tools import supervision
supervision._prctl(supervision.PR_SET_CHILD_SUBREAPER, 1)
middle = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
print(middle.pid, flush=True)
middle.wait()
supervision.end_orphans()
print("ended", flush=True)
"""
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("is_stopped", [False, True], ids=["in order", "with a front end that is stopped"])
def test_what_a_killed_parent_leaves_is_ended_front_ends_first(tmp_path: Path, is_stopped: bool) -> None:
    adopter = subprocess.Popen(
        [sys.executable, "-c", ADOPTER, PARENT, CHILD],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert adopter.stdout is not None
        middle = psutil.Process(int(adopter.stdout.readline()))
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2, "both children")
        children = middle.children()
        if is_stopped:
            next(child for child in children if child.cmdline()[-1] == "frontend").suspend()
        middle.kill()
        assert adopter.stdout.readline() == "ended\n"
        assert all(is_gone(child) for child in children)
        assert (tmp_path / "ended").read_text().split() == ["frontend", "engine"][is_stopped:]
    finally:
        adopter.kill()
        adopter.communicate()


def test_supervisord_ends_with_whoever_started_it(tmp_path: Path) -> None:
    configuration = tmp_path / "supervisord.conf"
    lines = ("[supervisord]", "nodaemon=true", "logfile=/dev/null", "logfile_maxbytes=0", f"pidfile={tmp_path}/pid")
    configuration.write_text("\n".join(lines))
    start = (
        "import pathlib, sys, time; from tools.supervision import Supervisord; "
        "Supervisord(pathlib.Path(sys.argv[1]), {}); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", start, str(configuration)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    supervisord = psutil.Process(int(wait_for(lambda: _text(tmp_path / "pid"), "supervisord")))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: is_gone(supervisord), "the end of supervisord")


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
