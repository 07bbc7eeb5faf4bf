"""Other precisions than fp32: measured, added to a bundle that lacks them, and refused where they lose too much."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ipc.bundle import Precision, load_bundle
from ipc.errors import StartError
from tools import loss, prepare
from tools.checkpoint import Checkpoint
from tools.graphs import encoder

MakeModel = Callable[..., Path]


def silent(line: str) -> None:
    """For those who do not ask what is said."""


def test_the_command_makes_what_is_asked_for(
    make_model: MakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    arguments = [str(make_model()), "--out", str(target)]
    assert prepare.main([*arguments, "--precision", "int8", "--precision", "fp16"]) == 0
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["building", "verifying", "measured", "measured", "done"]
    bundle = load_bundle(target)
    assert bundle.precisions == {
        "fp32": "model.fp32.onnx",
        "int8": "model.int8.onnx",
        "fp16": "model.fp16.packed.onnx",
    }
    assert bundle.layouts == {"fp32": "mixed", "int8": "dense", "fp16": "packed"}
    assert bundle.losses.keys() == {"int8", "fp16"}
    for measured in bundle.losses.values():
        assert measured.texts >= 60
        assert measured.min_cosine <= measured.mean_cosine <= 1
    int8, fp16 = bundle.losses["int8"], bundle.losses["fp16"]
    assert 0.95 < int8.min_cosine < fp16.min_cosine
    assert 0.95 < int8.rank_correlation < fp16.rank_correlation
    assert fp16.min_cosine > 1 - 1e-4
    with pytest.raises(SystemExit, match="2"):
        prepare.main([*arguments, "--precision", "fp8"])


def test_a_bundle_that_lacks_a_precision_gets_it_and_keeps_the_others(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    made = load_bundle(prepare.ensure_bundle(str(folder), tmp_path, say=silent))
    assert made.precisions.keys() == {"fp32"}
    steps: list[tuple[Precision, set[str]]] = [("int8", {"fp32", "int8"}), ("fp16", {"fp32", "int8", "fp16"})]
    for precision, expected in steps:
        again = load_bundle(prepare.ensure_bundle(str(folder), tmp_path, precision=precision, say=silent))
        assert again.folder == made.folder
        assert again.precisions.keys() == expected
        assert again.files["model.fp32.onnx"] == made.files["model.fp32.onnx"]
    lines: list[str] = []
    for precision, _ in steps:
        prepare.ensure_bundle(str(folder), tmp_path, precision=precision, say=lines.append)
    assert lines == []
    whole = prepare.prepare(str(folder), made.folder, force=True, say=silent)
    assert whole.precisions.keys() == {"fp32", "int8", "fp16"}


def test_a_bundle_folder_without_the_precision_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    made = prepare.ensure_bundle(str(make_model()), tmp_path, say=silent)
    assert prepare.ensure_bundle(str(made), tmp_path) == made
    with pytest.raises(StartError, match=r"has no int8 graph; choose one of: fp32, or add it with"):
        prepare.ensure_bundle(str(made), tmp_path, precision="int8")


def test_states_beyond_float16_are_refused_and_nothing_is_left(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.intermediate.dense.weight"] *= 3e4
    tensors["encoder.layer.0.output.dense.weight"] *= 1e2
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        StartError, match=r"cannot be had in fp16: its states are out of the range of numbers; use fp32"
    ):
        prepare.prepare(str(folder), tmp_path / "out", precisions=["fp16"], say=silent)
    assert not (tmp_path / "out").exists()
    prepare.prepare(str(folder), tmp_path / "out", say=silent)


def test_a_graph_that_is_another_model_is_refused(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = encoder.build_graph

    def wrong(checkpoint: Checkpoint, precision: Precision) -> object:
        if precision == "int8":
            name = "encoder.layer.1.output.LayerNorm.weight"
            checkpoint = replace(checkpoint, weights={**checkpoint.weights, name: -checkpoint.weights[name]})
        return right(checkpoint, precision)

    monkeypatch.setattr(encoder, "build_graph", wrong)
    with pytest.raises(StartError, match=r"cannot be had in int8: the lowest cosine .* 0.9 is required; use fp32"):
        prepare.prepare(str(make_model()), tmp_path / "out", precisions=["int8"], say=silent)


def test_rank_correlation_is_spearmans() -> None:
    """6 pairs by the textbook's formula, 1 − 6·Σd²/(n³ − n)."""
    one, other = np.array([0.1, 0.4, 0.2, 0.9, 0.5, 0.3]), np.array([1.0, 3.0, 7.0, 9.0, 8.0, 2.0])
    ranks_one, ranks_other = [1, 4, 2, 6, 5, 3], [1, 3, 4, 6, 5, 2]
    squares = sum((a - b) ** 2 for a, b in zip(ranks_one, ranks_other, strict=True))
    assert loss.rank_correlation(one, other) == pytest.approx(1 - 6 * squares / (6**3 - 6))
    assert loss.rank_correlation(one, -one) == pytest.approx(-1)
