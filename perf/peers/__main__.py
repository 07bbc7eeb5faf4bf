"""Install a peer into an environment of its own under data/peers.

python -m perf.peers install infinity|mosec|original|all
"""

from __future__ import annotations

import argparse
import sys

from ipc.errors import StartError
from perf.peers.environments import PEERS, install


def main() -> int:
    """Gives the exit status: 0, or 3 where a peer cannot be installed."""
    parser = argparse.ArgumentParser(prog="python -m perf.peers", description="Peers for perf.compare.")
    parser.add_argument("action", choices=("install",))
    parser.add_argument("peer", choices=(*PEERS, "all"))
    options = parser.parse_args()
    try:
        for peer in PEERS if options.peer == "all" else (options.peer,):
            install(peer)
    except StartError as error:
        print(f"embedlane: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
