"""Make, list and revoke API keys; a running server takes each change over within a second.

    python -m tools.keys create NAME [--rpm N] [--rph N] [--tpm N]
    python -m tools.keys list
    python -m tools.keys revoke NAME

A new key goes to stdout, once: only its digest is kept, in `keys.json` in EMBEDLANE_DATA_DIR.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from frontend.keys import KEYS_FILE, create_key, read_keys, revoke_key
from ipc.errors import StartError
from ipc.settings import load_settings

LIMITS = {"rpm": "requests a minute", "rph": "requests an hour", "tpm": "tokens a minute"}
HEADINGS = ("NAME", "ID", "CREATED", *(name.upper() for name in LIMITS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit status: 0, or 3 for what cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        path = load_settings().data_path / KEYS_FILE
        match options.command:
            case "create":
                print(create_key(path, options.name, rpm=options.rpm, rph=options.rph, tpm=options.tpm))
                print("keys: this key is not shown again; only its digest is kept.", file=sys.stderr)
            case "revoke":
                revoke_key(path, options.name)
            case _:
                _list(path)
    except StartError as error:
        print(f"keys: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.keys", description="Make, list and revoke API keys.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("name", help="1 to 64 letters, digits, dots, dashes or underscores")
    for name, unit in LIMITS.items():
        create.add_argument(f"--{name}", type=int, metavar="N", help=f"{unit}; 0: no limit; default: the server's")
    commands.add_parser("list", help="show the keys there are, with their limits")
    revoke = commands.add_parser("revoke", help="remove a key")
    revoke.add_argument("name")
    return parser


def _list(path: Path) -> None:
    rows = [HEADINGS]
    for key in read_keys(path):
        limits = (_shown(key.rpm), _shown(key.rph), _shown(key.tpm))
        rows.append((key.name, key.id, key.created, *limits))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _shown(limit: int | None) -> str:
    match limit:
        case None:
            return "default"
        case 0:
            return "no-limit"
        case _:
            return str(limit)


if __name__ == "__main__":
    sys.exit(main())
