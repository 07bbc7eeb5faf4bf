"""Export the model with PyTorch for peers that pad their batches; runs in Infinity's environment.

python -m perf.peers.export MODEL_FOLDER EXPORTED FUSED
"""

from __future__ import annotations

import sys
from typing import Any

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"
OPSET = 17


def main() -> int:
    """Write the graph as exported, and with ONNX Runtime's fused operators."""
    folder, exported, fused = sys.argv[1:]
    heads, hidden = export(folder, exported)
    fuse(exported, fused, heads, hidden)
    return 0


def export(folder: str, target: str) -> tuple[int, int]:
    """The encoder [batch, sequence] → [batch, sequence, hidden]; gives the heads and the hidden size.

    By the older exporter: the newer one's graph has no pattern that ONNX Runtime's optimizer knows.
    """
    import torch  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415

    class Encoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state

    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.ones(2, 8, dtype=torch.long)
    axes = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        Encoder(model),
        (ids, ids, torch.zeros_like(ids)),
        target,
        input_names=list(INPUTS),
        output_names=[OUTPUT],
        dynamic_axes=dict.fromkeys((*INPUTS, OUTPUT), axes),
        opset_version=OPSET,
        do_constant_folding=True,
        dynamo=False,
    )
    return model.config.num_attention_heads, model.config.hidden_size


def fuse(source: str, target: str, heads: int, hidden: int) -> None:
    """What Infinity would do itself, had its optimizer not changed its options since."""
    from onnxruntime.transformers.optimizer import optimize_model  # noqa: PLC0415

    model = optimize_model(source, model_type="bert", num_heads=heads, hidden_size=hidden)
    if not model.is_fully_optimized():
        raise SystemExit("ONNX Runtime's optimizer did not fuse the whole graph")
    model.save_model_to_file(target)


if __name__ == "__main__":
    sys.exit(main())
