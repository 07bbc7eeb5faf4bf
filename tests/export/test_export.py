"""Architectures that are not built here are exported, with the vectors of transformers, or refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from ipc.bundle import Bundle
from ipc.errors import StartError
from tests.export.models import (
    BUILT,
    COMMON,
    EXPORTED,
    POOLINGS,
    assert_same,
    ours,
    save_model,
    save_usage,
    theirs,
)
from tools.families import CONFIGS
from tools.prepare import main, prepare

NOT_BUILT = {name: config for name, config in (BUILT | EXPORTED).items() if name not in CONFIGS}


def export(folder: Path, *, trust_code: bool = False) -> tuple[Bundle, list[str]]:
    said: list[str] = []
    return prepare(str(folder), folder.parent / "bundle", trust_code=trust_code, say=said.append), said


def refusal(folder: Path) -> str:
    with pytest.raises(StartError) as caught:
        export(folder)
    assert not (folder.parent / "bundle").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes), encoding="utf-8")


@pytest.mark.parametrize("architecture", NOT_BUILT)
def test_vectors_are_those_of_transformers(tmp_path: Path, architecture: str) -> None:
    folder = save_usage(save_model(tmp_path / "model", architecture, NOT_BUILT[architecture]), "mean", normalize=True)
    bundle, said = export(folder)
    assert_same(ours(bundle), theirs(folder, bundle, "mean", normalize=True))
    assert [line.split()[0] for line in said] == ["exporting", "wrapping", "verifying", "a", "done"]
    assert "a text has the same bits alone and in a batch" in said[3]
    assert (bundle.architecture, bundle.dim, bundle.max_tokens) == (architecture, 32, 150)
    assert bundle.parity.reference.startswith("transformers ")
    assert bundle.parity.min_cosine >= 0.9999999


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_and_normalization(tmp_path: Path, pooling: str, normalize: bool) -> None:
    folder = save_model(tmp_path / "model", "electra", EXPORTED["electra"])
    bundle, _ = export(save_usage(folder, pooling, normalize=normalize))
    assert (bundle.pooling, bundle.normalize) == (pooling.removesuffix("token"), normalize)
    assert_same(ours(bundle), theirs(folder, bundle, pooling, normalize=normalize))


@pytest.mark.parametrize(("architecture", "most"), [("electra", 200), ("camembert", 199), ("modernbert", 200)])
def test_the_token_limit_counts_from_where_positions_begin(tmp_path: Path, architecture: str, most: int) -> None:
    bundle, said = export(save_model(tmp_path / "model", architecture, EXPORTED[architecture]))
    assert bundle.max_tokens == most
    assert "note       no modules.json: mean pooling and normalization are assumed" in said


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "electra", EXPORTED["electra"])
    weights = {name: tensor.astype("float16") for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit(folder / "config.json", dtype="float16")
    bundle, _ = export(save_usage(folder, "mean", normalize=True))
    assert_same(ours(bundle), theirs(folder, bundle, "mean", normalize=True))


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_causal_models(tmp_path: Path, architecture: str) -> None:
    config = COMMON | {"head_dim": 8, "num_key_value_heads": 4}
    if architecture == "gpt2":
        config = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": COMMON["vocab_size"], "n_positions": 200}
    folder = save_model(tmp_path / "model", architecture, config)
    assert f"{architecture!r} is a causal model, in which a token does not see those after it" in refusal(folder)


def test_encoders_with_decoders(tmp_path: Path) -> None:
    config = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 106}
    folder = save_model(tmp_path / "model", "t5", config)
    assert "'t5' is an encoder with a decoder, which is not supported" in refusal(folder)


def test_what_the_exporter_cannot_do(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "fnet", COMMON)
    assert "'fnet' cannot be exported to ONNX (Exporting the operator 'aten::fft_fftn'" in refusal(folder)


def test_a_value_that_the_trace_froze_fails_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced with texts that fit into its window, this model leaves the window out for all.
    monkeypatch.setattr("tools.export.FOREIGN_MAX_TOKENS", 7)
    folder = save_model(tmp_path / "model", "modernbert", EXPORTED["modernbert"])
    assert "Verification failed" in refusal(folder)


def test_more_weights_than_one_file_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.export.MOST_BYTES", 10_000)
    folder = save_model(tmp_path / "model", "electra", EXPORTED["electra"])
    assert "'electra' has more than 2 GB of weights" in refusal(folder)


def test_a_tensor_that_the_file_lacks_is_not_made_up(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "electra", EXPORTED["electra"])
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("encoder.layer.1.output.dense.bias")
    assert lost.any()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "lacks tensors of its architecture: 1 missing ['encoder.layer.1.output.dense.bias']" in refusal(folder)


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "electra", EXPORTED["electra"])
    edit(folder / "config.json", model_type="electra-of-tomorrow")
    assert "does not know the architecture 'electra-of-tomorrow'" in refusal(folder)


REMOTE_CODE = """
from pathlib import Path
from transformers import ElectraConfig, ElectraModel
Path({mark!r}).touch()
class MineConfig(ElectraConfig):
    model_type = "mine"
class MineModel(ElectraModel):
    config_class = MineConfig
"""


def test_code_that_comes_with_a_model_runs_only_if_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = save_usage(save_model(tmp_path / "model", "electra", EXPORTED["electra"]), "mean", normalize=True)
    mark = tmp_path / "it-ran"
    (folder / "mine.py").write_text(REMOTE_CODE.format(mark=str(mark)), encoding="utf-8")
    edit(
        folder / "config.json",
        model_type="mine",
        auto_map={"AutoConfig": "mine.MineConfig", "AutoModel": "mine.MineModel"},
    )
    assert "needs Python code that comes with it, which --trust-remote-code runs on this machine" in refusal(folder)
    assert not mark.exists()
    assert main([str(folder), "--out", str(tmp_path / "bundle"), "--trust-remote-code"]) == 0
    assert mark.exists()
    assert "exporting  mine with transformers" in capsys.readouterr().out
