"""The peers' environments and model, under data/peers: made once, made anew when their pinned requirements change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ipc.errors import StartError
from ipc.settings import DEFAULT_MODEL
from perf.results import ROOT
from tools.fetch import WEIGHTS, fetch

REQUIREMENTS: Final = Path(__file__).parent
FOLDER: Final = ROOT / "data" / "peers"
PEERS: Final = ("infinity", "mosec", "original")
# Two graphs of the same weights with padding and a mask, hidden states out: Infinity's, with fused operators, lies in
# the model's folder, where Infinity looks for it; the original's is as PyTorch exports it.
MODEL: Final = FOLDER / "model"
FUSED: Final = MODEL / "model.onnx"
EXPORTED: Final = FOLDER / "exported.onnx"
_STAMP: Final = "installed.txt"


def model_folder() -> Path:
    """The default model's published files, fetched for the first caller. Raises StartError."""
    if not (MODEL / WEIGHTS).is_file():
        scratch = FOLDER / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        fetch(DEFAULT_MODEL, scratch, print).folder.rename(MODEL)
        shutil.rmtree(scratch)
    return MODEL


def interpreter(peer: str) -> Path:
    """The Python of an installed peer. Raises StartError where it is not installed as it is pinned now."""
    if not _is_installed(peer) or not all(graph.is_file() for graph in _graphs(peer)):
        raise StartError(f"{peer} is not installed: run python -m perf.peers install {peer}.")
    return _python(peer)


def pinned(peer: str, package: str) -> str:
    """The version of a package that a peer is installed with."""
    versions = dict(line.split("==") for line in _requirements(peer).read_text().splitlines())
    return versions[package]


def install(peer: str) -> None:
    """Make its environment and what it needs of the model, unless they are there. Raises StartError."""
    _make_environment(peer)
    model_folder()
    if not all(graph.is_file() for graph in _graphs(peer)):
        # PyTorch exports the graphs, and only Infinity has PyTorch.
        _make_environment("infinity")
        print("exporting  the model for peers that pad their batches")
        module = ["-m", "perf.peers.export", str(MODEL), str(EXPORTED), str(FUSED)]
        _run([str(_python("infinity")), *module], "The model could not be exported")
    print(f"ready      {peer}")


def _make_environment(peer: str) -> None:
    if _is_installed(peer):
        return
    folder, requirements = FOLDER / peer, _requirements(peer)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {peer} into {folder.relative_to(ROOT)}")
    _run([sys.executable, "-m", "venv", str(folder)], f"No environment could be made for {peer}")
    options = ["--quiet", "--disable-pip-version-check", "--requirement", str(requirements)]
    _run([str(_python(peer)), "-m", "pip", "install", *options], f"{peer} could not be installed")
    (folder / _STAMP).write_text(requirements.read_text())


def _graphs(peer: str) -> tuple[Path, ...]:
    return {"infinity": (FUSED,), "original": (EXPORTED,)}.get(peer, ())


def _requirements(peer: str) -> Path:
    return REQUIREMENTS / f"{peer}.txt"


def _python(peer: str) -> Path:
    return FOLDER / peer / "bin" / "python"


def _is_installed(peer: str) -> bool:
    stamp = FOLDER / peer / _STAMP
    return stamp.is_file() and stamp.read_text() == _requirements(peer).read_text()


def _run(command: Sequence[str], failure: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - our commands
    if done.returncode != 0:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        raise StartError(f"{failure} ({reason.strip()}): check the network and pip's index, and run this again.")
