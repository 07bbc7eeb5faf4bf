"""`python -m tools.embed` as it is called, with the real model: in its own process, and by a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ipc.bundle import Bundle
from ipc.settings import PREFIX
from perf.stack import KEY, ROOT, Stack
from perf.texts import make_texts
from tests.system.reference import Reference

pytestmark = pytest.mark.system


def run(*arguments: object, bundle: Bundle, given: str = "") -> tuple[int, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run(
        [sys.executable, "-m", "tools.embed", *map(str, arguments)],
        cwd=ROOT,
        env={**env, "EMBEDLANE_MODEL": str(bundle.folder)},
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stdout
    return done.returncode, done.stderr


def test_in_this_process_and_by_a_server(
    server: Stack, bundle: Bundle, references: list[Reference], tmp_path: Path
) -> None:
    known = [each for each in references if each.text and "\n" not in each.text and "\r" not in each.text]
    texts = [each.text for each in known] + make_texts("mixed", 100)
    source = tmp_path / "in.txt"
    source.write_text("\n".join(texts), newline="")
    status, said = run(source, tmp_path / "local.npy", "--window", 64, bundle=bundle)
    assert (status, said.count("\n")) == (0, 1)
    assert f"local.npy: {len(texts)} texts" in said
    options = ("--window", 64, "--server", server.url, "--key", KEY, "--in-flight", 2)
    status, said = run("-", tmp_path / "served.npy", "--from", "lines", *options, bundle=bundle, given="\n".join(texts))
    assert status == 0, said
    # On a CPU a text has its bits wherever it is computed.
    assert (tmp_path / "served.npy").read_bytes() == (tmp_path / "local.npy").read_bytes()
    found = np.load(tmp_path / "local.npy")
    for vector, each in zip(found, known, strict=False):
        np.testing.assert_allclose(vector, each.vector, atol=1e-5)


def test_what_is_wrong_is_one_line_and_status_3(bundle: Bundle, tmp_path: Path) -> None:
    status, said = run(tmp_path / "nowhere.txt", tmp_path / "out.npy", bundle=bundle)
    assert (status, said) == (3, f"embed: {tmp_path / 'nowhere.txt'}: No such file or directory.\n")
    status, said = run("in.txt", "out.npy", "--server", "ftp://x", bundle=bundle)
    assert (status, said.count("\n")) == (3, 1)
    assert "is no URL" in said
