"""A second, independent forward pass: plain NumPy in float64, as the papers' formulas read.

Slow and simple on purpose. It shares with the graph only the checkpoint's tensors, so that a mistake in the graph
shows for any model without PyTorch. Sources: Vaswani et al. 2017 (attention), Devlin et al. 2018 (BERT),
Hendrycks & Gimpel 2016 (GELU), Raffel et al. 2020 (relative positions), Reimers & Gurevych 2019 (pooling).
"""

import math

import numpy as np
from numpy.typing import NDArray

from tools.checkpoint import Checkpoint, Usage, Weights
from tools.families import FARTHEST, GELU_ERF, RELATIVE_BIAS, BertConfig

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def embed(checkpoint: Checkpoint, ids: list[int]) -> Array:
    """The vector [dim] of one text, given its token ids with the special ones."""
    return pool(_encode(checkpoint.weights, checkpoint.config, np.array(ids)), checkpoint)


def pool(states: Array, usage: Usage) -> Array:
    """The vector [dim] of a text whose tokens have the last hidden states [length, dim]."""
    pooled = {"mean": states.mean(axis=0), "cls": states[0], "last": states[-1]}
    vector: Array = pooled[usage.pooling]
    return vector / max(math.sqrt(vector @ vector), 1e-12) if usage.normalize else vector


def _encode(weights: Weights, config: BertConfig, ids: NDArray[np.int64]) -> Array:
    """The last hidden states [length, hidden]."""
    words, positions = (weights[f"embeddings.{part}_embeddings.weight"] for part in ("word", "position"))
    states = words[ids].astype(np.float64) + positions[config.first_position :][: len(ids)]
    if config.type_vocab_size:
        states += weights["embeddings.token_type_embeddings.weight"][0]
    bias = _relative_bias(weights, config, len(ids))
    states = _layer_norm(weights, config, "embeddings.LayerNorm", states)
    for layer in range(config.num_hidden_layers):
        prefix = f"encoder.layer.{layer}"
        attended = _attention(weights, config, f"{prefix}.attention.self", states, bias)
        attended = _linear(weights, f"{prefix}.attention.output.dense", attended)
        states = _layer_norm(weights, config, f"{prefix}.attention.output.LayerNorm", states + attended)
        inner = _gelu(config, _linear(weights, f"{prefix}.intermediate.dense", states))
        inner = _linear(weights, f"{prefix}.output.dense", inner)
        states = _layer_norm(weights, config, f"{prefix}.output.LayerNorm", states + inner)
    return states


def _linear(weights: Weights, name: str, states: Array) -> Array:
    result: Array = states @ weights[f"{name}.weight"].T.astype(np.float64) + weights[f"{name}.bias"]
    return result


def _layer_norm(weights: Weights, config: BertConfig, name: str, states: Array) -> Array:
    centred = states - states.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt(variance + config.layer_norm_eps)
    result: Array = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return result


def _relative_bias(weights: Weights, config: BertConfig, length: int) -> Array:
    """What is added to the scores, [heads, queries, keys]: for each head one number a bucket of distances."""
    bias = np.zeros((config.num_attention_heads, length, length))
    if config.relative_buckets:
        for query in range(length):
            for key in range(length):
                bias[:, query, key] = weights[RELATIVE_BIAS][_bucket(key - query, config.relative_buckets)]
    return bias


def _bucket(distance: int, buckets: int) -> int:
    """T5's bucket of one distance: half of them for keys behind; in each half exact ones, then logarithmic ones."""
    if distance > 0:
        return buckets // 2 + _bucket(-distance, buckets)
    each, exact = buckets // 2, buckets // 4
    if -distance < exact:
        return -distance
    octaves = math.log(-distance / exact) / math.log(FARTHEST / exact)
    return min(exact + int(octaves * (each - exact)), each - 1)


def _attention(weights: Weights, config: BertConfig, name: str, states: Array, bias: Array) -> Array:
    size = config.hidden_size // config.num_attention_heads
    query, key, value = (_linear(weights, f"{name}.{part}", states) for part in ("query", "key", "value"))
    result = np.empty_like(states)
    for head in range(config.num_attention_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size) + bias[head]
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        result[:, part] = scores / scores.sum(axis=-1, keepdims=True) @ value[:, part]
    return result


def _gelu(config: BertConfig, x: Array) -> Array:
    if config.hidden_act in GELU_ERF:
        exact: Array = x * (1 + _erf(x / math.sqrt(2))) / 2
        return exact
    approximate: Array = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return approximate
