"""Hand over to another engine without a failed request: `python -m tools.swap [MODEL]`.

MODEL is what EMBEDLANE_MODEL takes; without it the model stays, and what changes is the code. The next engine loads
while the one there is serves, takes over when that has answered all it has, and front ends follow to its model. If it
cannot load, nothing has changed. Both models are in memory meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from xmlrpc.client import Fault, ServerProxy

from ipc.choice import Choice, read_choice, write_choice
from ipc.errors import StartError
from ipc.liveness import ENGINE_LOCK, STANDBY_LOCK, is_held
from ipc.settings import Settings, load_settings
from tools.prepare import ensure_bundle
from tools.processes import all_processes, one_process
from tools.restart import alone, reached
from tools.serve import graph_of, is_ready, supervisor
from tools.weights import ensure_weights

LOOK_SECONDS = 0.02
# A large model takes long to load, and the server serves meanwhile.
LOAD_SECONDS = 600
READY_SECONDS = 60


def main() -> int:
    """Swap; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.swap", description="Serve another model, or new code.")
    parser.add_argument("model", nargs="?", help="what EMBEDLANE_MODEL takes; left out: the model that is served")
    given = parser.parse_args().model
    try:
        settings = load_settings()
        with alone(settings.run_path):
            old = read_choice(settings.run_path)
            new = prepare(settings, given) if given else old
            with reached(settings.run_path):
                seconds = hand_over(settings.run_path, old, new)
            await_embedding(settings)
    except StartError as error:
        print(f"embedlane: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    print(f"serving    {new.model if new else settings.model}; the engine was away for {seconds:.2f} s")
    if given:
        print(f"           until the server is stopped: set EMBEDLANE_MODEL={given} for its next start")
    return 0


def prepare(settings: Settings, model: str) -> Choice:
    """The bundle of a model, made where it is not there yet. Raises StartError."""
    bundle = ensure_bundle(model, settings.data_path, precision=graph_of(settings))
    weights = ensure_weights(model, settings.data_path) if settings.runner == "torch" else ""
    return Choice(str(bundle.absolute()), str(weights))


def hand_over(run_dir: Path, old: Choice | None, new: Choice | None) -> float:
    """Start the engine that does not run, and stop the one that does once that is ready; gives the seconds without one.

    Raises StartError where the new one cannot start, and leaves all as it was.
    """
    with supervisor(run_dir) as server:
        serving, idle = _engines(server)
        write_choice(run_dir, new)
        try:
            server.supervisor.startProcess(idle, False)
            _await_ready(server, run_dir, idle)
        except BaseException:
            write_choice(run_dir, old)
            with suppress(Fault):  # it has ended by itself
                server.supervisor.stopProcess(idle)
            raise
        began = time.monotonic()
        server.supervisor.stopProcess(serving)
        while is_held(run_dir / STANDBY_LOCK):
            time.sleep(LOOK_SECONDS)
        if not is_held(run_dir / ENGINE_LOCK):
            raise StartError("The new engine ended as it took over, and is started again: its log has the reason.")
        return time.monotonic() - began


def await_embedding(settings: Settings) -> None:
    """Return once an embedding went through. Raises StartError."""
    give_up = time.monotonic() + READY_SECONDS
    while not is_ready(f"http://{settings.host}:{settings.port}"):
        if time.monotonic() > give_up:
            raise StartError(
                f"The new engine has taken over, and in {READY_SECONDS} s no embedding went through: the log says why."
            )
        time.sleep(LOOK_SECONDS)


def _engines(server: ServerProxy) -> tuple[str, str]:
    """The names of the engine that runs and of the one that does not. Raises StartError unless it is one of each."""
    engines = [process for process in all_processes(server) if process.group == "engine"]
    running = [process.full_name for process in engines if process.pid]
    idle = [process.full_name for process in engines if not process.pid]
    if len(running) != 1 or len(idle) != 1:
        raise StartError(f"{len(running)} engines run, and a swap needs one: wait until the server is ready.")
    return running[0], idle[0]


def _await_ready(server: ServerProxy, run_dir: Path, name: str) -> None:
    """Return once that engine waits to take over. Raises StartError."""
    give_up = time.monotonic() + LOAD_SECONDS
    while not is_held(run_dir / STANDBY_LOCK):
        if one_process(server, name).statename in {"EXITED", "FATAL", "STOPPED"}:
            raise StartError("The new engine could not start (its log says why), and the server serves on as it was.")
        if time.monotonic() > give_up:
            raise StartError(f"The new engine was not ready after {LOAD_SECONDS} s, and was stopped: its log has more.")
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
