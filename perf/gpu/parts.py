"""What the GPU's measurements are made of: a device that takes the time, a large product, a model of a given shape."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from engine.queue import Item
from engine.runners.buckets import Bucket
from engine.runners.device import Device, Host, Session
from engine.scheduler import Limits, Scheduler
from ipc.messages import Ids
from ipc.priority import Priority

NEVER = 2**62


class Found(msgspec.Struct, kw_only=True):
    """What a stage found; `missed` has a sentence for each target that was not met."""

    missed: list[str] = []


def form_batches(texts: Sequence[Ids], limits: Limits) -> list[list[Ids]]:
    """What the engine's scheduler makes of texts that all wait: full batches in order, and a last one."""
    scheduler = Scheduler(limits)
    for number, ids in enumerate(texts):
        was_added = scheduler.add(Item(1, number, ids, Priority.INTERACTIVE, NEVER, 0))
        assert was_added, "give the limits a queue that holds all texts"
    batches = []
    while scheduler:
        batches.append([item.ids for item in scheduler.next_batch(0, idle=True).batch])
    return batches


@dataclass
class TimedDevice:
    """A device that waits after each copy, and a session's runs that do; `times` in ns by step, warm-up included.

    The steps add up to more than a batch takes otherwise: nothing overlaps, and each wait costs some µs.
    """

    device: Device
    times: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._waits: dict[int, int] = {}
        self.event, self.memory, self.pinned = self.device.event, self.device.memory, self.device.pinned
        self.register, self.record, self.wait = self.device.register, self.device.record, self.device.wait
        self.synchronize = self.device.synchronize

    def stream(self) -> int:
        """A stream, and an event to wait for it."""
        stream = self.device.stream()
        self._waits[stream] = self.device.event()
        return stream

    def upload(self, target: int, source: Host, stream: int) -> None:
        """Copy to the device, and wait."""
        self.measure("h2d", stream, lambda: self.device.upload(target, source, stream))

    def download(self, target: Host, source: int, stream: int) -> None:
        """Copy to the host, and wait."""
        self.measure("d2h", stream, lambda: self.device.download(target, source, stream))

    def measure(self, step: str, stream: int, work: Callable[[], None]) -> None:
        """Do something on a stream and wait until it is done."""
        began = time.perf_counter_ns()
        work()
        self.device.record(self._waits[stream], stream)
        self.device.synchronize(self._waits[stream])
        self.times[step].append(time.perf_counter_ns() - began)


@dataclass
class TimedSession:
    """A session whose runs are measured by the device of the same stream."""

    session: Session
    device: TimedDevice
    stream: int

    def bind(self, bucket: Bucket, inputs: Sequence[int], output: int, graph: int) -> Callable[[], None]:
        """See Session."""
        run = self.session.bind(bucket, inputs, output, graph)

        def measured() -> None:
            self.device.measure("run", self.stream, run)

        return measured


def matrix_rate(provider: str, size: int, runs: int, options: dict[str, str] | None = None) -> float:
    """FLOP/s of half-precision products of two square matrices through ONNX Runtime, the median of so many.

    On random numbers: products of zeros can be faster. Raises RuntimeError where the provider cannot be had.
    """
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [size, size]) for name in ("a", "b", "c")]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", shapes[:2], shapes[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=[(provider, options or {})], enable_fallback=0)
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} cannot be had: ONNX Runtime took {session.get_providers()[0]}")
    device = "cuda" if provider.startswith("CUDA") else "cpu"
    chance, binding, kept = np.random.default_rng(1), session.io_binding(), []
    for name in ("a", "b"):
        # The binding has the address alone.
        kept.append(ort.OrtValue.ortvalue_from_numpy(chance.normal(size=(size, size)).astype(np.float16), device, 0))
        binding.bind_ortvalue_input(name, kept[-1])
    kept.append(ort.OrtValue.ortvalue_from_shape_and_type([size, size], np.float16, device, 0))
    binding.bind_ortvalue_output("c", kept[-1])
    times = []
    for _ in range(runs + 3):
        began = time.perf_counter_ns()
        session.run_with_iobinding(binding)
        times.append(time.perf_counter_ns() - began)
    return 2 * size**3 / (float(np.median(times[3:])) / 1e9)


@dataclass(frozen=True)
class Shape:
    """The sizes of a BERT encoder that decide its cost."""

    layers: int
    hidden: int
    heads: int
    positions: int = 512
    vocabulary: int = 30_522

    def flops(self, length: int) -> float:
        """Of one text with so many tokens; the arithmetic of products and attention alone."""
        return length * (24.0 * self.layers * self.hidden**2 + 4.0 * self.layers * length * self.hidden)


MINILM = Shape(layers=6, hidden=384, heads=12)
BERT_BASE = Shape(layers=12, hidden=768, heads=12)


def write_checkpoint(folder: Path, shape: Shape, tokenizer: Path) -> Path:
    """A model folder of this shape with random weights of BERT's own spread, and another model's tokenizer."""
    (folder / "1_Pooling").mkdir(parents=True)
    config = {
        "model_type": "bert",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.hidden,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
    }
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    contents = {
        "config.json": config,
        "modules.json": modules,
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "sentence_bert_config.json": {"max_seq_length": shape.positions},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    save_file(_weights(shape), folder / "model.safetensors")
    return folder


def _weights(shape: Shape) -> dict[str, NDArray[np.float32]]:
    hidden, inner = shape.hidden, 4 * shape.hidden
    tables = {"word": shape.vocabulary, "position": shape.positions, "token_type": 2}
    sizes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (rows, hidden) for name, rows in tables.items()
    }
    norms = ["embeddings.LayerNorm"]
    linear = {f"attention.self.{part}": (hidden, hidden) for part in ("query", "key", "value")}
    linear |= {
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    for layer in range(shape.layers):
        prefix = f"encoder.layer.{layer}."
        norms += [f"{prefix}{part}.LayerNorm" for part in ("attention.output", "output")]
        for name, (to, of) in linear.items():
            sizes |= {f"{prefix}{name}.weight": (to, of), f"{prefix}{name}.bias": (to,)}
    chance = np.random.default_rng(0)
    made = {name: chance.normal(0, 0.02, size).astype(np.float32) for name, size in sizes.items()}
    for name in norms:
        made |= {f"{name}.weight": np.ones(hidden, np.float32), f"{name}.bias": np.zeros(hidden, np.float32)}
    return made
