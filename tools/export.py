"""Third stage of prepare for architectures that are not built here: transformers' model, exported by PyTorch.

Needs the extra `torch`. What is exported is the encoder alone, from ids to states; it is then wrapped like a user's own
ONNX file (tools.own_graph), so pooling and normalization are the same operators everywhere. The export has no mask, as
all texts of a batch have the same length. docs/decisions/0012 tells why nothing optimizes the graph further.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ipc.errors import StartError
from tools.checkpoint import Usage, read_config, read_usage
from tools.families import CONFIGS
from tools.fetch import Say
from tools.foreign import FOREIGN_MAX_TOKENS, Foreign, first_line
from tools.graphs.nodes import OPSET
from tools.own_graph import MOST_BYTES, wrap
from tools.reference import Array, pool

STATES = "last_hidden_state"
# Below are special ones in nearly all vocabularies.
FIRST_ID = 5
INSTALL = "pip install torch transformers"


def export_graph(folder: Path, say: Say, *, trust_code: bool) -> Foreign:
    """Export the model in `folder`. Raises StartError, one clear sentence, for one that cannot be served.

    With `trust_code`, Python files that came with the model are run; else a model that needs them is refused.
    """
    config = read_config(folder)
    architecture = str(config.get("model_type"))
    torch, transformers = _import_libraries(folder, architecture)
    say(f"exporting  {architecture} with transformers {transformers.__version__}, PyTorch {torch.__version__}")
    model = _load(transformers, folder, architecture, config, trust_code)
    _check_encoder(torch, model, architecture)
    usage = read_usage(folder, _positions(model))
    vocab_size = int(model.config.vocab_size)
    # Any ids will do. More than one text, so that no axis is taken for a constant; as long as what is compared, for a
    # model with a window takes another path through its code where the whole text is in the window.
    length = min(usage.max_tokens, FOREIGN_MAX_TOKENS)
    traced = (FIRST_ID + np.arange(2 * length).reshape(2, length) % (vocab_size - FIRST_ID)).tolist()
    dim = int(_states(torch, model, traced).shape[-1])
    return Foreign(
        graph=wrap(_export(torch, model, architecture, traced), STATES, dim, usage),
        **vars(usage),
        architecture=architecture,
        dim=dim,
        vocab_size=vocab_size,
        reference=f"transformers {transformers.__version__} (torch {torch.__version__})",
        embed=lambda ids: _embed(torch, model, usage, ids),
    )


def _import_libraries(folder: Path, architecture: str) -> tuple[Any, Any]:
    try:
        import torch  # noqa: PLC0415
        import transformers  # noqa: PLC0415
    except ImportError:
        raise StartError(
            f"{folder} is of the architecture {architecture!r}, which is not built here and needs PyTorch to be "
            f"exported: run `{INSTALL}` (the extra `torch`), or give an ONNX file of it. Without PyTorch: "
            f"{', '.join(sorted(CONFIGS))}."
        ) from None
    return torch, transformers


def _load(transformers: Any, folder: Path, architecture: str, config: dict[str, Any], trust_code: bool) -> Any:
    """transformers' model of the checkpoint in float32, for inference; every tensor must come from the file."""
    if architecture not in transformers.CONFIG_MAPPING and not trust_code:
        if config.get("auto_map"):
            raise StartError(
                f"{folder} needs Python code that comes with it, which --trust-remote-code runs on this machine: "
                "only if you trust its author."
            )
        raise StartError(f"transformers {transformers.__version__} does not know the architecture {architecture!r}.")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, told = transformers.AutoModel.from_pretrained(
            folder,
            dtype="float32",
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=trust_code,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a model's code may raise
        raise StartError(f"transformers cannot load {folder} ({first_line(error)}).") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    # transformers would make up what the file lacks. Poolers are made up for many models, and not used here.
    missing = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise StartError(f"{folder} lacks tensors of its architecture: {len(missing)} missing {missing[:3]}.")
    return model.eval()


def _check_encoder(torch: Any, model: Any, architecture: str) -> None:
    """Refuse what is no encoder of text that fits into one file."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise StartError(
            f"{architecture!r} is an encoder with a decoder, which is not supported: give an ONNX file of its encoder."
        )
    if sum(tensor.numel() * 4 for tensor in model.state_dict().values()) > MOST_BYTES:
        raise StartError(f"The model {architecture!r} has more than 2 GB of weights, which one ONNX file cannot hold.")
    try:
        ids = list(range(FIRST_ID, FIRST_ID + 5))
        first, other = (_states(torch, model, [[*ids[:3], last]])[0, 0] for last in ids[3:])
    except Exception as error:  # whatever a model's code may raise
        raise StartError(f"{architecture!r} does not run on token ids alone ({first_line(error)}).") from None
    # Not bit by bit: kernels may add up in another order.
    if np.allclose(first, other, rtol=0, atol=1e-6 * float(np.abs(first).max())):
        raise StartError(
            f"{architecture!r} is a causal model, in which a token does not see those after it; only encoders are "
            "exported."
        )


def _positions(model: Any) -> int | None:
    """The most tokens of a text, if the model says. Where padding has a position, counting begins after it."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    rows, padding = getattr(table, "num_embeddings", None), getattr(table, "padding_idx", None)
    if rows is not None:
        return int(rows) - (0 if padding is None else padding + 1)
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _states(torch: Any, model: Any, texts: Any) -> Array:
    """The last hidden states [texts, length, dim], with a mask as transformers' tokenizers make it."""
    ids = torch.tensor(texts)
    with torch.no_grad():
        states: Array = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0].numpy().astype(np.float64)
    return states


def _embed(torch: Any, model: Any, usage: Usage, ids: list[int]) -> Array:
    return pool(_states(torch, model, [ids])[0], usage)


def _export(torch: Any, model: Any, architecture: str, traced: list[list[int]]) -> onnx.ModelProto:
    class Encoder(torch.nn.Module):  # type: ignore[misc]
        """Only what the exporter is to see: ids in, states out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> Any:
            return self.model(input_ids=input_ids)[0]

    file = io.BytesIO()
    axes = {0: "batch", 1: "length"}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Of values that tracing takes for constants, and of the exporter's age. The vectors of texts of many
            # lengths are compared afterwards, so a constant that is none cannot pass.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Encoder().eval(),
                (torch.tensor(traced, dtype=torch.int32),),
                file,
                # The newer exporter (dynamo) gives graphs whose operators ONNX Runtime fuses less.
                dynamo=False,
                opset_version=OPSET,
                input_names=["input_ids"],
                output_names=[STATES],
                dynamic_axes={"input_ids": axes, STATES: axes},
            )
    except Exception as error:  # whatever the exporter or a model's code may raise
        raise StartError(f"{architecture!r} cannot be exported to ONNX ({first_line(error)}).") from None
    return onnx.load_from_string(file.getvalue())
