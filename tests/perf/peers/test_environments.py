from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipc.errors import StartError
from perf.peers import environments
from perf.peers.environments import PEERS, REQUIREMENTS, interpreter, pinned

PINNED = re.compile(r"[\w.-]+==[\w.]+")


@pytest.mark.parametrize("peer", PEERS)
def test_every_requirement_is_pinned_and_from_an_index(peer: str) -> None:
    lines = (REQUIREMENTS / f"{peer}.txt").read_text().splitlines()
    assert lines
    assert [line for line in lines if not PINNED.fullmatch(line)] == []


def test_the_pinned_peers_are_those_of_the_published_figures() -> None:
    assert (pinned("infinity", "infinity_emb"), pinned("mosec", "mosec")) == ("0.0.78", "0.9.8")


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_that_is_not_installed_says_how_to_install_it(
    peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    with pytest.raises(StartError, match=f"python -m perf.peers install {peer}"):
        interpreter(peer)


def test_a_peer_of_other_requirements_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    (tmp_path / "mosec").mkdir()
    stamp = tmp_path / "mosec" / "installed.txt"
    stamp.write_text((REQUIREMENTS / "mosec.txt").read_text())
    assert interpreter("mosec") == tmp_path / "mosec" / "bin" / "python"
    stamp.write_text("mosec==0.0.1\n")
    with pytest.raises(StartError):
        interpreter("mosec")
