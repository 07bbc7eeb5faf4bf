"""Models from the Hugging Face hub: the real client against a hub of our own, on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ipc.bundle import load_bundle

ROOT = Path(__file__).resolve().parent.parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MakeModel = Callable[..., Path]


class Hub(ThreadingHTTPServer):
    """As much of the hub as a download needs. It serves `folder` as acme/tiny, to those who show `token`."""

    daemon_threads = True

    def __init__(self, folder: Path, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder = folder
        self.token = token
        self.sent: list[str] = []

    def names(self) -> list[str]:
        return [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.reply(401, b'{"error": "who are you?"}', {"X-Error-Code": "RepoNotFound"})
        elif path in ("/api/models/acme/tiny/revision/main", "/api/models/acme/tiny/revision/v1"):
            siblings = [{"rfilename": name} for name in self.server.names()]
            self.reply(200, json.dumps({"id": "acme/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/models/acme/tiny/tree/"):
            entries = [
                {"type": "file", "path": name, "oid": "0" * 40, "size": (self.server.folder / name).stat().st_size}
                for name in self.server.names()
            ]
            self.reply(200, json.dumps(entries).encode())
        elif path.startswith(f"/acme/tiny/resolve/{COMMIT}/"):
            self.reply_file(path.split("/", 5)[5])
        else:
            self.reply(404, b'{"error": "no such thing"}', {"X-Error-Code": "RevisionNotFound"})

    def reply_file(self, name: str) -> None:
        content = (self.server.folder / name).read_bytes()
        if self.command == "GET":
            self.server.sent.append(name)
        etag = hashlib.sha256(content).hexdigest()
        self.reply(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(make_model: MakeModel) -> Iterator[Hub]:
    folder = make_model()
    for unwanted in ("pytorch_model.bin", "README.md", "onnx/model.onnx", "modeling_tiny.py"):
        (folder / unwanted).parent.mkdir(exist_ok=True)
        (folder / unwanted).write_bytes(b"never to be downloaded")
    with Hub(folder, token="hf_test") as server:  # noqa: S106
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def prepare(hub: Hub | None, cache: Path, *arguments: str | Path, token: str = "hf_test") -> tuple[int, str, str]:  # noqa: S107
    """Run the command with a cache of its own: status, stdout, stderr. Without a hub, the client is offline."""
    where = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"} if hub else {"HF_HUB_OFFLINE": "1"}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "tools.prepare", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | where | quiet | {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache), "HF_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_model_is_downloaded_with_the_token_and_nothing_else_is(hub: Hub, tmp_path: Path) -> None:
    status, said, complained = prepare(hub, tmp_path / "cache", "acme/tiny", "--out", tmp_path / "out")
    assert (status, complained) == (0, "")
    assert "fetching   acme/tiny (newest revision) from the Hugging Face hub" in said
    bundle = load_bundle(tmp_path / "out")
    assert (bundle.id, bundle.revision, bundle.dim) == ("acme/tiny", COMMIT, 32)
    assert sorted(hub.sent) == [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    ]


def test_code_is_downloaded_only_if_it_is_trusted(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(hub, tmp_path / "cache", "acme/tiny", "--out", out, "--trust-remote-code")[0] == 0
    assert [name for name in hub.sent if name.endswith(".py")] == ["modeling_tiny.py"]


def test_a_revision_is_asked_for_after_an_at_sign(hub: Hub, tmp_path: Path) -> None:
    status, said, _ = prepare(hub, tmp_path / "cache", "acme/tiny@v1", "--out", tmp_path / "out")
    assert status == 0
    assert "acme/tiny (v1)" in said
    assert load_bundle(tmp_path / "out").revision == COMMIT
    status, _, complained = prepare(hub, tmp_path / "cache", "acme/tiny@v2", "--out", tmp_path / "other")
    assert status == 3
    assert "acme/tiny cannot be had from the Hugging Face hub" in complained


def test_a_wrong_token_is_explained_in_one_line(hub: Hub, tmp_path: Path) -> None:
    status, _, complained = prepare(
        hub,
        tmp_path / "cache",
        "acme/tiny",
        "--out",
        tmp_path / "out",
        token="hf_other",  # noqa: S106
    )
    assert status == 3
    assert complained.count("\n") == 1
    assert "set HF_TOKEN if the model is private or gated" in complained
    assert not (tmp_path / "out").exists()


def test_pickled_weights_are_never_read(hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "model.safetensors").unlink()
    status, _, complained = prepare(hub, tmp_path / "cache", "acme/tiny", "--out", tmp_path / "out")
    assert status == 3
    assert "acme/tiny has no model.safetensors" in complained
    assert "pytorch_model.bin" not in hub.sent


def test_a_cached_model_needs_no_hub_and_an_absent_one_is_explained(hub: Hub, tmp_path: Path) -> None:
    assert prepare(hub, tmp_path / "cache", "acme/tiny", "--out", tmp_path / "one")[0] == 0
    assert prepare(None, tmp_path / "cache", "acme/tiny", "--out", tmp_path / "two")[0] == 0
    assert load_bundle(tmp_path / "one").fingerprint == load_bundle(tmp_path / "two").fingerprint
    status, _, complained = prepare(None, tmp_path / "cache", "acme/other", "--out", tmp_path / "three")
    assert status == 3
    assert complained.count("\n") == 1
    assert "acme/other cannot be had" in complained
