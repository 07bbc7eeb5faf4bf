"""Which runner the settings choose, and what a person is told where there is none such."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.runners import open_runner
from engine.runners.onnx import OnnxRunner, choose_precision
from ipc.bundle import Bundle
from ipc.errors import StartError
from ipc.settings import Settings
from tests.engine.sum_runner import SumRunner


def make_sums(settings: Settings, bundle: Bundle) -> SumRunner:
    return SumRunner(precision=bundle.id, lanes=settings.lanes)


def test_onnx_is_what_runs_unless_told_otherwise(bundle: Bundle) -> None:
    runner = open_runner(Settings(device="cpu", lanes=3), bundle)
    assert isinstance(runner, OnnxRunner)
    assert (runner.device, runner.precision, runner.lanes) == ("cpu", "fp32", 3)


def test_a_runner_of_ones_own_is_made_from_settings_and_bundle(bundle: Bundle) -> None:
    runner = open_runner(Settings(runner="tests.engine.test_runners:make_sums", lanes=5), bundle)
    assert (type(runner).__name__, runner.precision, runner.lanes) == ("SumRunner", bundle.id, 5)


@pytest.mark.parametrize("name", ["tests.no_such_module:make", "tests.engine.test_runners:no_such_function"])
def test_a_runner_that_is_not_there_is_told(bundle: Bundle, name: str) -> None:
    with pytest.raises(StartError, match=f"EMBEDLANE_RUNNER={name} cannot be imported"):
        open_runner(Settings(runner=name), bundle)


def test_without_pytorch_the_extra_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(StartError, match="needs the extra `torch`"):
        open_runner(Settings(runner="torch"), bundle)


def test_a_precision_that_the_bundle_lacks_is_told(bundle: Bundle) -> None:
    only_fp32 = type(bundle)(
        **{f: getattr(bundle, f) for f in bundle.__struct_fields__} | {"precisions": {"fp32": "model.fp32.onnx"}}
    )
    with pytest.raises(StartError, match="has no int8 graph"):
        open_runner(Settings(device="cpu", precision="int8"), only_fp32)


@pytest.mark.parametrize(
    ("wanted", "device", "has", "chosen"),
    [
        ("auto", "cpu", ["fp32"], "fp32"),
        ("auto", "cpu", ["fp32", "fp16", "int8"], "fp32"),
        ("auto", "cuda", ["fp32"], "fp32"),
        ("auto", "cuda", ["fp32", "fp16", "int8"], "fp16"),
        ("fp32", "cuda", ["fp32", "fp16"], "fp32"),
        ("int8", "cpu", ["fp32", "int8"], "int8"),
    ],
)
def test_precision(bundle: Bundle, wanted: str, device: str, has: list[str], chosen: str) -> None:
    given = {f: getattr(bundle, f) for f in bundle.__struct_fields__} | {"precisions": dict.fromkeys(has, "a")}
    assert choose_precision(wanted, device, type(bundle)(**given)) == chosen


def test_what_is_not_chosen_is_not_imported() -> None:
    # In a process of its own: this one has imported much.
    script = "import sys, engine.__main__; sys.exit('onnxruntime' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
