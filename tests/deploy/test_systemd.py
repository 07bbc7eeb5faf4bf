"""The unit, by systemd's own tools (Debian's package systemd). What it sends and takes: tests/system/test_notify.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ipc.settings import load_settings

ROOT = Path(__file__).parent.parent.parent
UNIT = ROOT / "deploy" / "embedlane.service"
# Of 100, as systemd-analyze counts: "OK" is below 50, and most services of a distribution are above 90.
MOST_EXPOSURE = 20


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.fail("There is no systemd-analyze on this machine: on Debian, apt-get install systemd.", pytrace=False)
    command = [found, "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit for this checkout in place of /opt/embedlane: what it starts must be there."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/embedlane", str(ROOT)))
    return path


def test_the_unit_is_valid(unit: Path) -> None:
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_fault_would_be_seen(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("Type=notify", "Type=notfy"))
    assert "notfy" in analyze("verify", "--man=no", str(unit)).stderr


def test_the_service_may_do_little() -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", str(UNIT))
    assert done.returncode == 0, done.stdout


def test_what_it_sets_are_settings() -> None:
    lines = [line for line in UNIT.read_text().splitlines() if line.startswith("Environment=")]
    given = dict(word.split("=", 1) for line in lines for word in line.removeprefix("Environment=").split())
    settings = load_settings(given, env_file=Path("/nonexistent"))
    assert settings.run_dir == "/run/embedlane"
    assert settings.data_dir == "/var/lib/embedlane"
