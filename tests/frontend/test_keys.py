from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import keys as module
from frontend.app import create_app
from frontend.keys import KEY_PREFIX, KEYS_FILE, OWN_NAME, Key, KeyRing, KeyTable, create_key, read_keys, revoke_key
from ipc.bundle import Bundle
from ipc.errors import StartError
from tests.frontend.peer import PATIENCE_SECONDS, eventually
from tests.frontend.served import KEY, serving, small_bounds

WRITERS = 12
DIGEST = "ab" * 32
GOOD = {"name": "a", "digest": DIGEST, "created": ""}
BROKEN = {
    "no JSON": b"keys: []",
    "empty": b"",
    "no text": b'{"keys": "\xff"}',
    "half": b'{"keys": [',
    "a list": b"[]",
    "an unknown field": msgspec.json.encode({"keys": [GOOD | {"rpmm": 1}]}),
    "no digest": msgspec.json.encode({"keys": [{"name": "a", "created": ""}]}),
    "a key for a digest": msgspec.json.encode({"keys": [GOOD | {"digest": "el-key"}]}),
    "a digest in capitals": msgspec.json.encode({"keys": [GOOD | {"digest": DIGEST.upper()}]}),
    "a digest with a newline": msgspec.json.encode({"keys": [GOOD | {"digest": DIGEST + "\n"}]}),
    "a bad name": msgspec.json.encode({"keys": [GOOD | {"name": "a b"}]}),
    "a name with a newline": msgspec.json.encode({"keys": [GOOD | {"name": "a\n"}]}),
    "the own key's name": msgspec.json.encode({"keys": [GOOD | {"name": OWN_NAME}]}),
    "a negative limit": msgspec.json.encode({"keys": [GOOD | {"rpm": -1}]}),
    "a limit that is no number": msgspec.json.encode({"keys": [GOOD | {"tpm": "many"}]}),
    "a name twice": msgspec.json.encode({"keys": [GOOD, GOOD | {"digest": "cd" * 32}]}),
    "a digest twice": msgspec.json.encode({"keys": [GOOD, GOOD | {"name": "b"}]}),
    "the empty key": msgspec.json.encode({"keys": [GOOD | {"digest": hashlib.sha256().hexdigest()}]}),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / KEYS_FILE


def named(path: Path) -> dict[str, Key]:
    return {key.name: key for key in read_keys(path)}


def finds(ring: KeyRing, secret: str) -> str | None:
    key = ring.find(secret.encode())
    return None if key is None else key.name


def reloaded(ring: KeyRing) -> KeyRing:
    """Have it look once, as a loop that begins to watch does."""

    async def look() -> None:
        ring.watch()
        ring.close()

    asyncio.run(look())
    return ring


# the file


def test_a_key_is_shown_once_and_kept_as_its_digest(path: Path) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    secret = create_key(path, "ci", rpm=600, tpm=0)
    (key,) = read_keys(path)
    assert secret.startswith(KEY_PREFIX)
    assert len(secret) > 40
    assert key.digest == hashlib.sha256(secret.encode()).hexdigest()
    assert (key.name, key.rpm, key.rph, key.tpm) == ("ci", 600, None, 0)
    assert began <= datetime.fromisoformat(key.created) <= datetime.now(UTC)
    assert secret not in path.read_text()
    assert key.id == key.digest[:16]


def test_a_key_that_is_printed_tells_only_its_id() -> None:
    key = Key("ci", DIGEST, "")
    assert DIGEST not in f"{key} {key!r} {[key]}"
    assert key.id in repr(key)


def test_the_file_is_private_however_it_was(path: Path) -> None:
    for name in ("a", "b"):
        create_key(path, name)
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)


def test_the_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / KEYS_FILE
    assert read_keys(path) == []
    create_key(path, "a")
    assert list(named(path)) == ["a"]


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "-", "x" * 64])
def test_names_that_can_be_had(path: Path, name: str) -> None:
    create_key(path, name)
    assert list(named(path)) == [name]


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a/b", "ä", "a\n", OWN_NAME])
def test_names_that_cannot_be_had(path: Path, name: str) -> None:
    with pytest.raises(StartError, match="name"):
        create_key(path, name)
    assert not path.exists()


def test_a_name_is_had_once(path: Path) -> None:
    create_key(path, "a", rpm=1)
    before = path.read_bytes()
    with pytest.raises(StartError, match="'a' already"):
        create_key(path, "a", rpm=2)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [-1, 10**9 + 1])
def test_limits_that_cannot_be_had(path: Path, value: int) -> None:
    for limits in ({"rpm": value}, {"rph": value}, {"tpm": value}):
        with pytest.raises(StartError, match=f"{value} cannot be a key's {next(iter(limits))}"):
            create_key(path, "a", **limits)
    assert not path.exists()


def test_a_key_is_revoked_and_no_other(path: Path) -> None:
    for name in ("a", "b", "c"):
        create_key(path, name)
    left = named(path)
    revoke_key(path, "b")
    del left["b"]
    assert named(path) == left


