"""What one user of a machine can try on the server of another, each with what came of it.

    python -m tests.system.intruder [UID]      a Target as JSON on stdin, {attempt: outcome} as JSON on stdout

With a UID it is started as root and gives up all rights before the first attempt; so it needs no Python and no package
that this user could read. Without, it stays who it is: an attempt that fails then, too, says nothing.

An outcome is "done", or the name of the error: "EACCES"; REFUSED where ZeroMQ cannot connect.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

Attempts = Iterator[tuple[str, Callable[[], object]]]

# linux/ptrace.h, and the number that is the same on every architecture.
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
PIDFD_GETFD = 438
REFUSED = "REFUSED"
HANGS_MS = 30_000
READ = os.O_RDONLY | os.O_NONBLOCK
WRITE = os.O_RDWR | os.O_NONBLOCK
# All that /proc has of a process's inside.
INSIDES = ("auxv", "environ", "io", "maps", "mem", "pagemap", "smaps", "stack", "syscall")
LINKS = ("cwd", "exe", "root")
FOLDERS = ("cwd/", "fd", "fdinfo", "map_files", "root/")

libc = ctypes.CDLL(None, use_errno=True)


class NotConnected(Exception):
    """ZeroMQ does not tell why."""


class Process(msgspec.Struct, frozen=True):
    """A process of the server; `files` are descriptors that are files, `mappings` address ranges as /proc has them."""

    pid: int
    files: list[int]
    mappings: list[str]


class Target(msgspec.Struct, frozen=True):
    """What there is of a server. `submission` is a frame that the engine would take."""

    run_dir: str
    folders: list[str]
    files: list[str]
    sockets: list[str]
    engine: str
    secrets: list[str]
    data_dir: str
    processes: list[Process]
    hello: str
    submission: str


class Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def main() -> None:
    """Become the other user, try everything, tell."""
    target = msgspec.json.decode(sys.stdin.buffer.read(), type=Target)
    is_other = len(sys.argv) > 1
    if is_other:
        become(int(sys.argv[1]))
    attempts = dict(all_attempts(target))
    if is_other:
        # Were one of them to succeed, there would be no server left to try the others on: so they come last.
        attempts |= dict(destruction(target))
    sys.stdout.buffer.write(msgspec.json.encode({name: outcome(attempt) for name, attempt in attempts.items()}))


def become(uid: int) -> None:
    """Be nobody but this user, for good."""
    os.chdir("/")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    assert os.getresuid() == (uid, uid, uid)
    assert os.getgroups() == []
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0


def outcome(attempt: Callable[[], object]) -> str:
    """Try, and name what came of it."""
    try:
        attempt()
    except NotConnected:
        return REFUSED
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return "done"


def all_attempts(target: Target) -> Attempts:
    """What leaves the server as it was, should it succeed."""
    for folder in (target.run_dir, *target.folders):
        yield f"list {folder}", partial(os.listdir, folder)
        yield f"create a file in {folder}", partial(create, folder)
    yield f"create a file in {target.data_dir}", partial(create, target.data_dir)
    for file in (*target.files, *target.secrets):
        yield f"read {file}", partial(open_once, file, READ)
        yield f"write {file}", partial(open_once, file, WRITE)
    for file in target.files:
        yield f"look at {file}", partial(os.stat, file)
    for path in target.sockets:
        yield f"connect to {path}", partial(connect, path)
    yield "send work to the engine", partial(send_work, target)
    for process in target.processes:
        yield from on_process(process)


def on_process(process: Process) -> Attempts:
    """What the kernel lets one process do to another."""
    pid, proc = process.pid, f"/proc/{process.pid}"
    for name in INSIDES:
        yield f"read {proc}/{name}", partial(open_once, f"{proc}/{name}", READ)
    for name in ("mem", "oom_score_adj"):
        yield f"write {proc}/{name}", partial(open_once, f"{proc}/{name}", WRITE)
    for name in (*FOLDERS, f"task/{pid}/fd"):
        yield f"list {proc}/{name}", partial(os.listdir, f"{proc}/{name}")
    for name in (*LINKS, *(f"fd/{number}" for number in process.files)):
        yield f"follow {proc}/{name}", partial(os.readlink, f"{proc}/{name}")
    for name in (*(f"fd/{number}" for number in process.files), *(f"map_files/{each}" for each in process.mappings)):
        yield f"read {proc}/{name}", partial(open_once, f"{proc}/{name}", READ)
    for number in (0, *process.files):
        yield f"take descriptor {number} of {pid}", partial(take, pid, number)
    for each in process.mappings:
        yield f"read the memory of {pid} at {each}", partial(read_memory, pid, int(each.partition("-")[0], 16))
    yield f"signal {pid}", partial(os.kill, pid, 0)
    yield f"limit {pid}", lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE)
    yield f"move {pid}", lambda: os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    yield f"slow down {pid}", lambda: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))
    # Unlike attaching, which comes last of all, this does not stop it.
    yield f"trace {pid}", partial(call, "ptrace", PTRACE_SEIZE, pid, None, None)


def destruction(target: Target) -> Attempts:
    """What would end the server, should it succeed."""
    for process in target.processes:
        yield f"attach to {process.pid}", partial(call, "ptrace", PTRACE_ATTACH, process.pid, None, None)
    for file in (*target.files, *target.sockets, *target.secrets):
        yield f"remove {file}", partial(os.unlink, file)
        yield f"rename {file}", partial(os.rename, file, f"{file}.stolen")
        yield f"open {file} to all", partial(os.chmod, file, 0o777)
    yield f"rename {target.run_dir}", partial(os.rename, target.run_dir, f"{target.run_dir}.stolen")
    yield f"remove {target.run_dir}", partial(os.rmdir, target.run_dir)
    yield f"open {target.run_dir} to all", partial(os.chmod, target.run_dir, 0o777)


def open_once(path: str, how: int) -> None:
    """Open and close."""
    os.close(os.open(path, how))


def create(folder: str) -> None:
    """Leave nothing where it succeeds."""
    path = f"{folder}/intruder"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)  # noqa: PTH108 - pathlib imports and stats more than this user may


def connect(path: str) -> None:
    """Reach whoever listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def send_work(target: Target) -> None:
    """Say HELLO and SUBMIT as a front end does. Raises NotConnected once ZeroMQ has failed to connect twice."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.ROUTING_ID, b"F\x01\x00\x00\x00")
    monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_CONNECT_RETRIED)
    try:
        dealer.connect(f"ipc://{target.engine}")
        for frame in (target.hello, target.submission):
            dealer.send(bytes.fromhex(frame))
        for _ in range(2):
            assert monitor.poll(HANGS_MS), "neither connected nor refused"
            if recv_monitor_message(monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
    finally:
        context.destroy(linger=0)
    raise NotConnected


def take(pid: int, descriptor: int) -> None:
    """Have another process's open file as our own."""
    pidfd = os.pidfd_open(pid)
    try:
        os.close(call("syscall", PIDFD_GETFD, pidfd, descriptor, 0))
    finally:
        os.close(pidfd)


def read_memory(pid: int, address: int) -> None:
    """Read one word of another process's memory."""
    word = ctypes.create_string_buffer(8)
    ours, theirs = Vector(ctypes.addressof(word), 8), Vector(address, 8)
    call("process_vm_readv", pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)


def call(name: str, *arguments: object) -> int:
    """A function of the C library that the standard library lacks."""
    given = int(getattr(libc, name)(*arguments))
    if given < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return given


if __name__ == "__main__":
    main()
