"""Ask whether what the lock files pin is known to be vulnerable: `python -m tools.audit requirements/*.lock`.

pip-audit asks PyPI. By itself it leaves out what is pinned for other Pythons and systems than its own, and takes a
package that the service does not know for a sound one. So here it is given every pin, and what it could not find out
counts.

Status 0: no pin is known to be vulnerable, or nothing could be asked, which the last line then says. 1: some are
vulnerable, or could not be asked about while others could. 3: a lock file cannot be used.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import msgspec

from ipc.errors import StartError

# A line of `uv pip compile`; what belongs to it is indented.
PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(\[[^]]*\])?==(?P<version>[^\s;\\]+)")
# Nothing is resolved or installed, and nothing is taken from an earlier run.
OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner", "off")
FORMAT = ("--format", "json", "--aliases", "on", "--desc", "off")


class Unreachable(Exception):
    """The service gave no answer that can be used."""


class Pin(NamedTuple):
    """A package in one version."""

    name: str
    version: str


class Vulnerability(msgspec.Struct, frozen=True):
    """As pip-audit tells it."""

    id: str
    fix_versions: list[str]
    aliases: list[str]

    def __str__(self) -> str:
        """All its names, and what to do."""
        remedy = f"fixed in {', '.join(self.fix_versions)}" if self.fix_versions else "no version is fixed"
        return f"{', '.join((self.id, *self.aliases))}; {remedy}"


class Finding(msgspec.Struct, frozen=True):
    """What pip-audit says of one package; `skip_reason` where it has not asked, or had no answer."""

    name: str
    vulns: list[Vulnerability] = []
    skip_reason: str | None = None


class _Report(msgspec.Struct, frozen=True):
    dependencies: list[Finding]


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit the lock files of the command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description="Look for known vulnerabilities.")
    parser.add_argument("locks", nargs="+", type=Path, metavar="LOCK")
    parser.add_argument("--ignore", action="append", default=[], metavar="ID", help="one that does not concern us")
    options = parser.parse_args(arguments)
    try:
        version("pip-audit")
        return audit(read_pins(options.locks), [f"--ignore-vuln={name}" for name in options.ignore])
    except StartError as error:
        print(f"audit: {error}", file=sys.stderr)
        return StartError.EXIT_CODE
    except PackageNotFoundError:
        print("audit: pip-audit is not installed: `make audit` installs it.", file=sys.stderr)
        return StartError.EXIT_CODE


def read_pins(locks: Iterable[Path]) -> dict[Pin, list[str]]:
    """Every pin, and the names of the files it is in. Raises StartError."""
    pins: dict[Pin, list[str]] = {}
    for lock in locks:
        try:
            lines = lock.read_text().splitlines()
        except OSError as error:
            raise StartError(f"{lock} cannot be read ({error.strerror}).") from None
        for line in lines:
            if not line.strip() or line[0] in " \t#":
                continue
            if (found := PIN.match(line)) is None:
                raise StartError(f"{lock} has a line that pins nothing, {line!r}: make the file anew with `make lock`.")
            name = re.sub(r"[-_.]+", "-", found["name"]).lower()
            pins.setdefault(Pin(name, found["version"]), []).append(lock.name)
    if not pins:
        raise StartError("The lock files pin nothing.")
    return pins


def audit(pins: Mapping[Pin, Sequence[str]], options: Sequence[str]) -> int:
    """Ask about all pins and print what is known; gives the exit status. Raises StartError."""
    groups = list(_groups(pins))
    for group in groups:
        _check(group)
    found: dict[Pin, Finding] = {}
    silence = ""
    try:
        _try_service()
        for group in groups:
            found |= _ask(group, options)
    except Unreachable as error:
        silence = str(error)
    vulnerable = [pin for pin in found if found[pin].vulns]
    unknown = [pin for pin in found if found[pin].skip_reason]
    for pin in vulnerable:
        for vulnerability in found[pin].vulns:
            print(f"{pin.name} {pin.version} ({', '.join(pins[pin])}): {vulnerability}")
    if vulnerable:
        print(f"audit: vulnerable: {len(vulnerable)} of the {len(found)} packages asked about")
        return 1
    if silence:
        print(f"no audit: PyPI's list of vulnerabilities cannot be reached ({silence}), so nothing is known")
        return 0
    for pin in unknown:
        print(f"{pin.name} {pin.version} ({', '.join(pins[pin])}): {found[pin].skip_reason}")
    if unknown:
        print(f"audit: could not be asked about: {len(unknown)} of {len(pins)} packages")
        return 1
    print(f"audit: no known vulnerability in {len(pins)} packages")
    return 0


def _try_service() -> None:
    """Raise Unreachable unless the service knows pip-audit itself: some mirrors of PyPI have its packages alone."""
    pin = Pin("pip-audit", version("pip-audit"))
    if _ask({pin.name: pin}, ())[pin].skip_reason:
        raise Unreachable(f"what answers there does not know {pin.name} {pin.version}")


def _groups(pins: Iterable[Pin]) -> Iterator[dict[str, Pin]]:
    """All pins, by names: pip-audit takes one version of a package at a time."""
    left = list(pins)
    while left:
        group = {pin.name: pin for pin in reversed(left)}
        yield group
        left = [pin for pin in left if pin not in group.values()]


def _check(group: Mapping[str, Pin]) -> None:
    """Raise StartError for pins that pip-audit cannot read: that is no fault of the service, which is not asked."""
    rehearsal = _pip_audit(group, "--dry-run")
    if rehearsal.returncode:
        raise StartError(f"pip-audit cannot read what is pinned: {_last_line(rehearsal.stderr)}")


def _ask(group: Mapping[str, Pin], options: Sequence[str]) -> dict[Pin, Finding]:
    """What pip-audit says of each. Raises Unreachable."""
    done = _pip_audit(group, *FORMAT, *options)
    try:
        report = msgspec.json.decode(done.stdout, type=_Report)
    except msgspec.DecodeError:
        raise Unreachable(_last_line(done.stderr)) from None
    findings = {group[finding.name]: finding for finding in report.dependencies if finding.name in group}
    missing = "pip-audit does not mention it"
    return {pin: findings.get(pin, Finding(pin.name, skip_reason=missing)) for pin in group.values()}


def _pip_audit(group: Mapping[str, Pin], *options: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="embedlane-audit-") as folder:
        file = Path(folder, "pins.txt")
        file.write_text("".join(f"{pin.name}=={pin.version}\n" for pin in group.values()))
        command = [sys.executable, "-m", "pip_audit", *OPTIONS, "--cache-dir", folder, "-r", str(file), *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it says nothing"


if __name__ == "__main__":
    sys.exit(main())
