"""The document against the server that it describes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from perf.stack import KEY, ROOT, Stack

pytestmark = pytest.mark.system

# For each operation, beside the limits of each field, which schemathesis tries one by one.
EXAMPLES = 20
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def document(server: Stack) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    content: dict[str, Any] = answer.json()
    return content


def test_the_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(document)] == []


def test_the_rule_of_the_document_finds_what_is_wrong(document: dict[str, Any]) -> None:
    for wrong in ({**document, "paths": []}, {**document, "openapi": "2.0"}, {"openapi": "3.1.0"}):
        assert not OPENAPI_31_VALIDATOR.is_valid(wrong)


def examples(document: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Path, title and body of every request that the document shows."""
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for media in content.values():
            for example in media["examples"].values():
                yield path, example["summary"], example["value"]


def test_every_example_works(server: Stack, document: dict[str, Any]) -> None:
    shown = list(examples(document))
    assert {path for path, *_ in shown} == {path for path, methods in document["paths"].items() if "post" in methods}
    answers = {
        (path, title): httpx.post(server.url + path, json=body, headers=AUTHORIZED) for path, title, body in shown
    }
    assert {name: answer.text for name, answer in answers.items() if answer.status_code != 200} == {}


def test_every_line_to_copy_works(server: Stack, document: dict[str, Any]) -> None:
    """In a shell, as it stands on the page."""
    page = httpx.get(f"{server.url}/docs").text
    setup, *lines = (unescape(line) for line in re.findall(r'<pre class="(?:setup|request)">(.*?)</pre>', page, re.S))
    assert shlex.split(setup)[0] == f"URL={server.url}"
    assert len(lines) > len(document["paths"]) / 2
    for line in lines:
        script = f"{setup}\nKEY={KEY}\n{line} -o /dev/null -w '%{{http_code}}'"
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == "200", line


def test_schemathesis_finds_nothing(server: Stack, document: dict[str, Any], tmp_path: Path) -> None:
    """All its checks: no 5xx, no undocumented status, header or field, nothing valid refused, nothing invalid taken."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}"),
        *("--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(EXAMPLES)),
        *("--generation-deterministic", "--continue-on-failure", "--no-color"),
    ]
    own = {"SCHEMATHESIS_HOOKS": "tests.system.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    # It leaves what it learned in its working directory.
    done = subprocess.run(command, env=os.environ | own, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    operations = sum(len(methods) for methods in document["paths"].values())
    # All but the one that gave it the document.
    assert f"Tested: {operations - 1}" in done.stdout
    assert server.status("/ready") == 200