@pytest.mark.parametrize(("name", "says"), [("b", "no key named 'b'"), (OWN_NAME, "EMBEDLANE_API_KEY")])
def test_what_is_not_there_cannot_be_revoked(path: Path, name: str, says: str) -> None:
    create_key(path, "a")
    with pytest.raises(StartError, match=says):
        revoke_key(path, name)
    assert list(named(path)) == ["a"]


@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file_is_told_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for attempt in (lambda: read_keys(path), lambda: create_key(path, "b"), lambda: revoke_key(path, "a")):
        with pytest.raises(StartError, match=KEYS_FILE) as told:
            attempt()
        assert DIGEST not in str(told.value)
        assert "\n" not in str(told.value)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_is_told(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StartError, match=r"directory.*correct it"):
        read_keys(path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match="EMBEDLANE_DATA_DIR"):
        create_key(tmp_path / "file" / KEYS_FILE, "a")


def test_a_full_disk_costs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(path, "a")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StartError, match="No space left"):
        patch.setattr(os, "fsync", full)
        create_key(path, "b")
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == [f".{KEYS_FILE}.lock", KEYS_FILE]


def test_what_a_killed_writer_left_is_no_hindrance(path: Path) -> None:
    path.with_name(f".{KEYS_FILE}.draft").write_bytes(b"x" * 10_000)
    create_key(path, "a")
    assert list(named(path)) == ["a"]


def test_writers_at_once_lose_nothing_and_readers_see_whole_files(path: Path) -> None:
    barrier = threading.Barrier(WRITERS)
    for number in range(WRITERS):
        create_key(path, f"old-{number}")

    def write(number: int) -> None:
        barrier.wait()
        create_key(path, f"new-{number}")
        revoke_key(path, f"old-{number}")

    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [pool.submit(write, number) for number in range(WRITERS)]
        while not all(one.done() for one in writing):
            assert len(read_keys(path)) in range(WRITERS, 2 * WRITERS + 1)
    for one in writing:
        one.result()
    assert set(named(path)) == {f"new-{number}" for number in range(WRITERS)}
    assert sorted(entry.name for entry in path.parent.iterdir()) == [f".{KEYS_FILE}.lock", KEYS_FILE]


# the ring


def test_it_finds_its_own_key_and_those_of_the_file(path: Path) -> None:
    secret = create_key(path, "ci", rpm=7)
    ring = KeyRing("own", path)
    assert [finds(ring, "own"), finds(ring, secret)] == [OWN_NAME, "ci"]
    found = ring.find(secret.encode())
    assert found is not None
    assert found.rpm == 7
    strangers = ["", "Own", "own ", secret[:-1], secret + "x", secret.upper(), found.digest, found.id]
    assert [finds(ring, presented) for presented in strangers] == [None] * len(strangers)
    assert ring.find(b"\xff\x00") is None


def test_its_own_key_has_the_servers_limits(path: Path) -> None:
    own = KeyRing("own", path).find(b"own")
    assert own == Key(OWN_NAME, hashlib.sha256(b"own").hexdigest(), "", None, None, None)


def test_the_same_key_in_the_file_does_not_replace_its_own(path: Path) -> None:
    path.write_bytes(msgspec.json.encode(KeyTable([Key("a", hashlib.sha256(b"own").hexdigest(), "", rpm=1)])))
    assert finds(KeyRing("own", path), "own") == OWN_NAME


def test_it_does_not_keep_the_keys(path: Path) -> None:
    secret = create_key(path, "ci")
    ring = KeyRing("its-own-key", path)
    assert secret not in repr(vars(ring))
    assert "its-own-key" not in repr(vars(ring))


