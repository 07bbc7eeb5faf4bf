"""Another model of the default's size and cost, whose vectors and token ids are others: to swap with."""

from __future__ import annotations

import json
from pathlib import Path

from ipc.bundle import TOKENIZER, load_bundle
from perf.gpu.parts import MINILM, Shape, write_checkpoint
from tools.prepare import ensure_bundle


def other_bundle(like: Path, folder: Path, shape: Shape = MINILM) -> Path:
    """Its bundle, made below `folder` from random weights and the tokenizer of the bundle `like`, turned around."""
    tokenizer = folder / "tokenizer.json"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.write_text(json.dumps(turned(json.loads(load_bundle(like, verify=False).path(TOKENIZER).read_bytes()))))
    model = write_checkpoint(folder / "other-model", shape, tokenizer)
    return ensure_bundle(str(model), folder / "data")


def turned(tokenizer: dict[str, object]) -> dict[str, object]:
    """A WordPiece tokenizer with the ids of all but its special tokens in reverse order."""
    model = tokenizer["model"]
    assert isinstance(model, dict), "the default model's tokenizer is a WordPiece one"
    vocabulary: dict[str, int] = model["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"]}  # type: ignore[attr-defined]
    ids = sorted(number for number in vocabulary.values() if number not in special)
    place = dict(zip(ids, reversed(ids), strict=True))
    model["vocab"] = {token: place.get(number, number) for token, number in vocabulary.items()}
    return tokenizer
