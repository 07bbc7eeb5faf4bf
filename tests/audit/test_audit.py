"""The audit of the lock files, by pip-audit itself, against a service of our own that answers as PyPI does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.audit.service import make_certificate, serving
from tests.conftest import ROOT

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
LOCK = """\
# made by hand
one==1.0 \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
    # via two
two[extra]==2.0 ; python_full_version < '3.12' \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
two==2.1 ; python_full_version >= '3.12' \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
Wind_ows==3.0 ; sys_platform == 'win32' \\
    --hash=sha256:0000000000000000000000000000000000000000000000000000000000000000
"""
# What is asked about first, to see whether there is an answer.
ITSELF = f"pip-audit=={version('pip-audit')}"
PINS = ["one==1.0", "two==2.0", "two==2.1", "wind-ows==3.0"]
HOLE: dict[str, object] = {
    "id": "PYSEC-2026-1",
    "aliases": ["CVE-2026-1"],
    "fixed_in": ["2.2"],
    "summary": "A hole.",
    "withdrawn": None,
}
UNFIXED: dict[str, object] = {"id": "GHSA-1", "aliases": [], "fixed_in": [], "details": "Another.", "withdrawn": None}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    file = tmp_path / "some.lock"
    file.write_text(LOCK)
    return file


def audit(certificate: Path, proxy: str, *arguments: object) -> tuple[int, list[str], str]:
    """Exit status, lines, and what stderr has."""
    env = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
    env |= {"https_proxy": proxy, "REQUESTS_CA_BUNDLE": str(certificate)}
    command = [sys.executable, "-m", "tools.audit", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout.splitlines(), done.stderr


def knowing(*pins: str) -> dict[str, object]:
    """Answers of a service that knows these, and nothing bad of them."""
    return {pin: [] for pin in (ITSELF, *pins)}


def test_sound_packages_pass_and_each_was_asked_about(certificate: Path, lock: Path) -> None:
    """Those for other Pythons and systems, too."""
    with serving(certificate, knowing(*PINS)) as (proxy, asked):
        assert audit(certificate, proxy, lock) == (0, ["audit: no known vulnerability in 4 packages"], "")
    assert asked[0] == ITSELF
    assert sorted(asked[1:]) == PINS


def test_a_vulnerable_package_fails(certificate: Path, lock: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.lock"
    other.write_text("two==2.1\n")
    with serving(certificate, knowing(*PINS) | {"two==2.1": [HOLE, UNFIXED]}) as (proxy, _):
        status, lines, _ = audit(certificate, proxy, lock, other)
    assert status == 1
    assert lines == [
        "two 2.1 (some.lock, other.lock): PYSEC-2026-1, CVE-2026-1; fixed in 2.2",
        "two 2.1 (some.lock, other.lock): GHSA-1; no version is fixed",
        "audit: vulnerable: 1 of the 4 packages asked about",
    ]


def test_what_is_ignored_or_withdrawn_passes(certificate: Path, lock: Path) -> None:
    bad = {"one==1.0": [HOLE | {"withdrawn": "2026-01-01T00:00:00Z"}], "two==2.0": [HOLE]}
    with serving(certificate, knowing(*PINS) | bad) as (proxy, _):
        status, lines, _ = audit(certificate, proxy, lock, "--ignore", "CVE-2026-1")
        assert (status, lines) == (0, ["audit: no known vulnerability in 4 packages"])
        assert audit(certificate, proxy, lock, "--ignore", "CVE-2026-2")[0] == 1


def assert_no_audit(status: int, lines: list[str], _: str) -> None:
    assert status == 0
    (line,) = lines
    assert line.startswith("no audit: PyPI's list of vulnerabilities cannot be reached (")


def test_a_service_that_cannot_be_reached_is_no_audit(certificate: Path, lock: Path) -> None:
    with socket.socket() as closed:
        # Bound and not listening: nobody else can have the port, and connections are refused.
        closed.bind(("127.0.0.1", 0))
        assert_no_audit(*audit(certificate, f"http://127.0.0.1:{closed.getsockname()[1]}", lock))


def test_a_service_that_knows_nothing_is_no_audit(certificate: Path, lock: Path) -> None:
    """A mirror that has packages and nothing else: pip-audit alone would find no vulnerability."""
    with serving(certificate, {}) as (proxy, asked):
        assert_no_audit(*audit(certificate, proxy, lock))
    assert asked == [ITSELF]


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_that_is_none_is_no_audit(certificate: Path, lock: Path, status: int) -> None:
    broken: dict[str, object] = {pin: "broken" if status == 200 else [] for pin in (ITSELF, *PINS)}
    with serving(certificate, broken, status) as (proxy, _):
        assert_no_audit(*audit(certificate, proxy, lock))


def test_a_stranger_in_its_place_is_no_audit(certificate: Path, lock: Path, tmp_path: Path) -> None:
    """Whoever has no certificate that we trust tells us nothing."""
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other")
    with serving(other, knowing(*PINS)) as (proxy, asked):
        assert_no_audit(*audit(certificate, proxy, lock))
    assert not asked


def test_a_hole_found_before_the_service_went_away_fails(certificate: Path, lock: Path) -> None:
    """`two` in its second version is asked about apart."""
    answers = knowing(*PINS) | {"one==1.0": [HOLE], "two==2.1": "broken"}
    with serving(certificate, answers) as (proxy, _):
        status, lines, _ = audit(certificate, proxy, lock)
    assert status == 1
    assert lines[0] == "one 1.0 (some.lock): PYSEC-2026-1, CVE-2026-1; fixed in 2.2"


def test_a_package_that_the_service_does_not_know_fails(certificate: Path, lock: Path) -> None:
    with serving(certificate, knowing(*PINS[1:])) as (proxy, _):
        status, lines, _ = audit(certificate, proxy, lock)
    assert status == 1
    assert lines[0].startswith("one 1.0 (some.lock): ")
    assert lines[1:] == ["audit: could not be asked about: 1 of 4 packages"]


def test_a_service_that_goes_away_in_between_is_no_audit(certificate: Path, lock: Path) -> None:
    with serving(certificate, knowing(*PINS) | {"two==2.1": "broken"}) as (proxy, asked):
        assert_no_audit(*audit(certificate, proxy, lock))
    assert sorted(asked[1:]) == PINS


UNUSABLE = {
    "no pin": ("one>=1.0\n", "pins nothing, 'one>=1.0'"),
    "no version": ("one==banana\n", "cannot read what is pinned"),
    "nothing": ("# nothing\n", "The lock files pin nothing."),
}


@pytest.mark.parametrize(("content", "says"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_lock_that_cannot_be_used_fails(certificate: Path, tmp_path: Path, content: str, says: str) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(content)
    with serving(certificate, {}) as (proxy, asked):
        status, lines, error = audit(certificate, proxy, lock)
    assert (status, lines, asked) == (3, [], [])
    assert says in error


def test_a_lock_that_is_not_there_fails(certificate: Path, tmp_path: Path) -> None:
    status, _, error = audit(certificate, "http://127.0.0.1:1", tmp_path / "no.lock")
    assert (status, error) == (3, f"audit: {tmp_path / 'no.lock'} cannot be read (No such file or directory).\n")