@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file_at_the_start_leaves_its_own_key(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(content)
    assert finds(KeyRing("own", path), "own") == OWN_NAME
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert KEYS_FILE in str(vars(record)["reason"])


@pytest.mark.anyio
async def test_it_follows_the_file_until_it_is_closed(path: Path) -> None:
    ring = KeyRing("own", path)
    ring.watch()
    first = create_key(path, "a")
    await eventually(lambda: finds(ring, first) == "a")
    second = create_key(path, "b")
    revoke_key(path, "a")
    await eventually(lambda: finds(ring, second) == "b" and finds(ring, first) is None)
    revoke_key(path, "b")
    await eventually(lambda: finds(ring, second) is None)
    assert finds(ring, "own") == OWN_NAME
    ring.close()
    ring.close()


@pytest.mark.anyio
async def test_closed_it_looks_no_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    ring, other = KeyRing("own", path), KeyRing("own", path)
    ring.watch()
    other.watch()
    ring.close()
    secret = create_key(path, "a")
    # The other has the same period: once it has looked some times more, this one would have too.
    await eventually(lambda: finds(other, secret) == "a")
    revoke_key(path, "a")
    await eventually(lambda: finds(other, secret) is None)
    create_key(path, "b")
    assert finds(ring, secret) is None
    other.close()


def test_it_holds_a_key_until_that_is_changed_or_revoked(path: Path) -> None:
    secret = create_key(path, "a")
    ring = KeyRing("own", path)
    key, own = ring.find(secret.encode()), ring.find(b"own")
    assert key is not None
    assert own is not None
    assert ring.holds(key)
    path.write_bytes(msgspec.json.encode(KeyTable([msgspec.structs.replace(key, rpm=1)])))
    changed = reloaded(ring).find(secret.encode())
    assert changed is not None
    assert ring.holds(changed)
    assert not ring.holds(key)
    revoke_key(path, "a")
    assert not reloaded(ring).holds(changed)
    assert ring.holds(own)


def test_a_broken_file_is_logged_once_for_each_change(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "frontend.keys")
    secret = create_key(path, "a")
    good = path.read_bytes()
    ring = KeyRing("own", path)
    for content in (b"{", b'{"keys"', good):
        path.write_bytes(content)
        for _ in range(3):
            assert finds(reloaded(ring), secret) == "a"
    path.unlink()
    for _ in range(3):
        assert finds(reloaded(ring), secret) is None
    said = [(record.levelname, vars(record).get("keys")) for record in caplog.records]
    assert said == [("INFO", 1), ("ERROR", None), ("ERROR", None), ("INFO", 1), ("INFO", 0)]
    for record in caplog.records:
        assert secret not in str(vars(record))
        assert hashlib.sha256(secret.encode()).hexdigest() not in str(vars(record))


def test_a_file_that_is_away_for_a_moment_is_read_again(path: Path) -> None:
    secret = create_key(path, "a")
    ring = KeyRing("own", path)
    path.rename(path.with_name("aside"))
    assert finds(reloaded(ring), secret) is None
    path.with_name("aside").rename(path)
    assert finds(reloaded(ring), secret) == "a"


class Model:
    """What is done to the file at `path`, and which keys must be in force after it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.in_force: dict[str, str] = {}
        self.ever: set[str] = set()
        self.good = msgspec.json.encode(KeyTable([]))
        self.spoils = 0
        self.is_broken = False

    def create(self, name: str) -> None:
        if self.is_broken or name in self.in_force:
            with pytest.raises(StartError):
                create_key(self.path, name)
        else:
            self.in_force[name] = create_key(self.path, name)
            self.ever.add(self.in_force[name])
            self.good = self.path.read_bytes()

    def revoke(self, name: str) -> None:
        if self.is_broken or name not in self.in_force:
            with pytest.raises(StartError):
                revoke_key(self.path, name)
        else:
            revoke_key(self.path, name)
            del self.in_force[name]
            self.good = self.path.read_bytes()

    def spoil(self, _: str) -> None:
        # Another size each time: two of them may come within one tick of the file system's clock.
        self.spoils += 1
        self.path.write_bytes(b"{" * self.spoils)
        self.is_broken = True

    def restore(self, _: str) -> None:
        copy = self.path.with_name("copy")
        copy.write_bytes(self.good)
        copy.replace(self.path)
        self.is_broken = False

    def remove(self, _: str) -> None:
        self.path.unlink(missing_ok=True)
        self.in_force.clear()
        self.good = msgspec.json.encode(KeyTable([]))
        self.is_broken = False


@given(
    st.lists(
        st.tuples(st.sampled_from(["create", "revoke", "spoil", "restore", "remove"]), st.sampled_from("abc")),
        max_size=12,
    )
)
def test_whatever_happens_to_the_file_the_last_good_one_is_in_force(steps: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, KEYS_FILE)
        ring, model = KeyRing("own", path), Model(path)
        for number, (step, name) in enumerate(steps, 1):
            getattr(model, step)(name)
            # Two steps may fall into one tick of the file system's clock, as no two edits of a person do.
            if path.exists():
                os.utime(path, ns=(number, number))
            reloaded(ring)
            assert {secret for secret in model.ever if finds(ring, secret)} == set(model.in_force.values())
            assert finds(ring, "own") == OWN_NAME


# in the application


async def passes(client: httpx.AsyncClient, key: str) -> bool:
    # Nothing there answers 404 to those with a key, and needs no engine.
    return (await client.get("/nowhere", headers={"authorization": f"Bearer {key}"})).status_code == 404


@pytest.mark.anyio
async def test_the_application_follows_the_file_while_it_runs(run_dir: Path, bundle: Bundle) -> None:
    settings = small_bounds(run_dir)
    path = settings.data_path / KEYS_FILE
    early = create_key(path, "early")
    async with serving(create_app(settings, bundle, KEY)) as client:
        assert await passes(client, early)
        late = create_key(path, "late")
        revoke_key(path, "early")

        give_up = time.monotonic() + PATIENCE_SECONDS
        while not await passes(client, late) or await passes(client, early):
            assert time.monotonic() < give_up, "the change is not in force"
            # These requests wait for nothing, so the loop would never come to its timers.
            await asyncio.sleep(0.01)
        assert await passes(client, KEY)
