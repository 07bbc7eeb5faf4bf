"""tools.prepare as a person uses it: what it makes, what it refuses, and what an interruption leaves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ipc.bundle import MANIFEST, Bundle, Precision, load_bundle
from ipc.errors import StartError
from tools import prepare, verify
from tools.checkpoint import Checkpoint
from tools.graphs import encoder

ROOT = Path(__file__).resolve().parent.parent.parent
MakeModel = Callable[..., Path]


def build(source: Path | str, target: Path, *, force: bool = False) -> tuple[Bundle, list[str]]:
    lines: list[str] = []
    return prepare.prepare(str(source), target, force=force, say=lines.append), lines


def leftovers(target: Path) -> list[str]:
    """What prepare works with beside a bundle's place, all hidden, but for the lock, which stays."""
    return [path.name for path in target.parent.glob(".*") if path.suffix != ".lock"]


def command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.prepare", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_becomes_a_bundle(make_model: MakeModel, tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "tiny"
    bundle, lines = build(make_model(), target)
    assert bundle == load_bundle(target)
    assert (bundle.id, bundle.architecture, bundle.dim, bundle.max_tokens) == ("tiny", "bert", 32, 24)
    assert bundle.revision.startswith("sha256:")
    assert bundle.parity.reference == "numpy float64"
    assert bundle.parity.min_cosine > 0.9999999
    assert [line.split()[0] for line in lines] == ["building", "verifying", "done"]
    assert sorted(p.name for p in target.iterdir()) == ["bundle.json", "model.fp32.onnx", "tokenizer.json"]
    assert leftovers(target) == []


