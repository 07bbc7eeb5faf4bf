"""Second stage of prepare: read a model folder (Hugging Face and sentence-transformers files) into plain values.

The tensors' names and shapes are settled here, once: graph and reference both take what `Checkpoint.weights` says.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from ipc.bundle import TOKENIZER, Pooling
from ipc.errors import StartError
from tools.families import CONFIGS, BertConfig
from tools.fetch import WEIGHTS

Weights = Mapping[str, NDArray[np.float32]]

NO_LIMIT = 2**20


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How a model of any architecture is used. `notes` are assumptions that the person should hear of."""

    tokenizer: bytes
    pooling: Pooling
    normalize: bool
    max_tokens: int
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Usage):
    """Everything that decides the vectors of a model whose graph is built here."""

    config: BertConfig
    weights: Weights

    @property
    def architecture(self) -> str:
        """The architecture's name, as config.json has it."""
        return self.config.model_type

    @property
    def dim(self) -> int:
        """How many numbers a vector has."""
        return self.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """How many token ids there are."""
        return self.config.vocab_size


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the model in `folder`. Raises StartError, one clear sentence, for what cannot be served exactly."""
    config = _read_config(folder)
    usage = read_usage(folder, config.max_tokens)
    return Checkpoint(config=config, weights=_read_weights(folder / WEIGHTS, config), **vars(usage))


def read_usage(folder: Path, positions: int | None, *, has_own_pooling: bool = False) -> Usage:
    """Read all but the network itself, which takes at most `positions` tokens (None: it does not say).

    With `has_own_pooling` the network gives vectors of texts, and nothing is to be done to them. Raises StartError, one
    clear sentence, for what cannot be served exactly.
    """
    pooling, normalize, notes = ("own", False, ()) if has_own_pooling else _read_modules(folder)
    prompts, default = _read_prompts(folder)
    return Usage(
        tokenizer=_read_tokenizer(folder),
        pooling=pooling,
        normalize=normalize,
        max_tokens=_max_tokens(folder, positions),
        prompts=prompts,
        default_prompt_name=default,
        notes=notes,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it stands; empty if there is none."""
    return _read_object(folder / "config.json")


