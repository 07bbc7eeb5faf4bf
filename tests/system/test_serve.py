"""Start and end: what is printed, what is refused and how, what is left behind, and restarts that lose nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from ipc.bundle import TOKENIZER, Bundle
from perf.stack import ROOT, Stack
from tests.chaos.load import Load
from tests.system.processes import (
    clients_of,
    family,
    is_gone,
    is_tidy,
    log_records,
    unread_bytes,
    wait_for,
)
from tests.system.wire import Connection, fetch_bits

pytestmark = pytest.mark.system

# No measure of speed: a refusal must not take as long as a start, let alone be tried again and again.
REFUSED_WITHIN_SECONDS = 15
CANNOT_START = 3
TMPFS = "/dev/shm"  # noqa: S108 - looked at, not written to


def start_and_fail(stack: Stack) -> list[str]:
    """Start what can never start: exit status 3, soon; gives the lines it printed."""
    stack.start(wait=False)
    assert stack.process is not None
    assert stack.process.wait(REFUSED_WITHIN_SECONDS) == CANNOT_START
    return stack.log.read_text().splitlines()


def run_directly(program: str, stack: Stack, **settings: object) -> subprocess.Popen[str]:
    """`python -m engine` or `python -m frontend`, with no supervisor."""
    own = {f"EMBEDLANE_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", program],
        cwd=ROOT,
        env=stack.env | own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a process that a test started, whatever happens."""
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


# The printed block

BLOCK = re.compile(r"URL +(\S+)\n +Key +(\S+)\n.*?(curl .*?)\n\n", re.DOTALL)