def test_the_tokenizer_loses_stored_truncation_and_padding_only(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    bundle, _ = build(folder, tmp_path / "out")
    before = json.loads((folder / "tokenizer.json").read_bytes())
    after = json.loads(bundle.path("tokenizer.json").read_bytes())
    assert before["truncation"]
    assert before["padding"]
    assert after == before | {"truncation": None, "padding": None}
    assert len(Tokenizer.from_file(str(bundle.path("tokenizer.json"))).encode("z " * 50).ids) == 52


def test_a_second_run_changes_nothing_and_force_makes_it_again(make_model: MakeModel, tmp_path: Path) -> None:
    folder, target = make_model(), tmp_path / "out"
    build(folder, target)
    inode = target.stat().st_ino
    _, lines = build(folder, target)
    assert [line.split()[0] for line in lines] == ["ready"]
    assert target.stat().st_ino == inode
    _, lines = build(folder, target, force=True)
    assert lines[-1].startswith("done")
    assert target.stat().st_ino != inode
    assert leftovers(target) == []


def test_a_damaged_bundle_is_made_again(make_model: MakeModel, tmp_path: Path) -> None:
    folder, target = make_model(), tmp_path / "out"
    whole, _ = build(folder, target)
    data = bytearray(whole.graph("fp32").read_bytes())
    data[-1] ^= 1
    whole.graph("fp32").write_bytes(data)
    again, lines = build(folder, target)
    assert lines[-1].startswith("done")
    assert again.fingerprint == whole.fingerprint


def test_another_models_bundle_is_not_mistaken_for_ours(make_model: MakeModel, tmp_path: Path) -> None:
    target = tmp_path / "out"
    first, _ = build(make_model(folder="one"), target)
    second, _ = build(make_model(folder="two", hidden_size=16, num_attention_heads=2), target)
    assert (first.dim, second.dim) == (32, 16)


def test_what_is_not_a_bundle_is_never_replaced(make_model: MakeModel, tmp_path: Path) -> None:
    mine = tmp_path / "thesis" / "chapter.txt"
    mine.parent.mkdir()
    mine.write_text("years of work", encoding="utf-8")
    for target in (mine.parent, mine):
        with pytest.raises(StartError, match="exists and is not a model bundle"):
            build(make_model(), target, force=True)
    assert mine.read_text(encoding="utf-8") == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis", "tiny"]


BREAKABLE = [
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
    # Not the bias of the keys: it moves all scores of a query alike, and so changes no vector.
    *(f"encoder.layer.1.attention.self.{part}" for part in ("query.weight", "key.weight", "value.weight")),
    *(f"encoder.layer.1.attention.self.{part}" for part in ("query.bias", "value.bias")),
    *(f"encoder.layer.1.attention.output.{part}" for part in ("dense.weight", "dense.bias", "LayerNorm.bias")),
    *(f"encoder.layer.0.intermediate.dense.{part}" for part in ("weight", "bias")),
    *(f"encoder.layer.0.output.{part}" for part in ("dense.weight", "dense.bias", "LayerNorm.weight")),
]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("bert", name) for name in BREAKABLE),
        ("mpnet", "encoder.relative_attention_bias.weight"),
        *((kind, "embeddings.position_embeddings.weight") for kind in ("roberta", "distilbert", "mpnet")),
    ],
)
def test_one_wrong_tensor_in_the_graph_fails_verification(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    target = tmp_path / "bundles" / "out"

    right = encoder.build_graph

    def wrong(checkpoint: Checkpoint, precision: Precision) -> object:
        flipped = {**checkpoint.weights, name: checkpoint.weights[name][..., ::-1]}
        return right(replace(checkpoint, weights=flipped), precision)

    monkeypatch.setattr(encoder, "build_graph", wrong)
    with pytest.raises(StartError, match=r"Verification failed: .* no bundle was written"):
        build(make_model(model_type=kind), target)
    assert not target.exists()
    assert leftovers(target) == []


def test_a_wrong_length_fails_verification_too(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = encoder.build_graph

    def longer(checkpoint: Checkpoint, precision: Precision) -> object:
        last = "encoder.layer.1.output.LayerNorm."
        scaled = {last + part: checkpoint.weights[last + part] * 2 for part in ("weight", "bias")}
        return right(replace(checkpoint, weights={**checkpoint.weights, **scaled}), precision)

    monkeypatch.setattr(encoder, "build_graph", longer)
    with pytest.raises(StartError, match="Verification failed"):
        build(make_model(normalize=False), tmp_path / "out")


def test_an_exception_leaves_nothing_and_keeps_the_old_bundle(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = make_model(), tmp_path / "bundles" / "out"
    old, _ = build(folder, target)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verify, "verify", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(folder, target, force=True)
        assert prepare.main([str(folder), "--out", str(target), "--force"]) == 130
    assert load_bundle(target) == old
    assert leftovers(target) == []


def test_kill_9_leaves_no_bundle_and_the_next_run_cleans_up(make_model: MakeModel, tmp_path: Path) -> None:
    folder, target = make_model(), tmp_path / "bundles" / "out"
    die = "import os, tools.verify as v; v.verify = lambda *_: os.kill(os.getpid(), 9); import tools.prepare as p; "
    died = subprocess.run(
        [sys.executable, "-c", f"{die} p.main([{str(folder)!r}, '--out', {str(target)!r}])"], cwd=ROOT, check=False
    )
    assert died.returncode == -9
    assert not target.exists()
    assert leftovers(target) == [".out.partial"]
    build(folder, target)
    assert load_bundle(target).dim == 32
    assert leftovers(target) == []


def test_a_death_between_the_two_renames_is_repaired(make_model: MakeModel, tmp_path: Path) -> None:
    folder, target = make_model(), tmp_path / "bundles" / "out"
    build(folder, target)
    target.rename(target.parent / ".out.old")
    build(folder, target)
    assert load_bundle(target).dim == 32
    assert leftovers(target) == []


def test_two_at_once_make_one_bundle(make_model: MakeModel, tmp_path: Path) -> None:
    folder, target = make_model(), tmp_path / "bundles" / "out"
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tools.prepare", str(folder), "--out", str(target)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(("ready " in text, "done " in text) for text in said) == [(False, True), (True, False)]
    assert load_bundle(target).dim == 32
    assert leftovers(target) == []


def test_the_server_finds_its_bundle(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    lines: list[str] = []
    made = prepare.ensure_bundle(str(folder), tmp_path / "data", say=lines.append)
    assert made.parent == tmp_path / "data" / "bundles"
    assert lines
    lines.clear()
    assert prepare.ensure_bundle(str(folder), tmp_path / "data", say=lines.append) == made
    assert prepare.ensure_bundle(str(made), tmp_path / "elsewhere", say=lines.append) == made
    assert lines == []


def test_an_edited_model_folder_gets_a_bundle_of_its_own(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    first = load_bundle(prepare.ensure_bundle(str(folder), tmp_path))
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}', encoding="utf-8")
    second = load_bundle(prepare.ensure_bundle(str(folder), tmp_path))
    assert (first.pooling, second.pooling) == ("mean", "cls")
    assert first.folder != second.folder


def test_a_bundle_of_an_older_version_is_made_again(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    lines: list[str] = []
    made = load_bundle(prepare.ensure_bundle(str(folder), tmp_path))
    manifest = made.folder / MANIFEST
    new = manifest.read_bytes()
    old = json.dumps(
        {name: value for name, value in json.loads(new).items() if name not in ("layouts", "builder")}
    ).encode()
    manifest.write_bytes(old)
    assert load_bundle(prepare.ensure_bundle(str(folder), tmp_path, say=lines.append)).layouts == {"fp32": "mixed"}
    assert "made again" in lines[0]
    # What cannot be made again goes on as it is.
    lines.clear()
    manifest.write_bytes(old)
    weights = folder / "model.safetensors"
    status = weights.stat()
    weights.write_bytes(bytes(status.st_size))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load_bundle(prepare.ensure_bundle(str(folder), tmp_path, say=lines.append)).layouts == {}
    assert "stays as it is" in lines[-1]


def test_finding_a_bundle_imports_nothing_heavy(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model()
    prepare.ensure_bundle(str(folder), tmp_path)
    script = (
        "import sys; from pathlib import Path; from tools.prepare import ensure_bundle; "
        f"ensure_bundle({str(folder)!r}, Path({str(tmp_path)!r})); "
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'huggingface_hub', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["nowhere/at/all", "./nowhere", "/nowhere", "justaname", "two words/model", ""])
def test_a_source_that_is_nothing(name: str, tmp_path: Path) -> None:
    done = command(name, "--out", tmp_path / "out")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "neither a folder with model.safetensors or model.onnx, nor an ONNX file" in done.stderr


def test_an_architecture_that_needs_pytorch(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # so that importing it fails, wherever this runs
    with pytest.raises(StartError, match=r"'electra', .* `pip install torch transformers` \(the extra `torch`\)"):
        build(make_model(model_type="electra"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_stored_vectors_the_person_is_told(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "STORED", tmp_path / "no-checkout")
    bundle, lines = build(make_model(), tmp_path / "out")
    assert any("no comparison with sentence-transformers" in line for line in lines)
    assert bundle.parity.reference == "numpy float64"


def test_the_default_model_matches_sentence_transformers(bundle: Bundle) -> None:
    meta = json.loads((verify.STORED / "meta.json").read_bytes())
    assert bundle.revision == "sha256:" + meta["weights_sha256"]
    assert bundle.parity.reference == f"sentence-transformers {meta['made_with']['sentence-transformers']}"
    assert bundle.parity.texts >= 60
    assert bundle.parity.min_cosine >= verify.REQUIRED_COSINE
    assert (bundle.dim, bundle.max_tokens, bundle.pooling, bundle.normalize) == (384, 256, "mean", True)
