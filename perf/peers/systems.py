"""What can be compared: this checkout, a commit of it, a server that runs already, and the peers.

here · commit:REVISION · url:http://HOST:PORT[/PREFIX] · infinity:onnx · infinity:torch · mosec · original

A system is a context manager: within it, the server is up and answers.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from ipc.bundle import TOKENIZER
from ipc.errors import StartError
from ipc.settings import PREFIX
from perf.http import Target
from perf.peers.answers import WrongAnswer, ask
from perf.peers.environments import EXPORTED, MODEL, interpreter, model_folder, pinned
from perf.redis_server import RedisServer
from perf.results import ROOT
from perf.stack import KEY, Stack, free_port
from tools.checkpoint import read_checkpoint
from tools.graphs.dense import Dense
from tools.graphs.encoder import build_in
from tools.graphs.nodes import Nodes

START_SECONDS: Final = 120.0
STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.1
MODEL_NAME: Final = "all-MiniLM-L6-v2"
INFINITY_ENGINES: Final = {"onnx": "optimum", "torch": "torch"}
MOSEC_BATCH: Final = 8
_LOG_LINES: Final = 15


@dataclass(frozen=True)
class Running:
    """A server that answers. `processes` are those started for it; `fields` go into every request's body."""

    target: Target
    processes: Sequence[subprocess.Popen[bytes]] = ()
    fields: dict[str, object] = field(default_factory=lambda: {"model": MODEL_NAME})

    def ask(self, texts: Sequence[str]) -> bytes:
        """See perf.peers.answers.ask."""
        return ask(self.target, texts, self.fields)


@dataclass(frozen=True)
class System:
    """Something to compare. `about` says beside its figures what it is; `most_texts` is what a request may hold."""

    name: str
    about: str
    start: Callable[[], AbstractContextManager[Running]]
    most_texts: int | None = None


def parse_system(name: str, key: str = "", model: str = MODEL_NAME, texts: int = 1) -> System:
    """The system of this name, for requests with so many texts. Raises StartError.

    `key` and `model` are sent to servers that run already.
    """
    kind, _, rest = name.partition(":")
    if name == "here":
        return System(name, "this checkout", _here)
    if kind == "commit" and rest:
        commit = _resolve(rest)
        return System(f"commit:{commit}", "this project at that commit", lambda: _commit(commit))
    if kind == "url":
        running = Running(_parse_url(rest, key), fields={"model": model})
        return System(name, "a server that ran already", lambda: contextlib.nullcontext(running))
    if kind == "infinity" and rest in INFINITY_ENGINES:
        about = f"Infinity {pinned('infinity', 'infinity_emb')}, {INFINITY_ENGINES[rest]} engine"
        return System(name, about, lambda: _infinity(INFINITY_ENGINES[rest]))
    if name == "mosec":
        return System(name, f"mosec {pinned('mosec', 'mosec')} with a tuned worker", lambda: _mosec(texts))
    if name == "original":
        return System(name, "the original's code, reconstructed from its description", _original, most_texts=1)
    raise StartError(
        f"{name!r} is no system: give here, commit:REVISION, url:http://HOST:PORT, infinity:onnx, infinity:torch, "
        "mosec or original."
    )


def _parse_url(url: str, key: str) -> Target:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise StartError(f"url:{url} is no address of a server: give url:http://HOST:PORT or url:http://HOST:PORT/v1.")
    return Target(parts.hostname, parts.port or 80, key, f"{parts.path.rstrip('/') or '/v1'}/embeddings")


