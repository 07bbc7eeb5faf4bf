"""Third stage of prepare for a user's own ONNX file: put into the form that the engine runs.

    input_ids int32 [batch, length]  →  embeddings float32 [batch, dim]

The file takes `input_ids`, and `attention_mask` and `token_type_ids` if it wants them, int64 or int32 [batch, length].
It gives `sentence_embedding` [batch, dim], which is taken as it is, or the states of the tokens, `last_hidden_state` or
`token_embeddings` [batch, length, dim], which are pooled and normalized as the sentence-transformers files say.
All texts of a batch have the same length: the mask is all ones and the token types are zeros, both made inside.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, compose, helper, load
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from ipc.errors import StartError
from tools.checkpoint import Usage, read_config, read_usage
from tools.fetch import Local
from tools.foreign import Foreign, first_line, open_session
from tools.graphs.dense import Dense
from tools.graphs.nodes import IR_VERSION, Nodes
from tools.reference import Array, pool
from tools.verify import ALLOWED_LENGTH_ERROR, largest_id, load_tokenizer

# Inputs besides the ids, and the value that each has everywhere.
FILLED = {"attention_mask": 1, "token_type_ids": 0}
STATES = ("last_hidden_state", "token_embeddings")
SENTENCE = "sentence_embedding"
INTEGERS = (TensorProto.INT64, TensorProto.INT32)
# The first with every operator of the head in the form used there.
OLDEST_OPSET = 11
# Protobuf's limit for one file.
MOST_BYTES = 2**31 - 1
# Names of the graph that is wrapped begin with this, so that none meets one of ours.
PREFIX = "own/"
# Texts that tell whether vectors have length 1: any will do.
SAMPLES = ([0, 0], [1, 2, 3])


def read_own_graph(local: Local) -> Foreign:
    """Wrap a user's ONNX file. Raises StartError, one clear sentence, for one that cannot be served."""
    assert local.onnx is not None
    model = _load(local)
    output = _choose_output(local.onnx, model.graph)
    config = read_config(local.folder)
    positions = config.get("max_position_embeddings")
    positions = positions if isinstance(positions, int) else None
    usage = read_usage(local.folder, positions, has_own_pooling=output == SENTENCE)
    run = _runner(local.onnx, model.graph, output)
    samples = [run(ids) for ids in SAMPLES]
    if output == SENTENCE:
        is_unit = all(abs(np.linalg.norm(sample) - 1) <= ALLOWED_LENGTH_ERROR for sample in samples)
        usage = replace(usage, normalize=is_unit)
    dim, vocab_size = samples[0].shape[-1], config.get("vocab_size")
    return Foreign(
        graph=wrap(model, output, dim, usage),
        **vars(usage),
        architecture=str(config.get("model_type") or "onnx"),
        dim=dim,
        vocab_size=vocab_size if isinstance(vocab_size, int) else largest_id(load_tokenizer(usage)) + 1,
        reference="the user's own file (no independent reference)",
        embed=lambda ids: run(ids)[0] if output == SENTENCE else pool(run(ids), usage),
    )