def test_the_printed_line_works_as_it_stands(server: Stack) -> None:
    block = wait_for(lambda: BLOCK.search(server.log.read_text()), "the block")
    assert (block[1], block[2]) == (server.url, server.env["EMBEDLANE_API_KEY"])
    answer = json.loads(run_curl(block[3]))
    vector = np.array(answer["data"][0]["embedding"])
    assert vector.shape == (384,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-5


def run_curl(line: str) -> str:
    """What a shell prints for this line; where there is no curl, the same request by httpx."""
    if shutil.which("curl"):
        return subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout  # noqa: S602
    _, _, url, *options = shlex.split(line)
    given = list(zip(options[::2], options[1::2], strict=True))
    headers = [tuple(value.split(": ", 1)) for option, value in given if option == "-H"]
    return httpx.post(url, headers=headers, content=dict(given)["-d"], timeout=30).text  # type: ignore[arg-type]


def test_the_key_is_made_once_and_kept() -> None:
    with Stack(frontends=2, api_key="") as stack:
        kept = stack.folder / "data" / "api-key"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        key = kept.read_text().strip()
        wait_for(lambda: stack.log.read_text().count(f"Key   {key}\n") == 1, "the key in the output")
        assert httpx.get(f"{stack.url}/v1/models", headers={"X-API-Key": key}).status_code == 200
        assert stack.stop() == 0
        stack.start()
        assert kept.read_text().strip() == key
        wait_for(lambda: stack.log.read_text().count(f"Key   {key}\n") == 2, "the same key in the output")
        assert [path.name for path in kept.parent.iterdir()] == ["api-key"]


# Its parts, as containers run them


@contextmanager
def part(name: str, stack: Stack) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m tools.serve NAME` with this stack's settings and log, ended at the latest with the block."""
    with stack.log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.serve", name],
            cwd=ROOT,
            env=stack.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def test_prepare_makes_the_key_and_ends() -> None:
    stack = Stack(api_key="")
    try:
        with part("prepare", stack) as process:
            assert process.wait(30) == 0
        assert (stack.folder / "data" / "api-key").read_text().startswith("el-")
        assert not stack.run_dir.exists()
    finally:
        stack.__exit__()


def test_engine_and_front_ends_start_and_stop_apart() -> None:
    stack = Stack(frontends=2)
    try:
        with part("engine", stack) as engine:
            for _ in range(2):
                with part("frontends", stack) as frontends:
                    wait_for(lambda: stack.status("/ready") == 200, "an embedding goes through")
                    # This is the engine itself and no supervisor of one.
                    assert psutil.Process(engine.pid).children() == []
                    frontends.terminate()
                    assert frontends.wait(30) == 0
                assert (stack.run_dir / "engine.sock").is_socket()
            engine.terminate()
            assert engine.wait(30) == 0
        assert not list(stack.run_dir.glob("slab-*"))
    finally:
        shutil.rmtree(stack.run_dir, ignore_errors=True)
        stack.__exit__()


# The end


def shared_memory_of(processes: list[psutil.Process]) -> set[str]:
    """Every file of a tmpfs that any of these has open or mapped."""
    maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in processes]
    mapped = {found for text in maps for found in re.findall(rf"{TMPFS}/\S+", text)}
    links = [link for process in processes for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    return mapped | {target for link in links if (target := target_of(link)).startswith(TMPFS)}


def target_of(link: Path) -> str:
    """Where a descriptor leads; nowhere if the process has closed it since it was listed."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_end_leaves_nothing(number: signal.Signals) -> None:
    with Stack(frontends=2) as stack:
        assert stack.process is not None
        processes = family(stack.process.pid)
        assert len(processes) == 5
        files = shared_memory_of(processes)
        assert any("slab-" in file for file in files)
        stack.process.send_signal(number)
        assert stack.process.wait(30) == 0
        assert not stack.run_dir.exists()
        wait_for(lambda: all(is_gone(process) for process in processes), "the end of every process")
        assert [file for file in files if Path(file).exists()] == []
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", stack.port))


# What can never start


REFUSED = {
    "unknown name": ({"prot": 8000}, "EMBEDLANE_PROT is no setting of Embedlane"),
    "port in words": ({"port": "http"}, "EMBEDLANE_PORT is not valid"),
    "port too high": ({"port": 70000}, "EMBEDLANE_PORT is not valid"),
    "unknown device": ({"device": "tpu"}, "EMBEDLANE_DEVICE is not valid"),
    "slab too small": ({"slab_rows": 16}, "EMBEDLANE_SLAB_ROWS is too small"),
    "run directory too long": ({"run_dir": f"{TMPFS}/" + "x" * 100}, "EMBEDLANE_RUN_DIR is longer than 80 bytes"),
    "run directory is a file": ({"run_dir": __file__}, f"{__file__}"),
    "folder without a model": ({"model": Path(__file__).parent}, f"{Path(__file__).parent}"),
    "no such folder": ({"model": "/no/such/model"}, "/no/such/model"),
}


@pytest.mark.parametrize(("settings", "says"), REFUSED.values(), ids=REFUSED)
def test_refused_with_one_clear_line(settings: dict[str, object], says: str) -> None:
    stack = Stack(**settings)  # type: ignore[arg-type]
    try:
        lines = start_and_fail(stack)
        assert len(lines) == 1, lines
        assert lines[0].startswith("embedlane: ")
        assert says in lines[0]
        assert not stack.run_dir.exists()
    finally:
        stack.__exit__()


def test_a_busy_port() -> None:
    stack = Stack()
    try:
        with socket.create_server(("127.0.0.1", stack.port)):
            (line,) = start_and_fail(stack)
        assert f"127.0.0.1:{stack.port} cannot be listened on (Address already in use)" in line
        assert not stack.run_dir.exists()
    finally:
        stack.__exit__()


def test_a_second_server_in_the_same_run_directory(server: Stack) -> None:
    second = Stack(run_dir=server.run_dir)
    try:
        (line,) = start_and_fail(second)
        assert f"Another Embedlane runs in {server.run_dir}" in line
        assert server.status("/ready") == 200
        assert is_tidy(server)
    finally:
        second.__exit__()


@pytest.mark.parametrize("program", ["engine", "frontend"])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prot": 8000}, "EMBEDLANE_PROT is no setting"),
        ({"port": "http"}, "EMBEDLANE_PORT is not valid"),
        ({"model": "/no/such/model"}, "is not a usable model bundle"),
        ({"run_dir": "/proc/no"}, "/proc/no cannot be used"),
    ],
)
def test_a_program_alone_says_so_itself(program: str, settings: dict[str, object], says: str) -> None:
    stack = Stack()
    try:
        process = run_directly(program, stack, **settings)
        output, _ = process.communicate(timeout=REFUSED_WITHIN_SECONDS)
        assert process.returncode == CANNOT_START, output
        (line,) = output.splitlines()
        assert line.startswith("embedlane ")
        assert says in line
    finally:
        # Made before the program looked for its model, and there is no tools.serve to remove it.
        shutil.rmtree(stack.run_dir, ignore_errors=True)
        stack.__exit__()


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle to spoil: its tokenizer is a copy, the rest are links."""
    for path in bundle.folder.iterdir():
        (tmp_path / path.name).symlink_to(path.resolve())
    (tmp_path / TOKENIZER).unlink()
    shutil.copyfile(bundle.path(TOKENIZER), tmp_path / TOKENIZER)
    return tmp_path


def spoil(folder: Path) -> None:
    """Change the tokenizer so that it has its length still and harms no front end: only the hash can tell."""
    content = (folder / TOKENIZER).read_bytes()
    changed = content.replace(b'"single_word":false', b'"single_word":true ', 1)
    assert changed != content
    (folder / TOKENIZER).write_bytes(changed)


def has_refused_once(stack: Stack) -> bool:
    said = [line for line in stack.log.read_text().splitlines() if "embedlane engine: " in line]
    return len(said) == 1 and f"the content of {TOKENIZER} has changed" in said[0]


def test_a_changed_bundle_ends_the_server(copied: Path) -> None:
    """Only the engine hashes the files; its exit status 3 ends everything, and nothing is tried again."""
    spoil(copied)
    stack = Stack(bundle=copied)
    try:
        start_and_fail(stack)
        assert has_refused_once(stack)
        assert not stack.run_dir.exists()
    finally:
        stack.__exit__()


def test_a_bundle_that_changes_later_ends_the_server_at_the_next_restart(copied: Path) -> None:
    with Stack(bundle=copied) as stack:
        spoil(copied)
        stack.signal("engine", signal.SIGKILL)
        assert stack.process is not None
        assert stack.process.wait(30) == CANNOT_START
        assert has_refused_once(stack)
        assert not stack.run_dir.exists()


# Any order, and what a crash left


@pytest.mark.parametrize("order", [("frontend", "engine"), ("engine", "frontend")])
def test_started_in_any_order(order: tuple[str, str]) -> None:
    stack = Stack(frontends=1)
    try:
        with ExitStack() as processes:
            processes.enter_context(ended(run_directly(order[0], stack)))
            if order[0] == "frontend":
                wait_for(lambda: stack.status("/health") == 200, "a front end")
                assert stack.status("/ready") == 503
            else:
                wait_for((stack.run_dir / "engine.sock").exists, "an engine")
            processes.enter_context(ended(run_directly(order[1], stack)))
            wait_for(lambda: stack.status("/ready") == 200, "ready")
    finally:
        shutil.rmtree(stack.run_dir, ignore_errors=True)
        stack.__exit__()


def test_what_a_crash_left_is_removed_at_the_start() -> None:
    stack = Stack(frontends=2)
    stale = ["slab-00000000deadbeef.rows", "slab-00000000deadbeef.leases", "frontend-deadbeef.lock", "engine.lock"]
    stale += ["engine.sock", "supervisor.sock", "supervisord.pid"]
    stack.run_dir.mkdir(mode=0o700)
    for name in stale:
        (stack.run_dir / name).write_text("1")
    try:
        stack.start()
        wait_for(lambda: is_tidy(stack), "only files of the living")
    finally:
        stack.__exit__()
    assert not stack.run_dir.exists()


# Restarts that lose nothing


async def open_requests(stack: Stack, connections: list[Connection]) -> None:
    """Have one request under way on each connection, read by its front end, with the engine stopped."""
    for number, connection in enumerate(connections):
        await connection.send("POST", "/embed", json.dumps({"inputs": [f"text {number}"] * 3}).encode())
    await asyncio.to_thread(wait_for, lambda: unread_bytes(stack.port) == 0, "nothing unread")


def test_a_front_end_that_is_stopped_answers_what_it_has(own: Stack) -> None:
    async def run() -> Counter[int]:
        connections = [await Connection.open(own.port) for _ in range(24)]
        engine = own.signal("engine", signal.SIGSTOP)
        try:
            await open_requests(own, connections)
            victim = next(pid for pid in own.pids("frontend") if clients_of(pid))
            of_victim = len(clients_of(victim))
            os.kill(victim, signal.SIGTERM)
            await asyncio.to_thread(wait_for, lambda: log_records(own.log, "Shutting down"), "its farewell")
            os.kill(engine, signal.SIGCONT)
            answers = await asyncio.gather(*(c.receive() for c in connections))
            assert sum(answer.headers.get("connection") == "close" for answer in answers) == of_victim
            await asyncio.to_thread(wait_for, lambda: victim not in own.pids("frontend"), "its end")
            async with await Connection.open(own.port) as another:
                assert (await another.post("/embed", {"inputs": "text"})).status == 200
            return Counter(answer.status for answer in answers)
        finally:
            os.kill(engine, signal.SIGCONT)
            for connection in connections:
                await connection.close()

    assert asyncio.run(run()) == {200: 24}
    wait_for(lambda: is_tidy(own), "two front ends again")


def quiet_bits(stack: Stack) -> dict[str, bytes]:
    """A few texts and the vector each gets when nothing else goes on."""

    async def ask() -> dict[str, bytes]:
        async with await Connection.open(stack.port) as connection:
            return {text: await fetch_bits(connection, text) for text in ("a", "two words", "three " * 40, "four " * 9)}

    return asyncio.run(ask())


def has_more(load: Load, answered: int) -> bool:
    return load.counts()["right"] > answered + 30


def is_replaced(stack: Stack, program: str, old: int) -> bool:
    pids = stack.pids(program)
    return bool(pids) and old not in pids


def test_an_engine_that_is_stopped_in_order_loses_nothing(own: Stack) -> None:
    with Load(own.port, quiet_bits(own), connections=16, pause=0.1) as load:
        for _ in range(3):
            answered = load.counts()["right"]
            wait_for(partial(has_more, load, answered), "answers")
            old = own.signal("engine", signal.SIGTERM)
            wait_for(partial(is_replaced, own, "engine", old), "the next engine")
    assert set(load.counts()) == {"right"}
    assert load.refused == 0
    assert len(log_records(own.log, "stopped")) == 3


@pytest.mark.parametrize("fresh", [True, False], ids=["a connection for each request", "connections kept open"])
def test_front_ends_that_are_stopped_in_order_lose_nothing(own: Stack, fresh: bool) -> None:
    """No client tries again. A connection may end between two requests, but not with one under way."""
    with Load(own.port, quiet_bits(own), connections=16, pause=0.05, fresh=fresh) as load:
        for turn in range(4):
            answered = load.counts()["right"]
            wait_for(partial(has_more, load, answered), "answers")
            old = own.signal("frontend", signal.SIGTERM, index=turn % 2)
            wait_for(partial(is_replaced, own, "frontend", old), "its end")
            wait_for(lambda: is_tidy(own), "the next one")
    assert set(load.counts()) == {"right"}
    assert load.refused == 0


@pytest.fixture
def own() -> Iterator[Stack]:
    with Stack(frontends=2) as stack:
        yield stack
        # pytest shows this where the test failed.
        print(stack.log.read_text(errors="replace")[-20_000:])