def _resolve(revision: str) -> str:
    done = _git("rev-parse", "--verify", "--quiet", "--short=12", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode != 0:
        raise StartError(f"commit:{revision} is not in this repository: give a commit, branch or tag.")
    return done.stdout.strip()


@contextmanager
def _here() -> Iterator[Running]:
    with Stack(bundle=model_folder()) as stack:
        yield _of_stack(stack)


@contextmanager
def _commit(commit: str) -> Iterator[Running]:
    """The tree is checked out for as long as its server runs; that server prepares its own graph of the same model."""
    model = model_folder()
    with worktree(commit) as tree:
        stack = Stack(bundle=model)
        stack.root = tree
        _drop_unknown_settings(stack.env, tree)
        with stack:
            yield _of_stack(stack)


def _of_stack(stack: Stack) -> Running:
    assert stack.process is not None
    return Running(Target("127.0.0.1", stack.port, KEY), (stack.process,))


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of this commit in a folder of its own, removed whatever happens. Raises StartError."""
    with tempfile.TemporaryDirectory(prefix="embedlane-commit-") as folder:
        tree = Path(folder) / "tree"
        # What a run that was killed has left in git's list.
        _git("worktree", "prune")
        done = _git("worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            if done.returncode != 0:
                raise StartError(f"{commit} cannot be checked out ({done.stderr.strip()}).")
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _drop_unknown_settings(env: dict[str, str], tree: Path) -> None:
    """An older commit refuses to start with a setting that it does not know."""
    known = (tree / "ipc" / "settings.py").read_text()
    for name in [name for name in env if name.startswith(PREFIX)]:
        if f"    {name.removeprefix(PREFIX).lower()}:" not in known:
            del env[name]


@contextmanager
def _infinity(engine: str) -> Iterator[Running]:
    python = interpreter("infinity")
    port = free_port()
    command = [
        *(str(python.parent / "infinity_emb"), "v2", "--model-id", ".", "--served-model-name", MODEL_NAME),
        *("--engine", engine, "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)),
        # The graph in the folder is optimized already, and Infinity's own optimizing fails with today's optimum; by
        # itself its ONNX engine takes the first token's vector.
        *("--url-prefix", "/v1", "--no-vector-disk-cache", "--onnx-disable-optimize", "--pooling-method", "mean"),
    ]
    with Launch() as launch:
        env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(launch.folder), "DO_NOT_TRACK": "1"}
        # Infinity finds a graph by its name alone only from within the model's folder.
        process = launch.start(command, env, cwd=MODEL)
        yield launch.wait_ready(Running(Target("127.0.0.1", port, ""), [process]))


@contextmanager
def _mosec(texts: int) -> Iterator[Running]:
    python = interpreter("mosec")
    port = free_port()
    env = {
        "PEER_TOKENIZER": str(MODEL / TOKENIZER),
        # A worker that took several large requests would leave the other one idle.
        "PEER_BATCH": str(max(1, MOSEC_BATCH // texts)),
    }
    options = ["--address", "127.0.0.1", "--port", str(port), "--timeout", "30000", "--log-level", "warning"]
    with Launch() as launch:
        # Ours for texts of one length, which is what its worker makes batches of.
        graph = launch.folder / "dense.onnx"
        graph.write_bytes(build_in(Dense(Nodes()), read_checkpoint(model_folder())).SerializeToString())
        env["PEER_GRAPH"] = str(graph)
        process = launch.start([str(python), "-m", "perf.peers.mosec_worker", *options], env)
        yield launch.wait_ready(Running(Target("127.0.0.1", port, ""), [process]))


@contextmanager
def _original() -> Iterator[Running]:
    python = interpreter("original")
    inner, outer = free_port(), free_port()
    quiet = ["--no-access-log", "--log-level", "warning"]
    app = [str(python), "-m", "uvicorn", "--factory", "--host", "127.0.0.1", *quiet]
    with RedisServer() as server, Launch() as launch:
        env = {
            "PEER_KEY": KEY,
            "PEER_REDIS": server.url,
            "PEER_INFERENCE": f"http://127.0.0.1:{inner}",
            "PEER_GRAPH": str(EXPORTED),
            "PEER_TOKENIZER": str(MODEL / "tokenizer.json"),
        }
        inference = launch.start([*app, "--port", str(inner), "perf.peers.original:inference"], env)
        gateway = launch.start([*app, "--port", str(outer), "--workers", "2", "perf.peers.original:gateway"], env)
        target = Target("127.0.0.1", outer, KEY, "/v1/embed", "input_text")
        assert server.process is not None
        yield launch.wait_ready(Running(target, [inference, gateway, server.process], {}))


class Launch:
    """Starts processes, keeps what they print, and ends them and all that they started. A context manager."""

    def __enter__(self) -> Self:
        self._ends = ExitStack()
        self.folder = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="embedlane-peer-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def start(self, command: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT) -> subprocess.Popen[bytes]:
        """Start one in a group of its own, its temporary files in the context's folder."""
        with (self.folder / "output.log").open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                cwd=cwd,
                env={**os.environ, **env, "TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._ends.callback(_end, process)
        return process

    def wait_ready(self, running: Running) -> Running:
        """Return once it answers. Raises StartError with the log's end where a process ends, or not in time."""
        give_up = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, WrongAnswer):
                running.ask(["ready?"])
                return running
            if any(process.poll() is not None for process in running.processes) or time.monotonic() > give_up:
                lines = (self.folder / "output.log").read_text(errors="replace").splitlines()
                raise StartError("A peer does not start; it says:\n" + "\n".join(lines[-_LOG_LINES:]))
            time.sleep(POLL_SECONDS)


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603, S607


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    # Workers that outlive the process which started them are still of its group.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
