"""The graph for the CPU: the same vectors as plain NumPy, the same bits in any company, and never a NaN."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from engine.runners.mixing import arrange
from engine.runners.onnx import SLOW_FUSIONS
from ipc.bundle import MIXED_GROUPS, Bundle
from tests.tools.conftest import write_model
from tools import reference
from tools.checkpoint import read_checkpoint
from tools.families import CONFIGS, GELU_ERF, GELU_TANH
from tools.graphs.encoder import build_graph

Rows = NDArray[np.float32]
MakeModel = Callable[..., Path]

# Chosen to have kernels in ONNX Runtime's CPU and CUDA providers. Before you add one, look it up in ONNX Runtime's
# docs/OperatorKernels.md, and see that it works on each row by itself.
ALLOWED = {
    *("EmbedLayerNormalization", "MultiHeadAttention", "MatMul", "LayerNormalization", "BiasGelu", "FastGelu"),
    *("Shape", "Concat", "Cast", "Div", "Gather", "Transpose", "Sqrt", "Max", "Reshape", "Slice", "Add", "Sub"),
    *("Squeeze", "Unsqueeze", "Range", "Less", "Where", "Reciprocal", "Mul"),
}


def session(model: str | bytes, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # More threads than cores that spin would take the cores from each other.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS)


def run(session: ort.InferenceSession, texts: Sequence[NDArray[np.int32]], *, fill: bool = False) -> Rows:
    rows: Rows = session.run(["embeddings"], arrange(texts, fill=fill))[0]
    return rows


def random_texts(seed: int, lengths: Sequence[int], vocab_size: int) -> list[NDArray[np.int32]]:
    chance = np.random.default_rng(seed)
    return [chance.integers(0, vocab_size, length, dtype=np.int32) for length in lengths]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("hidden_act", GELU_ERF + GELU_TANH)
@pytest.mark.parametrize("kind", CONFIGS)
def test_vectors_are_those_of_the_formulas(
    make_model: MakeModel, kind: str, hidden_act: str, pooling: str, normalize: bool
) -> None:
    options = {"pooling": pooling, "normalize": normalize, "layer_norm_eps": 1e-3}
    checkpoint = read_checkpoint(make_model(model_type=kind, hidden_act=hidden_act, **options))
    model = build_graph(checkpoint)
    onnx.checker.check_model(model)
    tiny = session(model.SerializeToString())
    texts = random_texts(3, (11, 1, 25, 11, 8, 30, 16, 2), checkpoint.config.vocab_size)
    expected = np.stack([reference.embed(checkpoint, text.tolist()) for text in texts])
    np.testing.assert_allclose(run(tiny, texts), expected, rtol=1e-4, atol=3e-6)
    if normalize:
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, rtol=1e-12)


def test_the_interface_and_the_operators(make_model: MakeModel) -> None:
    folders = [make_model(folder=kind, model_type=kind) for kind in CONFIGS]
    for folder in (*folders, make_model(pooling="cls", hidden_act="gelu_new")):
        model = build_graph(read_checkpoint(folder))
        tiny = session(model.SerializeToString())
        inputs = [(i.name, i.type, i.shape) for i in tiny.get_inputs()]
        outputs = [(o.name, o.type, o.shape) for o in tiny.get_outputs()]
        assert inputs == [
            *((name, "tensor(int32)", ["tokens"]) for name in ("input_ids", "position_ids", "back")),
            ("order", "tensor(int32)", ["texts"]),
            *(
                one
                for group in range(MIXED_GROUPS)
                for one in (
                    (f"places_{group}", "tensor(int32)", [f"texts_{group}", f"width_{group}"]),
                    (f"lengths_{group}", "tensor(int32)", [f"texts_{group}"]),
                )
            ),
        ]
        assert outputs == [("embeddings", "tensor(float)", ["texts", 32])]
        assert {node.op_type for node in model.graph.node} <= ALLOWED


def test_building_twice_gives_the_same_bytes(make_model: MakeModel) -> None:
    checkpoint = read_checkpoint(make_model())
    first, second = (build_graph(checkpoint).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_as_many_tokens_as_there_are_positions(make_model: MakeModel) -> None:
    for kind in CONFIGS:
        # More than the distances that mpnet tells apart.
        checkpoint = read_checkpoint(make_model(folder=kind, model_type=kind, max_position_embeddings=140))
        most = checkpoint.config.max_tokens
        assert most == (140 if kind in ("bert", "distilbert") else 138)
        [text] = random_texts(3, (most,), checkpoint.config.vocab_size)
        rows = run(session(build_graph(checkpoint).SerializeToString()), [text])
        np.testing.assert_allclose(rows[0], reference.embed(checkpoint, text.tolist()), rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1e18])
def test_zero_tiny_and_huge_states_never_give_nan(make_model: MakeModel, pooling: str, size: float) -> None:
    checkpoint = read_checkpoint(make_model(pooling=pooling))
    last = "encoder.layer.1.output.LayerNorm."
    for part in ("weight", "bias"):
        checkpoint.weights[last + part][:] = size
    rows = run(session(build_graph(checkpoint).SerializeToString()), [np.full(5, 9, dtype=np.int32)] * 3)
    assert np.isfinite(rows).all()
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert (lengths <= 1 + 1e-6).all()
    if size >= 1e-3:
        np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_an_id_outside_the_vocabulary_is_an_error_and_no_memory_is_read(make_model: MakeModel) -> None:
    tiny = session(build_graph(read_checkpoint(make_model())).SerializeToString())
    for bad in (-1, 10**6):
        with pytest.raises(Exception, match="input index out of range"):
            run(tiny, [np.array([2, bad, 3], dtype=np.int32)])


def test_no_score_is_so_large_that_padding_is_seen(make_model: MakeModel) -> None:
    """ONNX Runtime's own mask takes 10,000 from a score."""
    checkpoint = read_checkpoint(make_model())
    for name in checkpoint.weights:
        if name.endswith(("query.weight", "key.weight")):
            checkpoint.weights[name] *= 1000
    tiny = session(build_graph(checkpoint).SerializeToString())
    texts = random_texts(3, range(1, 33), checkpoint.config.vocab_size)
    together = run(tiny, texts)
    for text, row in zip(texts, together, strict=True):
        assert np.dot(row, reference.embed(checkpoint, text.tolist())) > 0.999
        assert row.tobytes() == run(tiny, [text])[0].tobytes()


