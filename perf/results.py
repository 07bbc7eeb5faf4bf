"""Committed results: one JSON file a measurement and machine, with all that is needed to judge and repeat it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("onnxruntime", "tokenizers", "uvicorn", "uvloop", "httptools", "starlette", "pyzmq", "numpy", "orjson")


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured; memory in GiB."""

    cpu: str
    cores: int
    memory: float
    kernel: str

    @property
    def slug(self) -> str:
        """For file names: "amd-epyc-2-cores"."""
        cpu = re.sub(r"\(r\)|\(tm\)|\b(cpu|processor)\b|@.*", "", self.cpu.lower())
        return re.sub(r"[^a-z0-9]+", "-", f"{cpu} {self.cores} cores").strip("-")


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measurement. `command` repeats it; `data` is the scenario's own; `commit` ends with "+" for a changed tree."""

    format: int = 1
    name: str
    measured: str
    command: str
    commit: str
    machine: Machine
    versions: dict[str, str]
    settings: dict[str, Any]
    data: dict[str, Any]


def make_result(name: str, command: str, settings: dict[str, Any], data: Any) -> Result:
    """Add when, where and of what."""
    return Result(
        name=name,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        commit=commit(),
        machine=machine(),
        versions={"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        settings=settings,
        data=msgspec.to_builtins(data),
    )


def save_result(result: Result, folder: Path = RESULTS) -> Path:
    """Write `<name>-<machine>.json`, in the place of an earlier one."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{result.name}-{result.machine.slug}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(_rounded(msgspec.to_builtins(result)))) + b"\n")
    return path


def load_result(path: Path) -> Result:
    """Read one. Raises msgspec.ValidationError."""
    return msgspec.json.decode(path.read_bytes(), type=Result)


def machine() -> Machine:
    """This machine."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu=found[1] if found else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory=pages / 2**30,
        kernel=platform.release().partition("-")[0],
    )


def commit() -> str:
    """The checkout's commit; "unknown" outside one."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    """A distribution's version; ONNX Runtime for CUDA is another distribution of the same package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version(f"{package}-gpu")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603, S607
    return done.stdout.strip()


def _rounded(value: Any) -> Any:
    """Four significant digits are more than these numbers have."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < 1e4 else round(value)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
