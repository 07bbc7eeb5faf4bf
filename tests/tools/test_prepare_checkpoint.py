"""What tools.checkpoint makes of the files that models come in, and which models it refuses, in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from ipc.errors import StartError
from tools.checkpoint import Checkpoint, read_checkpoint

MakeModel = Callable[..., Path]
Tensors = dict[str, NDArray[Any]]


def stored(folder: Path) -> Tensors:
    with safe_open(folder / "model.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def refusal(folder: Path) -> str:
    with pytest.raises(StartError) as caught:
        read_checkpoint(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file; one that is None goes."""
    content = (json.loads(path.read_bytes()) if path.exists() else {}) | fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        np.array_equal(one.weights[name], other.weights[name]) for name in one.weights
    )


def test_prefixes_task_heads_and_old_names_change_nothing(make_model: MakeModel) -> None:
    plain = make_model()
    named = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in stored(plain).items()
    }
    extra = {
        "bert.embeddings.position_ids": np.arange(40, dtype=np.int64)[None],
        "bert.pooler.dense.weight": np.ones((32, 32), np.float32),
        "cls.predictions.bias": np.ones(3, np.float32),
    }
    prefixed = make_model(folder="prefixed", weights=named | extra)
    assert same_weights(read_checkpoint(plain), read_checkpoint(prefixed))


def test_half_precision_weights_become_float32(make_model: MakeModel) -> None:
    plain = make_model()
    halves = {name: tensor.astype(np.float16) for name, tensor in stored(plain).items()}
    read = read_checkpoint(make_model(folder="fp16", weights=halves))
    for name, half in halves.items():
        assert read.weights[name].dtype == np.float32
        assert np.array_equal(read.weights[name], half.astype(np.float32))


def test_bfloat16_weights_become_float32(make_model: MakeModel) -> None:
    folder = make_model()
    upper = {name: (tensor.view(np.uint32) >> 16).astype(np.uint16) for name, tensor in stored(folder).items()}
    # NumPy has no bfloat16, so the file is put together by hand: length of the header, header, bytes.
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in upper.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    packed = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(packed).to_bytes(8, "little") + packed + data)
    read = read_checkpoint(folder)
    for name, tensor in upper.items():
        assert np.array_equal(read.weights[name], (tensor.astype(np.uint32) << 16).view(np.float32))


def test_tensors_that_do_not_fit_are_named(make_model: MakeModel) -> None:
    folder = make_model()
    tensors = stored(folder)
    name = "encoder.layer.1.output.dense.bias"
    shown: list[tuple[Tensors, str]] = [
        ({n: t for n, t in tensors.items() if n != name}, f"1 missing ['{name}']"),
        (tensors | {"classifier.weight": np.ones(2, np.float32)}, "1 unexpected ['classifier.weight']"),
        (tensors | {name: np.ones(31, np.float32)}, f"{name} has the shape (31,), config.json says (32,)"),
        (tensors | {name: np.ones(32, np.int32)}, "stored as I32; supported: F32, F16, BF16"),
        (tensors | {name: np.full(32, np.nan, np.float32)}, f"{name} holds values that are not finite"),
    ]
    for changed, says in shown:
        save_file(changed, folder / "model.safetensors")
        assert says in refusal(folder)


def test_a_weights_file_that_is_cut_or_is_something_else(make_model: MakeModel) -> None:
    weights = make_model() / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x80\x04pickle me"):
        weights.write_bytes(content)
        assert "model.safetensors cannot be read" in refusal(weights.parent)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "roberta"}, "architecture 'roberta', which is not supported; supported: bert."),
        ({"model_type": None}, "architecture None, which is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported (supported: gelu"),
        ({"is_decoder": True}, "causal attention is not supported"),
        ({"num_attention_heads": 5}, "not a multiple of num_attention_heads"),
        ({"hidden_size": None}, "missing required field `hidden_size`"),
        ({"num_hidden_layers": "two"}, "$.num_hidden_layers"),
        ({"layer_norm_eps": 0}, "$.layer_norm_eps"),
    ],
)
def test_a_config_that_cannot_be_served(make_model: MakeModel, change: dict[str, Any], says: str) -> None:
    folder = make_model()
    edit(folder / "config.json", **change)
    assert says in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer.json", "sentence_bert_config.json"])
def test_a_file_that_is_no_json(make_model: MakeModel, name: str) -> None:
    folder = make_model()
    (folder / name).write_bytes(b"{ no")
    assert f"{name} cannot be read as JSON" in refusal(folder)
    (folder / name).write_bytes(b"7")
    assert name in refusal(folder)


