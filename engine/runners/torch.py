"""The model's own checkpoint in PyTorch, through transformers: what ONNX Runtime is measured against.

Needs the extra `torch`, and the folder with the weights that the bundle was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ipc.bundle import Bundle, hash_file
from ipc.errors import StartError
from ipc.messages import Ids
from ipc.settings import Settings, cores
from ipc.slab import Rows

WEIGHTS = "model.safetensors"


class TorchRunner:
    """`AutoModel` in inference mode, then the bundle's pooling and normalization, with PyTorch's own threads.

    Raises StartError where PyTorch, the device, the precision or the weights are not to be had.
    """

    def __init__(self, settings: Settings, bundle: Bundle) -> None:
        self._torch, transformers = _import_libraries()
        self.device = _choose_device(settings.device, self._torch)
        self.precision = _choose_precision(settings.precision, self.device)
        self.lanes = settings.lanes or 1
        self._pool = _pooling(bundle)
        self._normalize = bundle.normalize
        self._max_tokens = bundle.max_tokens
        folder = _checkpoint(settings.checkpoint, bundle)
        self._torch.set_num_threads(max(1, cores() // self.lanes))
        transformers.logging.set_verbosity_error()
        try:
            # Nothing is fetched, nothing is unpickled, and no code of the model's is run.
            model = transformers.AutoModel.from_pretrained(
                folder, dtype=self._torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
            dtype = self._torch.float16 if self.precision == "fp16" else self._torch.float32
            self._model = model.to(device=self.device, dtype=dtype).eval()
        except Exception as error:
            raise StartError(f"PyTorch cannot load {folder} on {self.device}: {error}") from error

    def warm_up(self, rows: Rows) -> None:
        """The longest text, then a full batch."""
        self.run([np.zeros(self._max_tokens, np.int32)], rows[:1])
        self.run([np.zeros(min(16, self._max_tokens), np.int32)] * len(rows), rows)

    def run(self, texts: Sequence[Ids], rows: Rows) -> None:
        """All texts in one forward pass. Of equal length, so that no token is padding and the mask is all ones."""
        torch = self._torch
        with torch.inference_mode():
            ids = torch.from_numpy(np.stack(texts).astype(np.int64)).to(self.device)
            hidden = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            # The sums of pooling and length in float32, whatever the model computes in.
            vectors = self._pool(hidden.float())
            if self._normalize:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            torch.from_numpy(rows).copy_(vectors)


def _import_libraries() -> tuple[Any, Any]:
    try:
        return import_module("torch"), import_module("transformers")
    except ImportError as error:
        raise StartError(f"EMBEDLANE_RUNNER=torch needs the extra `torch`, which is not installed ({error}).") from None


def _choose_device(wanted: str, torch: Any) -> str:
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise StartError("EMBEDLANE_DEVICE=cuda, but this PyTorch sees no CUDA device: set EMBEDLANE_DEVICE=cpu.")
    if wanted == "auto":
        return "cuda" if has_cuda else "cpu"
    return wanted


def _choose_precision(wanted: str, device: str) -> str:
    if wanted == "int8" or (wanted == "fp16" and device != "cuda"):
        raise StartError(f"The runner torch has no {wanted} on {device}: set EMBEDLANE_PRECISION=fp32.")
    return "fp16" if wanted == "fp16" else "fp32"


def _pooling(bundle: Bundle) -> Any:
    """From the last layer's states [n, length, dim] to vectors [n, dim]."""
    poolings = {"mean": lambda hidden: hidden.mean(dim=1), "cls": lambda hidden: hidden[:, 0]}
    if bundle.pooling not in poolings:
        raise StartError(f"The runner torch has no {bundle.pooling} pooling: set EMBEDLANE_RUNNER=onnx.")
    return poolings[bundle.pooling]


def _checkpoint(given: str, bundle: Bundle) -> Path:
    """The folder with the weights, which must be those that the bundle was made of, where it says which these were."""
    folder = Path(given)
    if not given or not (folder / WEIGHTS).is_file():
        raise StartError(
            f"There is no {WEIGHTS} in {given or 'EMBEDLANE_CHECKPOINT'!r}: set EMBEDLANE_CHECKPOINT to the folder of "
            f"{bundle.id}, or start with `make serve`."
        )
    kind, _, digest = bundle.revision.partition(":")
    if kind == "sha256" and digest != hash_file(folder / WEIGHTS):
        raise StartError(f"{folder / WEIGHTS} is not what {bundle.folder} was made of: the two must be one model.")
    return folder
