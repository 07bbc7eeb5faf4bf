"""The bundle on disk: what load_bundle accepts, and what it says about the rest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ipc.bundle import MANIFEST, Bundle, load_bundle
from ipc.errors import StartError

FILES = {"tokenizer.json": b'{"model": {}}', "model.fp32.onnx": b"a graph, as far as this test goes"}


def describe() -> dict[str, Any]:
    return {
        "format": 1,
        "id": "acme/tiny",
        "revision": "0123abc",
        "architecture": "bert",
        "dim": 32,
        "max_tokens": 24,
        "vocab_size": 100,
        "pooling": "mean",
        "normalize": True,
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in FILES.items()
        },
        "precisions": {"fp32": "model.fp32.onnx"},
        "parity": {"reference": "numpy float64", "texts": 6, "min_cosine": 0.9999999},
    }


def write(folder: Path, manifest: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny", describe())


def refusal(folder: Path, *, verify: bool = True) -> str:
    with pytest.raises(StartError) as caught:
        load_bundle(folder, verify=verify)
    message = str(caught.value)
    assert str(folder) in message
    assert "python -m tools.prepare" in message
    assert "\n" not in message
    return message


def test_a_whole_bundle_loads(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert isinstance(bundle, Bundle)
    assert (bundle.id, bundle.dim, bundle.max_tokens, bundle.pooling, bundle.normalize) == (
        "acme/tiny",
        32,
        24,
        "mean",
        True,
    )
    assert bundle.path("tokenizer.json") == folder / "tokenizer.json"
    assert bundle.graph("fp32") == folder / "model.fp32.onnx"
    assert bundle.parity.min_cosine == 0.9999999


def test_prompts_may_be_there_and_change_no_fingerprint(folder: Path) -> None:
    before = load_bundle(folder)
    assert (before.prompts, before.default_prompt_name) == ({}, None)
    prompts = {"query": "find: ", "document": ""}
    write(folder, describe() | {"prompts": prompts, "default_prompt_name": "query"})
    after = load_bundle(folder)
    assert (after.prompts, after.default_prompt_name) == (prompts, "query")
    assert after.fingerprint == before.fingerprint


def test_a_default_prompt_that_is_not_there(folder: Path) -> None:
    write(folder, describe() | {"prompts": {"query": ""}, "default_prompt_name": "other"})
    assert "has no prompt 'other'" in refusal(folder)


def test_an_unknown_file_or_precision_is_an_error(folder: Path) -> None:
    bundle = load_bundle(folder)
    with pytest.raises(KeyError):
        bundle.path("other.txt")
    with pytest.raises(StartError, match="no int8 graph; choose one of: fp32"):
        bundle.graph("int8")


def test_changed_content_is_found_by_hashing_and_a_changed_size_without(folder: Path) -> None:
    graph = folder / "model.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[::-1])
    assert "model.fp32.onnx has changed" in refusal(folder)
    assert load_bundle(folder, verify=False).dim == 32
    graph.write_bytes(b"cut")
    assert "has 3 bytes where 33 are expected" in refusal(folder, verify=False)
    graph.unlink()
    assert "cannot be read (No such file or directory)" in refusal(folder, verify=False)


def test_no_folder_no_manifest_and_a_file_in_its_place(tmp_path: Path, folder: Path) -> None:
    assert "there is no bundle.json in it" in refusal(tmp_path / "nowhere")
    assert "there is no bundle.json in it" in refusal(folder / "tokenizer.json")
    (folder / MANIFEST).unlink()
    assert "there is no bundle.json in it" in refusal(folder)
    (folder / MANIFEST).mkdir()
    assert "bundle.json cannot be read (Is a directory)" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "$.format"),
        ({"dim": 0}, "$.dim"),
        ({"dim": "384"}, "$.dim"),
        ({"pooling": "max"}, "$.pooling"),
        ({"layouts": {"fp32": "wide"}}, "$.layouts"),
        ({"losses": {"fp32": {"texts": 0}}}, "$.losses"),
        ({"colour": "blue"}, "unknown field `colour`"),
        ({"precisions": {}}, "names no graph"),
        ({"precisions": {"fp32": "other.onnx"}}, "no sha256 for other.onnx"),
        ({"precisions": {"fp32": "../model.onnx"}}, "$.precisions"),
        ({"files": {}}, "no sha256 for tokenizer.json"),
        ({"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "$.files"),
        ({"files": {"tokenizer.json": {"sha256": "short", "bytes": 1}}}, "$.files"),
    ],
)
def test_a_manifest_that_is_not_one(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    assert says in refusal(write(tmp_path / "odd", describe() | change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_manifest_that_is_no_json_object(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert "bundle.json is not valid" in refusal(folder)


def test_the_fingerprint_follows_what_changes_vectors_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    fingerprint = load_bundle(folder).fingerprint
    assert len(bytes.fromhex(fingerprint)) == 32
    parity = {"reference": "other", "texts": 1, "min_cosine": 1.0}
    renamed = write(tmp_path / "b", describe() | {"id": "acme/copy", "revision": "4567def", "parity": parity})
    assert load_bundle(renamed).fingerprint == fingerprint
    changes: list[dict[str, Any]] = [{"max_tokens": 25}, {"pooling": "cls"}, {"normalize": False}, {"dim": 33}]
    for i, change in enumerate(changes):
        assert load_bundle(write(tmp_path / f"c{i}", describe() | change)).fingerprint != fingerprint
    files = describe()["files"]
    files["tokenizer.json"]["sha256"] = "0" * 64
    other = write(tmp_path / "d", describe() | {"files": files})
    assert load_bundle(other, verify=False).fingerprint != fingerprint


def test_precisions_have_layouts_and_losses(tmp_path: Path, folder: Path) -> None:
    old = load_bundle(folder)
    assert (old.layout("fp32"), old.losses) == ("dense", {})
    loss = {"method": "by hand", "texts": 3, "min_cosine": 0.98, "mean_cosine": 0.99, "rank_correlation": 0.97}
    data = b"another graph"
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    extended = describe() | {
        "files": describe()["files"] | {"model.fp16.packed.onnx": record},
        "precisions": {"fp32": "model.fp32.onnx", "fp16": "model.fp16.packed.onnx"},
        "layouts": {"fp32": "mixed", "fp16": "packed"},
        "losses": {"fp16": loss},
    }
    write(tmp_path / "both", extended)
    (tmp_path / "both" / "model.fp16.packed.onnx").write_bytes(data)
    both = load_bundle(tmp_path / "both")
    assert (both.layout("fp32"), both.layout("fp16")) == ("mixed", "packed")
    assert both.losses["fp16"].rank_correlation == 0.97
    assert both.fingerprint != old.fingerprint