def test_files_that_must_be_there(make_model: MakeModel) -> None:
    folder = make_model()
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


def test_modules_decide_pooling_and_normalization(make_model: MakeModel) -> None:
    for pooling in ("mean", "cls"):
        for normalize in (True, False):
            folder = make_model(folder=f"{pooling}-{normalize}", pooling=pooling, normalize=normalize)
            read = read_checkpoint(folder)
            assert (read.pooling, read.normalize, read.notes) == (pooling, normalize, ())


def test_without_modules_the_assumption_is_said(make_model: MakeModel) -> None:
    folder = make_model(pooling="cls")
    (folder / "modules.json").unlink()
    read = read_checkpoint(folder)
    assert (read.pooling, read.normalize) == ("mean", True)
    assert read.notes == ("no modules.json: mean pooling and normalization are assumed",)


@pytest.mark.parametrize("extra", ["Dense", "WordWeights", "LayerNorm"])
def test_other_modules_are_refused(make_model: MakeModel, extra: str) -> None:
    folder = make_model()
    modules = json.loads((folder / "modules.json").read_bytes())
    modules.insert(2, {"idx": 2, "path": "2_Extra", "type": f"sentence_transformers.models.{extra}"})
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert f"built of the modules Transformer → Pooling → {extra} → Normalize; supported:" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "asks for the pooling 'mean_tokens+cls"),
        ({"pooling_mode_max_tokens": True}, "asks for the pooling 'max_tokens', which is not supported"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "weightedmean"}, "asks for the pooling 'weightedmean'"),
        ({"pooling_mode": ["mean", "max"]}, "asks for the pooling ['mean', 'max']"),
        ({}, "asks for the pooling '(none)'"),
    ],
)
def test_both_spellings_of_pooling(make_model: MakeModel, content: dict[str, Any], expected: str) -> None:
    folder = make_model()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content), encoding="utf-8")
    if expected in ("mean", "cls", "last"):
        assert read_checkpoint(folder).pooling == expected
    else:
        assert expected in refusal(folder)


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "expected"),
    [(24, 12, 24), (None, 12, 12), (None, 10**30, 40), (None, None, 40), (64, None, 40)],
)
def test_the_token_limit(make_model: MakeModel, sentence: int | None, tokenizer: int | None, expected: int) -> None:
    folder = make_model()
    edit(folder / "sentence_bert_config.json", max_seq_length=sentence)
    edit(folder / "tokenizer_config.json", model_max_length=tokenizer)
    assert read_checkpoint(folder).max_tokens == expected


def test_a_token_limit_without_room_for_a_word(make_model: MakeModel) -> None:
    folder = make_model()
    edit(folder / "sentence_bert_config.json", max_seq_length=2)
    assert "allows 2 tokens a text" in refusal(folder)


def test_lowercasing_outside_the_tokenizer(make_model: MakeModel) -> None:
    folder = make_model()
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    read_checkpoint(folder)  # its tokenizer lowercases anyway
    content = json.loads((folder / "tokenizer.json").read_bytes())
    content["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert "lowercases outside its tokenizer" in refusal(folder)


def test_prompts_are_kept(make_model: MakeModel) -> None:
    folder = make_model()
    assert (read_checkpoint(folder).prompts, read_checkpoint(folder).default_prompt_name) == ({}, None)
    prompts = {"query": "find: ", "document": ""}
    for name in (None, "document", "query"):
        edit(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=name)
        read = read_checkpoint(folder)
        assert (read.prompts, read.default_prompt_name) == (prompts, name)


def test_prompts_that_are_none(make_model: MakeModel) -> None:
    folder = make_model()
    path = folder / "config_sentence_transformers.json"
    edit(path, prompts={"query": 7}, default_prompt_name=None)
    assert "prompts that are not texts" in refusal(folder)
    edit(path, prompts={"query": "q: "}, default_prompt_name="other")
    assert "the default prompt 'other'" in refusal(folder)


def test_prompts_that_have_no_part_in_the_vector(make_model: MakeModel) -> None:
    folder = make_model()
    edit(folder / "1_Pooling" / "config.json", include_prompt=False)
    read_checkpoint(folder)
    edit(folder / "config_sentence_transformers.json", prompts={"query": "q: "}, default_prompt_name=None)
    assert "leaves its prompts out of the pooling" in refusal(folder)
