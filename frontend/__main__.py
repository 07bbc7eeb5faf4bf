"""`python -m frontend`: serve HTTP on the socket inherited as descriptor 0, else on one of its own.

The supervisor opens one listening socket for all front ends, so a restart loses nothing that is queued there (as long
as one of them runs: supervisord closes the socket with the last, which is why there are two at least by default). Not
`uvicorn --fd`: it takes the descriptor for a Unix socket, so TCP_NODELAY is never set and clients see 40 ms stalls.
"""

from __future__ import annotations

import frontend.calm  # noqa: F401 - first: it loads what is imported below

# isort: split
import os
import socket
import stat
import sys

import uvicorn

from frontend.app import create_app
from frontend.auth import load_or_make_key
from frontend.drain import Server
from frontend.protocol import Protocol
from ipc.bundle import load_bundle, locate_bundle
from ipc.choice import as_chosen
from ipc.errors import StartError
from ipc.liveness import ensure_run_dir
from ipc.log import configure_logging
from ipc.metrics import counting
from ipc.process import calm_collector, raise_descriptor_limit
from ipc.settings import Settings, load_settings

BACKLOG = 2048
# Longer than the 60 s after which common load balancers give up an idle connection, so that they close first.
KEEP_ALIVE_SECONDS = 75
# How long a thread that computes (a scrape, spans, long texts) may keep the event loop from the interpreter: with the
# default, 5 ms, all requests of a front end would wait that long, again and again. docs/decisions/0014
SWITCH_SECONDS = 0.0005


def main() -> int:
    """Run one front end; gives the exit status."""
    # A front end has one core's worth of work; the tokenizer's own thread pool would only fight the engine for cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        settings = load_settings()
        configure_logging("frontend", settings.log_level)
        raise_descriptor_limit()
        with counting(ensure_run_dir(settings.run_path), "frontend") as process:
            return serve(settings, process)
    except StartError as error:
        print(f"embedlane front end: {error}", file=sys.stderr)
        return StartError.EXIT_CODE


def serve(settings: Settings, process: str) -> int:
    """Serve until told to stop; gives the exit status. Raises StartError."""
    # The engine hashes the bundle's files; the tokenizer alone is read here.
    bundle = load_bundle(locate_bundle(as_chosen(settings).model, settings.data_path), verify=False)
    app = create_app(settings, bundle, load_or_make_key(settings), process)
    listener = inherited_socket() or bind(settings)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        # What proxies say of the client is used nowhere.
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    calm_collector()
    sys.setswitchinterval(SWITCH_SECONDS)
    server = Server(config, settings.request_timeout_ms / 1e3)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def inherited_socket() -> socket.socket | None:
    """The listening TCP socket at descriptor 0, if that is what is there."""
    try:
        is_socket = stat.S_ISSOCK(os.fstat(0).st_mode)
    except OSError:  # it is closed
        is_socket = False
    if not is_socket:
        return None
    inherited = socket.socket(fileno=os.dup(0))
    is_listening = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if is_listening and inherited.family == socket.AF_INET:
        return inherited
    inherited.close()
    return None


def bind(settings: Settings) -> socket.socket:
    """A listening socket of this process alone. Raises StartError."""
    try:
        return socket.create_server((settings.host, settings.port), backlog=BACKLOG)
    except OSError as error:
        raise StartError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror}): "
            "set EMBEDLANE_HOST or EMBEDLANE_PORT."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
