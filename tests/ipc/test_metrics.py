from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families

from ipc.liveness import is_held
from ipc.metrics import FILE_BYTES, MOST_INHERITED, counting, exposition

# Counts in a slot until it is told to end, as front ends and engine do.
COUNT = """
import resource
import sys
from contextlib import ExitStack
from pathlib import Path
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from ipc.metrics import counting
if len(sys.argv) > 3:  # as on a full tmpfs, no file can grow beyond this
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
block = ExitStack()
slot = block.enter_context(counting(Path(sys.argv[1]), sys.argv[2]))
registry = CollectorRegistry()
counter = Counter("things", "Things.", ["name"], registry=registry)
histogram = Histogram("seconds", "Seconds.", registry=registry, buckets=(1, 2))
gauge = Gauge("level", "Level.", ["process"], registry=registry, multiprocess_mode="livesum")
print(slot, flush=True)
for line in sys.stdin:
    counter.labels(line.strip()).inc()
    histogram.observe(1.5)
    gauge.labels(slot).set(7)
    print("counted", flush=True)
"""

Process = subprocess.Popen[str]
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def run(slot: str, kind: str = "frontend", *largest_file: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, "-c", COUNT, str(tmp_path), kind, *largest_file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == slot
        return process

    yield run
    for process in started:
        with process:
            process.kill()


def count(process: Process, name: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "counted\n"


def kill(process: Process) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def samples(run_dir: Path) -> dict[tuple[str, str], float]:
    """(name, the one label's value) → value."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(exposition(run_dir).decode())
        for sample in family.samples
    }


def test_all_processes_are_added_up(tmp_path: Path, start: Start) -> None:
    for process in (start("frontend-0"), start("frontend-1"), start("engine-0", "engine")):
        count(process, "a")
    found = samples(tmp_path)
    assert found["things_total", "a"] == found["seconds_count", ""] == 3
    assert [found["seconds_bucket", le] for le in ("1.0", "2.0", "+Inf")] == [0, 3, 3]
    assert [found["level", slot] for slot in ("frontend-0", "frontend-1", "engine-0")] == [7, 7, 7]


def test_counters_outlive_a_killed_process_and_gauges_do_not(tmp_path: Path, start: Start) -> None:
    first, second = start("frontend-0"), start("frontend-1")
    for process in (first, second):
        count(process, "a")
    kill(first)
    found = samples(tmp_path)
    assert found["things_total", "a"] == 2
    assert ("level", "frontend-0") not in found
    assert found["level", "frontend-1"] == 7


def test_a_successor_goes_on_counting_in_the_same_files(tmp_path: Path, start: Start) -> None:
    for n in range(1, 4):
        process = start("frontend-0")
        assert ("level", "frontend-0") not in samples(tmp_path), "the gauges are the dead one's"
        count(process, "a")
        count(process, f"only {n}")
        assert samples(tmp_path)["things_total", "a"] == n
        assert samples(tmp_path)["seconds_count", ""] == 2 * n
        kill(process)
    assert len(list((tmp_path / "metrics").glob("*.db"))) == 3


@pytest.mark.parametrize("damage", [b"", b"x" * 100, (1 << 30).to_bytes(4, "little") + b"\0" * 100])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, start: Start, damage: bytes) -> None:
    process = start("frontend-0")
    count(process, "a")
    kill(process)
    other = start("frontend-0")
    count(other, "a")
    (tmp_path / "metrics" / "counter_frontend-1.db").write_bytes(damage)
    assert samples(tmp_path)["things_total", "a"] == 2, "others are read nevertheless"
    count(start("frontend-1"), "a")
    assert samples(tmp_path)["things_total", "a"] == 3


def test_a_file_that_is_half_full_is_begun_anew(tmp_path: Path, start: Start) -> None:
    process = start("frontend-0")
    for n in range(MOST_INHERITED // 1000 + 1):
        count(process, f"{n}" + "x" * 1000)
    kill(process)
    count(start("frontend-0"), "a")
    found = samples(tmp_path)
    assert [label for name, label in found if name == "things_total"] == ["a"]
    assert found["seconds_count", ""] > 1, "the other file had room"


def test_memory_is_set_aside_when_a_process_starts(tmp_path: Path, start: Start) -> None:
    start("frontend-0")
    for path in (tmp_path / "metrics").glob("*.db"):
        assert path.stat().st_size == FILE_BYTES
        assert path.stat().st_blocks * 512 >= FILE_BYTES
        assert path.stat().st_mode & 0o777 == 0o600


def test_without_room_a_process_runs_and_says_that_it_is_not_seen(tmp_path: Path, start: Start) -> None:
    process = start("frontend", "frontend", str(FILE_BYTES // 2))
    count(process, "a")
    assert samples(tmp_path) == {}
    assert process.stderr is not None
    assert process.stdin is not None
    process.stdin.close()
    assert "metrics are not kept" in process.stderr.read()


def test_there_is_nothing_to_read_where_nobody_counts(tmp_path: Path) -> None:
    assert exposition(tmp_path) == b""


def test_a_block_leaves_nothing_behind(tmp_path: Path) -> None:
    before = values.ValueClass, os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    with counting(tmp_path, "engine") as name:
        assert is_held(tmp_path / "metrics" / f"{name}.lock")
    assert (values.ValueClass, os.environ.get("PROMETHEUS_MULTIPROC_DIR")) == before
    assert not is_held(tmp_path / "metrics" / f"{name}.lock")
