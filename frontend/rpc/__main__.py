"""`python -m frontend.rpc`: serve gRPC on EMBEDLANE_GRPC_PORT, over the same engine as the HTTP front ends."""

from __future__ import annotations

import os
import sys

import uvloop

from frontend.auth import load_or_make_key
from ipc.bundle import load_bundle, locate_bundle
from ipc.choice import as_chosen
from ipc.errors import StartError
from ipc.liveness import ensure_run_dir
from ipc.log import configure_logging
from ipc.metrics import counting
from ipc.process import calm_collector, raise_descriptor_limit
from ipc.settings import Settings, load_settings


def main() -> int:
    """Run the gRPC front end; gives the exit status."""
    # As in `frontend.__main__`.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # What gRPC's C++ has to say is no JSON.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        settings = load_settings()
        if not settings.grpc_port:
            raise StartError("EMBEDLANE_GRPC_PORT is 0: set it to the port that gRPC is to be served on.")
        configure_logging("frontend", settings.log_level)
        raise_descriptor_limit()
        with counting(ensure_run_dir(settings.run_path), "grpc") as process:
            serve(settings, process)
    except StartError as error:
        print(f"embedlane gRPC front end: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    return 0


def serve(settings: Settings, process: str) -> None:
    """Serve until told to stop. Raises StartError."""
    try:
        # An extra, and only this setting needs it.
        from frontend.rpc import server  # noqa: PLC0415
    except ImportError as error:
        raise StartError(
            f"EMBEDLANE_GRPC_PORT needs gRPC's packages ({error.name} is missing): install the extra `grpc`, "
            "or leave the setting out."
        ) from None
    # The engine hashes the bundle's files; the tokenizer alone is read here.
    bundle = load_bundle(locate_bundle(as_chosen(settings).model, settings.data_path), verify=False)
    key = load_or_make_key(settings)
    calm_collector()
    uvloop.run(server.serve(settings, bundle, key, process))


if __name__ == "__main__":
    sys.exit(main())
