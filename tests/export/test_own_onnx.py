"""ONNX files as exporters write them: mask and token types as inputs, int64, several outputs, old opsets."""

import io
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.export.models import BUILT, EXPORTED, assert_same, ours, save_model, save_usage, theirs
from tools.prepare import prepare

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def write_onnx(folder: Path, architecture: str, opset: int, inputs: tuple[str, ...]) -> None:
    """Export `folder` with all of `inputs`, as people do for other servers; then take its weights away."""
    import torch  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class Encoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            states = self.model(**dict(zip(inputs, tensors, strict=True)))[0]
            return states, states[:, 0]

    file = io.BytesIO()
    example = torch.ones((2, 7), dtype=torch.int64)
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in (*inputs, "last_hidden_state")}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Encoder().eval(),
            (example,) * len(inputs),
            file,
            dynamo=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=["last_hidden_state", "pooler_output"],
            dynamic_axes=axes,
        )
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(file.getvalue())


@pytest.mark.parametrize("opset", [11, 14, 17])
@pytest.mark.parametrize(
    ("architecture", "inputs"), [("bert", INPUTS), ("electra", INPUTS), ("roberta", INPUTS[:2]), ("nomic_bert", INPUTS)]
)
def test_vectors_are_those_of_transformers(
    tmp_path: Path, architecture: str, inputs: tuple[str, ...], opset: int
) -> None:
    folder = save_model(tmp_path / "model", architecture, (BUILT | EXPORTED)[architecture])
    save_usage(folder, "mean", normalize=True)
    write_onnx(folder, architecture, opset, inputs)
    said: list[str] = []
    bundle = prepare(str(folder / "onnx" / "model.onnx"), tmp_path / "bundle", say=said.append)
    assert [line.split()[0] for line in said] == ["wrapping", "verifying", "a", "done"]
    assert bundle.parity.reference == "the user's own file (no independent reference)"
    assert_same(ours(bundle), theirs(folder, bundle, "mean", normalize=True))
