"""The folder with a model's own weights, for runners that read them and not a graph."""

from __future__ import annotations

import shutil
from pathlib import Path

from ipc.bundle import MANIFEST, load_bundle
from ipc.settings import DEFAULT_MODEL
from tools.fetch import Say, fetch, is_model_folder


def ensure_weights(model: str, data_dir: Path, *, say: Say = print) -> Path:
    """The folder of `model`, which is taken as EMBEDLANE_MODEL is; what a bundle was made of is fetched again.

    Raises StartError if there is no such model, or it cannot be had.
    """
    if is_model_folder(model):
        return Path(model).absolute()
    source = _source(Path(model)) if (Path(model) / MANIFEST).is_file() else model
    place = data_dir / "weights" / source.replace("/", "--")
    if is_model_folder(str(place)):
        return place
    if source != DEFAULT_MODEL:
        # The hub's own cache keeps it.
        return fetch(source, place, say).folder
    scratch = place.with_name(f".{place.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        fetch(source, scratch, say).folder.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place


def _source(folder: Path) -> str:
    """Where a bundle's weights came from: a Hugging Face id, with the commit where it is known."""
    bundle = load_bundle(folder, verify=False)
    return bundle.id if bundle.revision.startswith("sha256:") else f"{bundle.id}@{bundle.revision}"
