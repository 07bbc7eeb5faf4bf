"""API keys: named, kept as digests, each with its own limits, and read anew when their file changes.

    EMBEDLANE_DATA_DIR/keys.json   {"keys": [{"name", "digest", "created", "rpm", "rph", "tpm"}, ...]}, mode 0600

`python -m tools.keys` writes the file. Every front end looks at it four times a second, so a change needs no restart.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ipc.errors import StartError
from ipc.liveness import open_lock

log = logging.getLogger(__name__)

KEYS_FILE = "keys.json"
KEY_PREFIX = "el-"
# The name of the server's own key, which is not in the file.
OWN_NAME = "default"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
ID_DIGITS = 16
MOST_LIMIT = 10**9
# A change is promised to be in force within a second: four looks, in case the loop is busy at one of them.
LOOK_SECONDS = 0.25

Limit = Annotated[int, Meta(ge=0, le=MOST_LIMIT)]
Stamp = tuple[int, int, int]
NO_FILE: Stamp = (-errno.ENOENT, 0, 0)


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key as it is kept: its hex SHA-256, never itself.

    A fast hash is right here: a slow one makes guessing dear, and 128 random bits or more cannot be guessed at any
    price, while every request pays for the hash. `created` is an ISO time, empty for the server's own key. `rpm`,
    `rph` and `tpm` are requests a minute and an hour and tokens a minute; None: the server's default, 0: no limit.
    """

    # No `$`: it lets a newline pass.
    name: Annotated[str, Meta(pattern=rf"^{NAME.pattern}\Z")]
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    created: str
    rpm: Limit | None = None
    rph: Limit | None = None
    tpm: Limit | None = None

    @property
    def id(self) -> str:
        """What tells it from all other keys in stores and lists: the first 16 hex digits of the digest."""
        return self.digest[:ID_DIGITS]

    @property
    def flow(self) -> int:
        """Its flow in the engine's queue, 0..255 (`ipc.backlog`)."""
        return int(self.digest[:2], 16)

    def __repr__(self) -> str:
        """Name the key without its whole digest, in case it gets into a log."""
        return f"Key({self.name!r}, {self.id})"


class KeyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the key file."""

    keys: list[Key]


class KeyRing:
    """The server's own key and those of the file at `path`, by their digests.

    A file that cannot be used is logged as an error once for each change of it, and what was read last stays in
    force: a slip of the pen must not lock every client out.
    """

    def __init__(self, own: str, path: Path) -> None:
        self._path = path
        self._own = Key(OWN_NAME, digest_of(own.encode()).hex(), created="")
        self._keys = self._by_digest([])
        self._stamp = NO_FILE
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def find(self, presented: bytes) -> Key | None:
        """The key that a client presents, as it came over the wire; None if it is none of ours."""
        # A dict is constant enough. It compares digests, never keys, and those byte by byte only where their hashes
        # under this process's own secret are equal: time tells a stranger nothing of how near a guess came.
        return self._keys.get(digest_of(presented))

    def holds(self, key: Key) -> bool:
        """Whether a key that was found is still as it was."""
        return self._keys.get(bytes.fromhex(key.digest)) is key

    def watch(self) -> None:
        """Follow the file on the running loop until `close`."""
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self.watch)
        self._look()

    def close(self) -> None:
        """Follow the file no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        # Before the content: what changes in between is seen at the next look.
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = read_keys(self._path)
        except StartError as error:
            log.error("key file not usable, the keys read last stay in force", extra={"reason": str(error)})
            return
        self._keys = self._by_digest(keys)
        log.info("keys read", extra={"keys": len(keys)})

    def _by_digest(self, keys: list[Key]) -> dict[bytes, Key]:
        return {bytes.fromhex(key.digest): key for key in (*keys, self._own)}


def digest_of(key: bytes) -> bytes:
    """What is kept of a key and looked up: its SHA-256, 32 bytes."""
    return hashlib.sha256(key).digest()


def make_secret() -> str:
    """A new key, as its owner gets to see it: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def read_keys(path: Path) -> list[Key]:
    """The keys of the file at `path`, none if there is no file. Raises StartError if it cannot be read or used."""
    try:
        keys = msgspec.json.decode(path.read_bytes(), type=KeyTable).keys
        _check(keys)
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = str(error.strerror)
    except (msgspec.DecodeError, ValueError) as error:
        reason = str(error)
    else:
        return keys
    raise StartError(f"The key file {path} cannot be used ({reason}): correct it, or restore it from a copy.")


def create_key(path: Path, name: str, *, rpm: int | None = None, rph: int | None = None, tpm: int | None = None) -> str:
    """Add a new key to the file at `path`; gives the key itself, which is kept nowhere.

    Any number of processes may write at once. Raises StartError for a name or limit that cannot be had, and for a
    file that cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise StartError(f"{name!r} cannot be a key's name: give 1 to 64 letters, digits, dots, dashes or underscores.")
    if name == OWN_NAME:
        raise StartError(f"{OWN_NAME!r} is the name of the server's own key: choose another.")
    for limit, value in {"rpm": rpm, "rph": rph, "tpm": tpm}.items():
        if value is not None and not 0 <= value <= MOST_LIMIT:
            raise StartError(f"{value} cannot be a key's {limit}: give 1 to {MOST_LIMIT}, or 0 for no limit.")
    secret = make_secret()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with _changing(path) as keys:
        if any(key.name == name for key in keys):
            raise StartError(f"There is a key named {name!r} already: choose another name, or revoke that one first.")
        keys.append(Key(name, digest_of(secret.encode()).hex(), now, rpm, rph, tpm))
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from the file at `path`. Raises StartError if it is not there, or the file cannot be written."""
    if name == OWN_NAME:
        raise StartError(
            f"{OWN_NAME!r} is the server's own key: change EMBEDLANE_API_KEY, or remove the file api-key in "
            "EMBEDLANE_DATA_DIR, and start the server anew."
        )
    with _changing(path) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise StartError(f"There is no key named {name!r}: `python -m tools.keys list` shows those there are.")
        keys[:] = left


def _check(keys: list[Key]) -> None:
    """Raise ValueError for what each key alone does not show."""
    names = {key.name for key in keys}
    digests = {key.digest for key in keys}
    if OWN_NAME in names:
        raise ValueError(f"the name {OWN_NAME!r} is the server's own key's")
    if len(names) < len(keys) or len(digests) < len(keys):
        raise ValueError("two keys have the same name or digest")
    if digest_of(b"").hex() in digests:
        # It would let everyone in who sends an empty header.
        raise ValueError("one digest is that of an empty key")


@contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """The keys there are, to be changed in place by one writer at a time; written unless the block raises."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The lock goes with the process; its file stays, as removing it would race.
        with os.fdopen(open_lock(path.with_name(f".{path.name}.lock")), "rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = read_keys(path)
            yield keys
            _replace(path, msgspec.json.format(msgspec.json.encode(KeyTable(keys))) + b"\n")
    except OSError as error:
        raise StartError(
            f"The key file {path} cannot be written ({error.strerror}): see who owns the folder and whether it is "
            "full, or set EMBEDLANE_DATA_DIR."
        ) from None


def _replace(path: Path, content: bytes) -> None:
    """Put a whole file into the place of another: readers see the one or the other, after a power cut too."""
    # Always this name, so that a writer that is killed leaves no more than one; only the lock's holder is here.
    draft = path.with_name(f".{path.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _stamp(path: Path) -> Stamp:
    """What differs once a file has changed."""
    try:
        status = path.stat()
    except OSError as error:
        return -(error.errno or 0), 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino
