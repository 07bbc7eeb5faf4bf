"""Start everything: settings → bundle → key → supervisord → the block that says how to use it.

    python -m tools.serve [all|prepare|engine|frontends]

Stays in the foreground, passes the end on to supervisord, and removes the run directory when all has stopped.

In containers each part has its own: `prepare` ends before supervisord, `engine` becomes the engine, and `frontends`
supervises front ends alone; the run directory, which both share, is then left to the engine.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xmlrpc.client import Fault, ServerProxy

import msgspec
from supervisor.xmlrpc import SupervisorTransport

from frontend.auth import load_or_make_key
from frontend.keys import KEYS_FILE, read_keys
from ipc.bundle import Precision
from ipc.errors import StartError
from ipc.liveness import ENGINE_LOCK, ProcessLock, ensure_run_dir
from ipc.settings import PREFIX, Settings, load_settings
from tools.notify import notify
from tools.prepare import ensure_bundle
from tools.processes import all_processes, cannot_go_on
from tools.supervision import Supervisord
from tools.weights import ensure_weights

CONFIGURATION = Path(__file__).parent.parent / "supervisord.conf"
FIRST_ENGINE = "engine:0"
# Whether supervisord.conf starts the gRPC front end. No EMBEDLANE_ name: it is no setting.
GRPC_AUTOSTART = "GRPC_AUTOSTART"
POLL_SECONDS = 0.1
WATCH_SECONDS = 2.0

READY = """
────────────────────────────────────────────────────────────────────────────────
  Embedlane is ready: {model}

    URL   {url}{grpc}
    Key   {key}

  Try it:

    curl -s {url}/v1/embeddings \\
      -H 'Authorization: Bearer {key}' \\
      -H 'Content-Type: application/json' \\
      -d '{{"input": "The quick brown fox"}}'

  Ctrl-C stops it.
────────────────────────────────────────────────────────────────────────────────
"""


def main() -> int:
    """Serve until told to stop; gives the exit status: 0, or 3 where it can never start."""
    part = _arguments().part
    _append_output()
    try:
        settings = load_settings()
        model = ensure_bundle(settings.model, settings.data_path, precision=graph_of(settings))
        if settings.runner == "torch" and not settings.checkpoint:
            weights = ensure_weights(settings.model, settings.data_path)
            settings = msgspec.structs.replace(settings, checkpoint=str(weights))
        key = load_or_make_key(settings)
        # A front end would start with its own key alone: better said here.
        read_keys(settings.data_path / KEYS_FILE)
        if part == "prepare":
            print(f"prepared   {model}, and the key", flush=True)
            return 0
        if part != "engine":
            _check_port(settings.host, settings.port, "EMBEDLANE_PORT")
            if settings.grpc_port:
                _check_port(settings.host, settings.grpc_port, "EMBEDLANE_GRPC_PORT")
        run_dir = ensure_run_dir(settings.run_path.absolute())
        env = environment(settings, model, key, run_dir)
        if part == "engine":
            os.execve(sys.executable, [sys.executable, "-m", "engine"], env)  # noqa: S606 - our own module
        if part == "frontends":
            return _supervise(settings, env, key, run_dir)
        _check_alone(run_dir)
        try:
            return _supervise(settings, env, key, run_dir, engine=FIRST_ENGINE)
        finally:
            shutil.rmtree(run_dir, ignore_errors=True)
    except StartError as error:
        print(f"embedlane: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    except KeyboardInterrupt:
        return 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.serve", description="Start Embedlane, or a part of it.")
    parser.add_argument("part", nargs="?", default="all", choices=("all", "prepare", "engine", "frontends"))
    return parser.parse_args()


def graph_of(settings: Settings) -> Precision:
    """The graph that the engine will ask the bundle for."""
    if settings.runner != "onnx":
        return "fp32"
    if settings.precision != "auto":
        return settings.precision
    # Not asked of ONNX Runtime, which takes half a second to import: fp16 is made where it may be of use.
    may_be_cuda = settings.device != "cpu" and _is_installed("onnxruntime-gpu")
    return "fp16" if may_be_cuda else "fp32"


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def environment(settings: Settings, model: Path, key: str, run_dir: Path) -> dict[str, str]:
    """What supervisord.conf and the processes below it read, every "from the machine" resolved."""
    resolved = {
        "HOST": settings.host,
        "PORT": settings.port,
        "FRONTENDS": settings.frontend_count,
        "MODEL": model.absolute(),
        "CHECKPOINT": settings.checkpoint and Path(settings.checkpoint).absolute(),
        "API_KEY": key,
        "RUN_DIR": run_dir,
        "DATA_DIR": settings.data_path,
    }
    return {
        **os.environ,
        **{PREFIX + name: str(value) for name, value in resolved.items()},
        GRPC_AUTOSTART: str(bool(settings.grpc_port)).lower(),
        # supervisord warns root of running as root unless its configuration says so.
        "USER": pwd.getpwuid(os.getuid()).pw_name,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }


def _append_output() -> None:
    """Several processes write to one output: where that is a file, each write must go to its end."""
    if stat.S_ISREG(os.fstat(1).st_mode):
        fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_APPEND)


def _check_port(host: str, port: int, setting: str) -> None:
    """supervisord would only log that it cannot bind, and go on; gRPC would share the port with another server's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(
                f"{host}:{port} cannot be listened on ({error.strerror}): "
                f"stop what uses it, or set EMBEDLANE_HOST or {setting}."
            ) from None