def _read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no such file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read as JSON ({error}).") from None


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file."""
    content = _read_json(path)
    if content is not None and not isinstance(content, dict):
        raise StartError(f"{path} is not a JSON object.")
    return content or {}


def _read_config(folder: Path) -> BertConfig:
    path = folder / "config.json"
    content = read_config(folder)
    if not content:
        raise StartError(f"{folder} has no config.json: give the folder of a whole model.")
    architecture = content.get("model_type")
    if architecture not in CONFIGS:
        raise StartError(
            f"{folder} is of the architecture {architecture!r}, which is not supported; "
            f"supported: {', '.join(sorted(CONFIGS))}."
        )
    try:
        config = msgspec.convert(content, CONFIGS[architecture])
        config.check()
    except (msgspec.ValidationError, ValueError) as error:
        raise StartError(f"{path} cannot be served: {error}.") from None
    return config


def _read_modules(folder: Path) -> tuple[Pooling, bool, tuple[str, ...]]:
    """Pooling, normalization and notes, from sentence-transformers' list of modules."""
    modules = _read_json(folder / "modules.json")
    if modules is None:
        return "mean", True, ("no modules.json: mean pooling and normalization are assumed",)
    try:
        kinds = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except (TypeError, KeyError):
        raise StartError(f"{folder / 'modules.json'} is not a list of modules with type and path.") from None
    names = [kind for kind, _ in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise StartError(
            f"{folder} is built of the modules {' → '.join(names) or '(none)'}; supported: "
            "Transformer → Pooling, and Transformer → Pooling → Normalize."
        )
    pooling = _read_object(folder / kinds[1][1] / "config.json")
    if pooling.get("include_prompt") is False and any(_read_prompts(folder)[0].values()):
        raise StartError(f"{folder} leaves its prompts out of the pooling (include_prompt), which is not supported.")
    return _read_pooling(folder / kinds[1][1] / "config.json"), "Normalize" in names, ()


def _read_pooling(path: Path) -> Pooling:
    """The pooling mode: one "pooling_mode" in files of sentence-transformers 6, one boolean per mode before."""
    content = _read_object(path)
    prefix = "pooling_mode_"
    old = [key.removeprefix(prefix) for key, on in content.items() if key.startswith(prefix) and on is True]
    mode = content.get("pooling_mode", "+".join(old))
    if mode in ("mean", "mean_tokens"):
        return "mean"
    if mode in ("cls", "cls_token"):
        return "cls"
    if mode == "lasttoken":
        return "last"
    raise StartError(
        f"{path} asks for the pooling {mode or '(none)'!r}, which is not supported; supported: mean, cls, lasttoken."
    )


def _max_tokens(folder: Path, positions: int | None) -> int:
    """The most tokens a text may have, special ones counted: the smallest limit that the files name."""
    named = _read_object(folder / "sentence_bert_config.json").get("max_seq_length")
    if named is None:
        named = _read_object(folder / "tokenizer_config.json").get("model_max_length")
    # Tokenizers without a limit store 10^30.
    limits = [limit for limit in (named, positions) if isinstance(limit, int) and limit < NO_LIMIT]
    if not limits:
        raise StartError(
            f"{folder} does not say how many tokens a text may have: "
            'write {"max_seq_length": N} into its sentence_bert_config.json.'
        )
    if min(limits) < 3:
        raise StartError(f"{folder} allows {min(limits)} tokens a text, too few for one word.")
    return min(limits)


def _read_tokenizer(folder: Path) -> bytes:
    """tokenizer.json without stored truncation and padding, which the front end decides; all else is kept."""
    content = _read_object(folder / TOKENIZER)
    if not content:
        raise StartError(f"{folder} has no {TOKENIZER}: save it once with a fast tokenizer of transformers.")
    content["truncation"] = None
    content["padding"] = None
    lowercases = (content.get("normalizer") or {}).get("lowercase") is True
    if _read_object(folder / "sentence_bert_config.json").get("do_lower_case") is True and not lowercases:
        raise StartError(f"{folder} lowercases outside its tokenizer (do_lower_case), which is not supported.")
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _read_prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """The prompts by name, and the name of the one that is put before every text; most models have neither."""
    path = folder / "config_sentence_transformers.json"
    content = _read_object(path)
    prompts, default = content.get("prompts") or {}, content.get("default_prompt_name") or None
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise StartError(f"{path} has prompts that are not texts by name.")
    if default is not None and default not in prompts:
        raise StartError(f"{path} names the default prompt {default!r}, which is not among its prompts.")
    return prompts, default


def _read_weights(path: Path, config: BertConfig) -> Weights:
    """The tensors that the architecture needs, as float32, under its own names and with the shapes checked."""
    try:
        stored = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise StartError(f"{path} cannot be read ({error}).") from None
    found = {config.canonical(name): (name, entry) for name, entry in stored}
    shapes = config.tensor_shapes()
    missing = sorted(shapes.keys() - found.keys())
    unexpected = sorted(name for name in found.keys() - shapes.keys() if not config.ignores(name))
    if missing or unexpected:
        raise StartError(
            f"{path} does not hold the tensors of its config.json: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}."
        )
    weights = {}
    for name, shape in shapes.items():
        weights[name] = _to_float32(path, *found[name])
        if weights[name].shape != shape:
            raise StartError(f"{path}: {name} has the shape {weights[name].shape}, config.json says {shape}.")
        if not np.isfinite(weights[name]).all():
            raise StartError(f"{path}: {name} holds values that are not finite.")
    return weights


def _to_float32(path: Path, name: str, entry: dict[str, Any]) -> NDArray[np.float32]:
    data, dtype = entry["data"], entry["dtype"]
    if dtype == "BF16":  # NumPy has no such type: bfloat16 is the upper half of a float32
        flat = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    elif dtype in ("F16", "F32"):
        flat = np.frombuffer(data, "<f2" if dtype == "F16" else "<f4")
    else:
        raise StartError(f"{path}: {name} is stored as {dtype}; supported: F32, F16, BF16.")
    return flat.reshape(entry["shape"]).astype(np.float32, copy=False)
