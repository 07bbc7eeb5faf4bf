"""Whole files: how near `tools.embed` comes to ONNX Runtime alone, its memory, and whether kills change a byte.

    python -m perf.bulk [--texts 200000]

The rate by turns in one process: the runner alone, then a slice of the texts from file to file, again and again. Then
the command itself, once undisturbed with its memory looked at, and once killed at random moments and begun again.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

from ipc.bundle import Bundle, hash_file, load_bundle
from ipc.settings import DEFAULT_MODEL, PREFIX
from perf.bulk_rates import Rates, measure_rates
from perf.ceiling import MOST_FOREIGN
from perf.procfs import memory
from perf.results import ROOT, make_result, save_result
from perf.texts import make_texts
from tools.embed.journal import beside
from tools.prepare import ensure_bundle

LEAST: Final = 0.97
# Above what the process has when its windows are full.
MOST_GROWTH_MIB: Final = 32.0
KILLS: Final = 10
# As long as half a window takes on two cores.
KILL_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.05
SETTLED: Final = 0.25


class Run(msgspec.Struct, frozen=True):
    """The command, undisturbed: its memory in MiB when a quarter was done, and the most from then on."""

    seconds: float
    settled: float
    most: float


class Bulk(msgspec.Struct, frozen=True):
    """Everything; `identical` says that the killed run's output has the undisturbed one's bytes."""

    texts: int
    against_alone: Rates
    undisturbed: Run
    kills: int
    identical: bool


class Command:
    """`python -m tools.embed` on a file of texts."""

    def __init__(self, bundle: Bundle, source: Path, *options: str) -> None:
        ours = {PREFIX + "MODEL": str(bundle.folder)}
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | ours
        self._arguments = [str(source), *options]

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        """Begin, or go on."""
        command = [sys.executable, "-m", "tools.embed", *self._arguments, str(out), "--quiet"]
        return subprocess.Popen(command, cwd=ROOT, env=self._env)  # noqa: S603 - our own command

    def run(self, out: Path, size: int) -> Run:
        """To the end, with the memory looked at. `size` is how large the output will be."""
        began, seen = time.monotonic(), []
        with self.start(out) as process:
            while process.poll() is None:
                if _size(out) >= SETTLED * size:
                    seen.append(memory(process.pid).rss)
                time.sleep(LOOK_SECONDS)
        _check(process)
        return Run(time.monotonic() - began, seen[0], max(seen))

    def run_killed(self, out: Path, size: int, kills: int, pause: float = KILL_SECONDS) -> int:
        """The same with so many deaths on the way, each at a random share of the output and up to `pause` seconds
        later; gives how many there were, for a run that ended before is not killed.
        """
        chance = random.Random(kills)  # noqa: S311 - reproducible moments, no secret
        killed = 0
        for share in sorted(chance.uniform(0.0, 0.9) for _ in range(kills)):
            if out.exists():
                break
            with self.start(out) as process:
                while _size(out) <= share * size and process.poll() is None:
                    time.sleep(LOOK_SECONDS)
                time.sleep(chance.uniform(0, pause))
                killed += process.poll() is None
                process.kill()
            print(f"killed behind {share:.0%}, with {_size(out) / size:.1%} on the disk", flush=True)
        if not out.exists():
            with self.start(out) as process:
                process.wait()
            _check(process)
        return killed


def _check(process: subprocess.Popen[bytes]) -> None:
    if process.returncode:
        raise RuntimeError(f"tools.embed ended with status {process.returncode}")


def _size(out: Path) -> int:
    partial = beside(out, "partial")
    return partial.stat().st_size if partial.exists() else 0


def measure(count: int, turns: int, seconds: float, kills: int) -> Bulk:
    """All of it."""
    bundle = load_bundle(ensure_bundle(DEFAULT_MODEL, ROOT / "data"))
    texts = make_texts("short", count)
    with tempfile.TemporaryDirectory(prefix="embedlane-bulk-") as name:
        folder = Path(name)
        found = measure_rates(bundle, texts, turns, seconds, folder)
        (folder / "texts.txt").write_text("\n".join(texts))
        command = Command(bundle, folder / "texts.txt")
        calm, shaken, size = folder / "calm.npy", folder / "shaken.npy", count * bundle.dim * 4
        undisturbed = command.run(calm, size)
        print(f"undisturbed: {undisturbed.seconds:.0f} s, {undisturbed.settled:.0f} to {undisturbed.most:.0f} MiB")
        killed = command.run_killed(shaken, size, kills)
        return Bulk(count, found, undisturbed, killed, hash_file(calm) == hash_file(shaken))


def missed(found: Bulk) -> list[str]:
    """The targets that are missed; where others had the cores, CPU time tells the ratio."""
    ours = found.against_alone
    ratio = ours.cpu if ours.foreign.median > MOST_FOREIGN else ours.rates
    growth = found.undisturbed.most - found.undisturbed.settled
    return [
        *([f"{ratio.median:.3f} of the runner alone, {LEAST} is asked for"] if ratio.median < LEAST else []),
        *([f"memory grew by {growth:.0f} MiB"] if growth > MOST_GROWTH_MIB else []),
        *([] if found.kills else ["no run was killed, for it had ended before: give more texts"]),
        *([] if found.identical else ["the killed run's output is another"]),
    ]


def main() -> int:
    """Measure, print, save; exit status 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m perf.bulk", description="Whole files.")
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--turns", type=int, default=8, help="slices that the texts are cut into for the rate")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the runner alone, each turn")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = measure(options.texts, options.turns, options.seconds, options.kills)
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    misses = missed(found)
    print("\n".join(misses) or "all targets are met")
    if not options.no_save:
        command = f"python -m perf.bulk --texts {options.texts} --turns {options.turns} --seconds {options.seconds:g}"
        print(save_result(make_result("bulk", f"{command} --kills {options.kills}", {}, found)).relative_to(ROOT))
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main())