def wrap(model: ModelProto, output: str, dim: int, usage: Usage) -> ModelProto:
    """The graph `model` in our form. Its `output` are states, or vectors of texts where the pooling is "own"."""
    inner = compose.add_prefix(model, PREFIX)
    before, after = Nodes(), Nodes(prefix="head/")
    for value in _inputs(inner.graph):
        _feed(before, value)
    if usage.pooling == "own":
        after.add("Cast", PREFIX + output, to=TensorProto.FLOAT, output="embeddings")
    else:
        Dense(after).pool(after.add("Cast", PREFIX + output, to=TensorProto.FLOAT), usage)
        after.nodes[-1].output[0] = "embeddings"
    graph = inner.graph
    nodes, constants = list(graph.node), list(graph.initializer)
    for part in (graph.node, graph.initializer, graph.input, graph.output):
        del part[:]
    graph.node.extend([*before.nodes, *nodes, *after.nodes])
    graph.initializer.extend([*before.constants, *constants, *after.constants])
    graph.input.append(helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "length"]))
    graph.output.append(helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", dim]))
    inner.ir_version = max(inner.ir_version, IR_VERSION)  # before 4, weights had to be inputs as well
    return inner


def _feed(nodes: Nodes, value: ValueInfoProto) -> None:
    """Make one input of the inner graph from `input_ids`."""
    kind, name = value.type.tensor_type.elem_type, value.name.removeprefix(PREFIX)
    if name == "input_ids":
        nodes.add("Cast", name, to=kind, output=value.name)
        return
    fill = helper.make_tensor("fill", kind, [1], [FILLED[name]])
    nodes.add("ConstantOfShape", nodes.add("Shape", "input_ids"), value=fill, output=value.name)


def _load(local: Local) -> ModelProto:
    path = local.weights[0]
    if sum(file.stat().st_size for file in local.weights) > MOST_BYTES:
        raise StartError(f"{path} has more than 2 GB of weights, which one ONNX file cannot hold.")
    try:
        model = load(path, load_external_data=False)
        names = {
            entry.value
            for tensor in model.graph.initializer
            if uses_external_data(tensor)
            for entry in tensor.external_data
            if entry.key == "location"
        }
        if missing := sorted(names - {file.name for file in local.weights}):
            raise StartError(
                f"{path} keeps weights in {missing[0]}, which must lie beside it under a name that begins with "
                f"{path.name}."
            )
        load_external_data_for_model(model, str(path.parent))
    except StartError:
        raise
    except Exception as error:  # protobuf's, onnx's and the system's have no common class
        raise StartError(f"{path} cannot be read as an ONNX model ({first_line(error)}).") from None
    opset = next((known.version for known in model.opset_import if known.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise StartError(f"{path} is of ONNX opset {opset}; export it again with opset {OLDEST_OPSET} or newer.")
    return model


def _inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that a caller has to give: old files list their weights among them."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _choose_output(path: Path, graph: GraphProto) -> str:
    """The output to serve, after a check of all names, types and shapes that the file declares."""
    inputs = {value.name: value.type.tensor_type for value in _inputs(graph)}
    unknown = sorted(inputs.keys() - {"input_ids", *FILLED})
    if "input_ids" not in inputs or unknown:
        raise StartError(
            f"{path} takes the inputs {', '.join(inputs) or '(none)'}; supported: input_ids, with attention_mask and "
            "token_type_ids or without."
        )
    for name, kind in inputs.items():
        sizes = [size.dim_value for size in kind.shape.dim]
        if kind.elem_type not in INTEGERS or (kind.HasField("shape") and len(sizes) != 2):
            raise StartError(f"{path}: the input {name} is not int64 or int32 of the shape [batch, length].")
        if any(sizes):
            raise StartError(
                f"{path}: the input {name} has the fixed shape {[size or '?' for size in sizes]}; export it with "
                "dynamic axes for batch and length."
            )
    outputs = [value.name for value in graph.output]
    if SENTENCE in outputs:
        return SENTENCE
    found = [str(name) for name in outputs if name in STATES]
    if len(found) != 1:
        raise StartError(
            f"{path} gives the outputs {', '.join(outputs)}; supported: {SENTENCE}, or one of {' and '.join(STATES)}."
        )
    return found[0]


def _runner(path: Path, graph: GraphProto, output: str) -> Callable[[list[int]], Array]:
    """A function that runs the user's file as it stands, on one text: states [length, dim], or one row [1, dim]."""
    session = open_session(path)
    kinds = {
        value.name: np.int64 if value.type.tensor_type.elem_type == TensorProto.INT64 else np.int32
        for value in _inputs(graph)
    }

    def run(ids: list[int]) -> Array:
        feeds = {name: np.full((1, len(ids)), FILLED.get(name, 0), kind) for name, kind in kinds.items()}
        feeds["input_ids"][0] = ids
        try:
            result: NDArray[Any] = session.run([output], feeds)[0]
        except Exception as error:  # the library raises nothing more precise
            raise StartError(f"{path} fails on a text of {len(ids)} tokens ({first_line(error)}).") from None
        expected = (1,) if output == SENTENCE else (1, len(ids))
        if result.shape[:-1] != expected or not np.issubdtype(result.dtype, np.floating):
            raise StartError(
                f"{path}: the output {output} is {result.dtype} of the shape {list(result.shape)} for one text of "
                f"{len(ids)} tokens, where {[*expected, 'dim']} is expected."
            )
        states: Array = result.reshape(-1, result.shape[-1]).astype(np.float64)
        return states

    return run