def test_what_one_text_breaks_stays_in_it(make_model: MakeModel) -> None:
    model = build_graph(read_checkpoint(make_model()))
    [words] = (stored for stored in model.graph.initializer if stored.name == "words")
    changed = numpy_helper.to_array(words).copy()
    changed[7] = np.nan
    words.CopyFrom(numpy_helper.from_array(changed, "words"))
    tiny = session(model.SerializeToString())
    broken = np.array([2, 7, 3], np.int32)
    texts = [broken, *(text for text in random_texts(3, range(1, 33), 7)), broken]
    rows = run(tiny, texts)
    assert np.isnan(rows[[0, -1]]).all()
    assert np.isfinite(rows[1:-1]).all()


class Sessions:
    """A model with one thread for each operator, and with more."""

    def __init__(self, graph: str | bytes, vocab_size: int, threads: Sequence[int]) -> None:
        self.one, *self.all = (session(graph, count) for count in threads)
        self.vocab_size = vocab_size

    def check(self, lengths: Sequence[int], seed: int) -> None:
        """The texts of a random batch must have the same bits alone, in their batch, and with any threads."""
        texts = random_texts(seed, lengths, self.vocab_size)
        together = run(self.one, texts)
        for each in self.all:
            assert run(each, texts).tobytes() == together.tobytes()
        assert run(self.one, texts, fill=True).tobytes() == together.tobytes()
        for index in {0, seed % len(texts), len(texts) - 1, int(np.argmin(lengths))}:
            alone = together[index].tobytes()
            assert run(self.one, [texts[index]])[0].tobytes() == alone
            for each in self.all:
                assert run(each, [texts[index]])[0].tobytes() == alone


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> Sessions:
    return Sessions(str(bundle.graph("fp32")), bundle.vocab_size, (1, 2, 3))


# Shapes of real models, in which products are split into blocks; with two layers, so that they are quick.
SHAPES: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_attention_heads": 3,
    "max_position_embeddings": 260,
}

Family = tuple[str, str]
# xlm-roberta's graph is roberta's.
FAMILIES: list[Family] = [
    *((kind, "mean") for kind in CONFIGS if kind != "xlm-roberta"),
    *(("bert", pooling) for pooling in ("cls", "lasttoken")),
]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Sessions]:
    every: dict[Family, Sessions] = {}
    for kind, pooling in FAMILIES:
        folder = write_model(tmp_path_factory.mktemp(kind), model_type=kind, pooling=pooling, **SHAPES)
        checkpoint = read_checkpoint(folder)
        graph = build_graph(checkpoint).SerializeToString()
        every[kind, pooling] = Sessions(graph, checkpoint.config.vocab_size, (1, 2))
    return every


def batches(most: int) -> st.SearchStrategy[list[int]]:
    """Lengths of texts, short ones more often, as they come."""
    return st.lists(st.one_of(st.integers(1, 40), st.integers(1, 256)), min_size=1, max_size=most)


seeds = st.integers(0, 2**32 - 1)


@given(batches(16), seeds)
@example([2] * 32, 0)
@example([256] * 6, 1)
@example([*range(1, 33)], 2)
@example([129, 1, 256, 128, 127, 7, 64], 6)
@settings(max_examples=20, deadline=None)
def test_a_text_has_the_same_bits_alone_and_in_any_company(sessions: Sessions, lengths: list[int], seed: int) -> None:
    sessions.check(lengths, seed)


@given(batches(12), seeds)
@example([256, 1, 2, 3, 4, 5, 6, 7], 1)
@settings(max_examples=12, deadline=None)
@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_is_in_every_family(
    families: dict[Family, Sessions], family: Family, lengths: list[int], seed: int
) -> None:
    families[family].check(lengths, seed)


def test_every_length_has_the_same_bits_alone_and_beside_the_longest(families: dict[Family, Sessions]) -> None:
    tiny = families["bert", "mean"]
    texts = random_texts(1, range(1, 257), tiny.vocab_size)
    for one, other in zip(texts[::2], texts[1::2], strict=True):
        together = run(tiny.one, [one, other, texts[-1]])
        assert together[0].tobytes() == run(tiny.one, [one])[0].tobytes()
        assert together[1].tobytes() == run(tiny.one, [other])[0].tobytes()
