"""kill -9 of `python -m tools.embed` at random moments: what goes on from there ends with the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.languages import build
from ipc.settings import PREFIX
from perf.stack import ROOT
from perf.texts import make_texts
from tests.system.processes import wait_for

pytestmark = pytest.mark.chaos

ROWS = 4000
KILLS = 4


class Bulk:
    """The command, with a model that is so fast that most of a run is reading and writing."""

    def __init__(self, folder: Path) -> None:
        build(folder / "model")
        self.source = folder / "in.txt"
        self.source.write_text("\n".join(make_texts("mixed", ROWS)))
        settings = {"model": folder / "model", "runner": "examples.languages:LanguageRunner", "data_dir": folder}
        ours = {PREFIX + name.upper(): str(value) for name, value in settings.items()}
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | ours

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tools.embed", str(self.source), str(out), "--window", "32"],
            cwd=ROOT,
            env=self.env,
            stderr=subprocess.PIPE,
        )

    def run(self, out: Path) -> str:
        with self.start(out) as process:
            assert process.stderr is not None
            said = process.stderr.read().decode()
        assert process.returncode == 0, said
        return said


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
def test_killed_at_random_moments(tmp_path: Path, suffix: str) -> None:
    bulk = Bulk(tmp_path)
    calm, shaken = tmp_path / f"calm.{suffix}", tmp_path / f"shaken.{suffix}"
    assert f"{ROWS:,} texts" in bulk.run(calm)
    chance = random.Random(suffix)  # noqa: S311 - nothing secret here
    partial = tmp_path / f"shaken.{suffix}.partial"
    # Each run is killed once it has got so much further, and a random moment later.
    for share in sorted(chance.uniform(0.02, 0.8) for _ in range(KILLS)):
        process = bulk.start(shaken)
        with process:
            wait_for(lambda: size(partial) > share * size(calm) or process.poll() is not None, "more rows")  # noqa: B023
            assert process.poll() is None
            time.sleep(chance.uniform(0, 0.01))  # the moment of the kill, not a wait for anything
            process.kill()
        assert not shaken.exists()
    assert "of them by earlier runs" in bulk.run(shaken)
    assert shaken.read_bytes() == calm.read_bytes()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", "in.txt", calm.name, shaken.name}