def _check_alone(run_dir: Path) -> None:
    lock = ProcessLock.try_acquire(run_dir / ENGINE_LOCK)
    if lock is None:
        raise StartError(f"Another Embedlane runs in {run_dir}: stop it, or set EMBEDLANE_RUN_DIR to another folder.")
    lock.release()


def _supervise(settings: Settings, env: Mapping[str, str], key: str, run_dir: Path, engine: str | None = None) -> int:
    supervisord = Supervisord(CONFIGURATION, env)

    def stop(*_: object) -> None:
        notify("STOPPING=1")
        supervisord.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        return _watch(settings, key, run_dir, supervisord, engine)
    finally:
        stop()
        supervisord.wait()


def _watch(settings: Settings, key: str, run_dir: Path, supervisord: Supervisord, engine: str | None) -> int:
    """Have each supervisord start the engine, print the block once the service is ready; end with the last of them, or
    when a process can never start again.
    """
    url = f"http://{settings.host}:{settings.port}"
    told, is_announced = 0, False
    while (status := supervisord.poll()) is None:
        if engine is not None and supervisord.pid != told and _start(engine, run_dir):
            told = supervisord.pid
        if _cannot_start(run_dir):
            return StartError.EXIT_CODE
        if not is_announced and is_ready(url):
            is_announced = True
            notify("READY=1")
            grpc = f"\n    gRPC  {settings.host}:{settings.grpc_port}" if settings.grpc_port else ""
            print(READY.format(model=settings.model, url=url, grpc=grpc, key=key), flush=True)
        is_settled = is_announced and (engine is None or supervisord.pid == told)
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisord.wait(WATCH_SECONDS if is_settled else POLL_SECONDS)
    # Nobody but us ends it in order: systemd starts anew what ended with another status.
    return int(status != 0)


def _start(engine: str, run_dir: Path) -> bool:
    """Have supervisord start this engine; False while it does not listen."""
    with contextlib.suppress(OSError), supervisor(run_dir) as server:
        server.supervisor.startProcess(engine, False)
        return True
    return False


def is_ready(url: str) -> bool:
    """Whether an embedding goes through."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=2) as answer:  # noqa: S310 - our own http URL
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def _cannot_start(run_dir: Path) -> bool:
    """Whether there is no engine, or no front end, and there can be none."""
    with contextlib.suppress(OSError, Fault), supervisor(run_dir) as server:
        return cannot_go_on(all_processes(server))
    return False


def supervisor(run_dir: Path) -> ServerProxy:
    """supervisord's XML-RPC interface, on its Unix socket."""
    # The URL is only form: the transport goes to the socket.
    return ServerProxy(
        "http://localhost", transport=SupervisorTransport(None, None, f"unix://{run_dir}/supervisor.sock")
    )


if __name__ == "__main__":
    sys.exit(main())
