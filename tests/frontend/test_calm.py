from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from frontend.calm import NICENESS, import_calmly

MODULE = "import os\nniceness = os.getpriority(os.PRIO_PROCESS, 0)\n"


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_a_module_is_loaded_calmly_and_this_thread_goes_on_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loaded_calmly.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    before = niceness()
    import_calmly("loaded_calmly")
    assert sys.modules.pop("loaded_calmly").niceness == before + NICENESS
    assert niceness() == before


def test_what_cannot_be_loaded_is_told_by_who_asks_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    import_calmly("no_such_module_of_ours")
    assert capfd.readouterr() == ("", "")


def test_a_front_end_is_loaded_calmly_as_a_whole() -> None:
    """What is imported after it is there already, but for the few modules that only the start needs."""
    code = "import sys, frontend.calm; had = set(sys.modules); import frontend.__main__; print(*set(sys.modules) - had)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"frontend.__main__", "frontend.drain", "ipc.choice"}
