"""The model bundle: the folder that tools.prepare writes and that engine and front ends read.

    <bundle>/
        bundle.json              the manifest below: what the model is, and the sha256 of every other file
        tokenizer.json           for the `tokenizers` library, with no truncation or padding stored in it
        model.fp32.onnx          token ids → float32 embeddings [texts, dim]; its inputs are its layout's
        model.int8.onnx          the same with int8 weights, if asked for
        model.fp16.packed.onnx   for CUDA, if asked for: texts without padding, see tools/graphs/packed.py

A bundle appears in one rename and is never changed afterwards: a folder with a bundle.json is whole.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ipc.errors import StartError

MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"

# "own": a user's ONNX file that gives the vectors of texts itself.
Pooling = Literal["mean", "cls", "last", "own"]
Precision = Literal["fp32", "int8", "fp16"]
Layout = Literal["dense", "mixed", "packed"]
Count = Annotated[int, msgspec.Meta(ge=1)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
# A bundle may come from a stranger: no name in it may lead out of its folder.
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


# Of each precision: how a graph that is built here takes texts (a module of tools/graphs has the same name), and the
# name of its file. Graphs that others made are dense.
LAYOUTS: dict[Precision, Layout] = {"fp32": "mixed", "int8": "dense", "fp16": "packed"}
GRAPHS: dict[Precision, FileName] = {
    "fp32": "model.fp32.onnx",
    "int8": "model.int8.onnx",
    "fp16": "model.fp16.packed.onnx",
}
# Of the mixed layout: how many groups of texts attention has, and what the widths of their rows are multiples of.
MIXED_GROUPS = 3
MIXED_STEP = 8


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle as it was when the bundle was made."""

    sha256: Sha256
    bytes: Count


class Parity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How near the graph's vectors came to the reference's, measured when the bundle was made.

    `min_cosine` is the lowest over `texts` texts; `reference` names what they were compared with.
    """

    reference: str
    texts: Count
    min_cosine: float


class Loss(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a precision costs against fp32, measured over `texts` texts when the bundle was made.

    `min_cosine` and `mean_cosine` are between a text's two vectors; `rank_correlation` is Spearman's, of the
    similarities of all pairs of texts. `method` tells how the vectors were computed.
    """

    method: str
    texts: Count
    min_cosine: float
    mean_cosine: float
    rank_correlation: float


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of bundle.json.

    `revision` is a hub commit, or "sha256:" and the hash of the weights. `max_tokens` counts the special tokens.
    `normalize` tells whether vectors have length 1; pooling and normalization are inside the graph.
    `builder` counts the changes of how graphs are built; one that is made by an older one is right, and slower.
    `precisions` maps a precision ("fp32") to the name of its graph, `layouts` to how that takes texts (dense, if it is
    not named) and `losses` to what it costs; `parity` is fp32's. `prompts` are put before a text by their names, and
    the one that `default_prompt_name` names where the client names none. Bundles made before there were any lack these.
    """

    format: Literal[1] = 1
    id: str
    revision: str
    architecture: str
    dim: Count
    max_tokens: Count
    vocab_size: Count
    pooling: Pooling
    normalize: bool
    files: dict[FileName, FileRecord]
    precisions: dict[str, FileName]
    parity: Parity
    layouts: dict[str, Layout] = {}
    losses: dict[str, Loss] = {}
    builder: int = 0
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None


class Bundle(Manifest, frozen=True, kw_only=True):
    """A bundle on disk: the manifest, and where its files are."""

    folder: Path

    def path(self, name: str) -> Path:
        """Where the file `name` of this bundle is. Raises KeyError for a name that the manifest lacks."""
        if name not in self.files:
            raise KeyError(name)
        return self.folder / name

    def graph(self, precision: str) -> Path:
        """Where the ONNX graph of `precision` is. Raises StartError if the bundle has none."""
        if precision not in self.precisions:
            raise StartError(
                f"The bundle {self.folder} has no {precision} graph; choose one of: "
                f"{', '.join(sorted(self.precisions))}, or add it with `python -m tools.prepare MODEL --precision`."
            )
        return self.path(self.precisions[precision])

    def layout(self, precision: str) -> Layout:
        """How the graph of `precision` takes its texts."""
        return self.layouts.get(precision, "dense")

    @property
    def digest(self) -> str:
        """Hex sha256 over the whole manifest: of two bundles that share it, one is a copy of the other."""
        manifest = {name: getattr(self, name) for name in Manifest.__struct_fields__}
        return hashlib.sha256(msgspec.json.encode(manifest, order="deterministic")).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over everything that vectors depend on: in one precision, two that share it are interchangeable.

        The id, the revision and what was measured are left out: they name or describe, and change no vector. So are
        prompts: they change which ids a text has, not what vector ids have.
        """
        parts = [f"{name} {record.sha256}" for name, record in sorted(self.files.items())]
        parts += [f"{field} {getattr(self, field)}" for field in _DECIDES_VECTORS]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


_DECIDES_VECTORS = ("format", "architecture", "dim", "max_tokens", "vocab_size", "pooling", "normalize")


def locate_bundle(model: str, data_dir: Path) -> Path:
    """Where the bundle of EMBEDLANE_MODEL is: the folder itself if it is one, else its place among the prepared."""
    if (Path(model) / MANIFEST).is_file():
        return Path(model)
    return data_dir / "bundles" / model.replace("/", "--")


def load_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read and check the bundle in `folder`.

    With `verify`, every file is hashed (about 0.1 s for 90 MB); without, only its size is looked at.
    Raises StartError, with one sentence that names the folder, the fault and the remedy.
    """
    manifest = _read_manifest(folder)
    bundle = Bundle(folder=folder, **msgspec.structs.asdict(manifest))
    for name, record in bundle.files.items():
        _check_file(bundle.path(name), record, verify)
    return bundle


def hash_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError):
        raise _unusable(folder, f"there is no {MANIFEST} in it") from None
    except OSError as error:
        raise _unusable(folder, f"{MANIFEST} cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unusable(folder, f"{MANIFEST} is not valid ({error})") from None
    for name in (TOKENIZER, *manifest.precisions.values()):
        if name not in manifest.files:
            raise _unusable(folder, f"{MANIFEST} has no sha256 for {name}")
    if manifest.default_prompt_name is not None and manifest.default_prompt_name not in manifest.prompts:
        raise _unusable(folder, f"{MANIFEST} has no prompt {manifest.default_prompt_name!r}, its default")
    if not manifest.precisions:
        raise _unusable(folder, f"{MANIFEST} names no graph")
    return manifest


def _check_file(path: Path, record: FileRecord, verify: bool) -> None:
    try:
        size = path.stat().st_size
        if size != record.bytes:
            raise _unusable(path.parent, f"{path.name} has {size} bytes where {record.bytes} are expected")
        if verify and hash_file(path) != record.sha256:
            raise _unusable(path.parent, f"the content of {path.name} has changed (its sha256 differs)")
    except OSError as error:
        raise _unusable(path.parent, f"{path.name} cannot be read ({error.strerror})") from None


def _unusable(folder: Path, fault: str) -> StartError:
    return StartError(
        f"{folder} is not a usable model bundle: {fault}; "
        f"make it with `python -m tools.prepare MODEL --out {folder} --force`."
    )
