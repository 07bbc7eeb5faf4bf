from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from frontend import __main__ as program
from frontend.auth import KEY_FILE
from ipc.bundle import Bundle
from ipc.errors import StartError
from ipc.settings import Settings

TELL = """
from frontend.__main__ import inherited_socket
found = inherited_socket()
print(found and (found.family.name, found.getsockname()[1]))
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def tcp(stack: ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0)))


def tcp_not_listening(stack: ExitStack) -> socket.socket:
    listener = tcp(stack)
    return stack.enter_context(socket.create_connection(listener.getsockname()))


def unix(stack: ExitStack) -> socket.socket:
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind("")  # a name of the kernel's choice, which leaves no file
    listener.listen()
    return listener


def pipe(stack: ExitStack) -> int:
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    return reader


def null(stack: ExitStack) -> int:
    return subprocess.DEVNULL


def tell(stdin: Any = subprocess.DEVNULL, before: tuple[str, ...] = ()) -> str:
    command = [*before, sys.executable, "-c", TELL]
    return subprocess.run(command, stdin=stdin, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def test_a_listening_tcp_socket_is_taken_as_what_it_is(stack: ExitStack) -> None:
    listener = tcp(stack)
    assert tell(stdin=listener) == str(("AF_INET", listener.getsockname()[1]))


@pytest.mark.parametrize("make", [tcp_not_listening, unix, pipe, null])
def test_anything_else_is_left_alone(make: Callable[[ExitStack], Any], stack: ExitStack) -> None:
    assert tell(stdin=make(stack)) == "None"


def test_a_process_without_descriptor_0_has_inherited_nothing() -> None:
    assert tell(before=("sh", "-c", 'exec "$0" "$@" <&-')) == "None"


def test_bind_listens_where_it_is_told() -> None:
    with program.bind(Settings(port=0)) as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_told(host: str) -> None:
    with pytest.raises(StartError, match=f"{host}:0 cannot be listened on .*EMBEDLANE_HOST"):
        program.bind(Settings(host=host, port=0))


def test_a_port_that_is_taken_is_told(stack: ExitStack) -> None:
    port = tcp(stack).getsockname()[1]
    with pytest.raises(StartError, match=f"{port} cannot be listened on .*EMBEDLANE_PORT"):
        program.bind(Settings(port=port))


# the exit status


class Ran:
    """What `main` gave to uvicorn, which does not run."""

    def __init__(self) -> None:
        self.started = True
        self.sockets: list[socket.socket] = []
        self.config: uvicorn.Config | None = None
        self.switch_seconds: list[float] = []


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Bundle) -> Iterator[Ran]:
    """An environment in which `main` would start, and no server that does."""
    ran = Ran()

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        ran.config, ran.sockets, server.started = server.config, sockets, ran.started

    monkeypatch.setattr(uvicorn.Server, "run", run)
    # What is for a process of its own.
    monkeypatch.setattr(program, "configure_logging", lambda *_: None)
    monkeypatch.setattr(program, "calm_collector", lambda: None)
    monkeypatch.setattr(sys, "setswitchinterval", ran.switch_seconds.append)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("EMBEDLANE_")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("EMBEDLANE_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("EMBEDLANE_MODEL", str(bundle.folder))
    monkeypatch.setenv("EMBEDLANE_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("EMBEDLANE_DATA_DIR", str(tmp_path / "data"))
    yield ran
    for listener in ran.sockets:
        listener.close()


@pytest.mark.parametrize(("started", "status"), [(True, 0), (False, 1)])
def test_a_server_that_ran_is_0_and_one_that_could_not_is_1(ran: Ran, started: bool, status: int) -> None:
    ran.started = started
    assert program.main() == status
    (listener,) = ran.sockets
    assert listener.getsockname() == ("127.0.0.1", int(os.environ["EMBEDLANE_PORT"]))
    assert Path("data", KEY_FILE).is_file()
    assert ran.switch_seconds == [program.SWITCH_SECONDS]
    assert Path("run").stat().st_mode & 0o777 == 0o700


def taken_port(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    monkeypatch.setenv("EMBEDLANE_PORT", str(tcp(stack).getsockname()[1]))


def unknown_name(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    monkeypatch.setenv("EMBEDLANE_PROT", "8000")


def bad_value(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    monkeypatch.setenv("EMBEDLANE_PORT", "eighty")


def no_model(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    monkeypatch.setenv("EMBEDLANE_MODEL", "no/model")


def open_run_dir(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    Path("run").mkdir(mode=0o755)
    Path("run").chmod(0o755)


def no_data_dir(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
    Path("data").touch()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (taken_port, "cannot be listened on"),
        (unknown_name, "EMBEDLANE_PROT is no setting"),
        (bad_value, "EMBEDLANE_PORT is not valid"),
        (no_model, "no--model"),
        (open_run_dir, "0700"),
        (no_data_dir, KEY_FILE),
    ],
)
def test_what_can_never_start_is_one_line_and_status_3(
    ran: Ran,
    fault: Callable[[pytest.MonkeyPatch, ExitStack], None],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    stack: ExitStack,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault(monkeypatch, stack)
    assert program.main() == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert says in output.err
    assert output.err.count("\n") == 1
    assert not ran.sockets
