from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ipc.bundle import Bundle
from perf.bulk import Bulk, Command, Run, missed
from perf.bulk_rates import Rates, measure_rates
from perf.operation_tables import bulk_table
from perf.stats import Spread, spread
from perf.texts import make_texts


def one(value: float) -> Spread:
    return spread([value])


def test_a_small_one(bundle: Bundle, tmp_path: Path) -> None:
    texts = make_texts("short", 400)
    found = measure_rates(bundle, texts, 2, 0.2, tmp_path)
    assert found.texts_rate.min > 0
    assert set(found.parts) == {"model", "lanes", "tokenize", "write", "rest"}
    assert found.parts["model"] == max(found.parts.values())
    assert all(value > 0 for value in found.parts.values())
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    command, size = Command(bundle, tmp_path / "texts.txt", "--window", "64"), len(texts) * bundle.dim * 4
    assert command.run_killed(tmp_path / "shaken.npy", size, 1, pause=0) == 1
    # The slices that were measured are the same texts' vectors, by the same model.
    assert (tmp_path / "shaken.npy").read_bytes().endswith((tmp_path / "slice.npy").read_bytes()[128:])


@pytest.mark.parametrize(
    ("rate", "cpu", "foreign", "most", "identical", "misses"),
    [
        (0.98, 0.9, 0.0, 110.0, True, []),
        (0.9, 0.98, 0.5, 110.0, True, []),
        (0.9, 0.98, 0.0, 110.0, True, ["0.900 of"]),
        (0.98, 0.98, 0.0, 200.0, True, ["memory grew by 100"]),
        (0.98, 0.98, 0.0, 110.0, False, ["killed run"]),
    ],
)
def test_targets(rate: float, cpu: float, foreign: float, most: float, identical: bool, misses: list[str]) -> None:
    rates = Rates(one(rate), one(cpu), one(1.0), one(1.0), one(1.0), {"model": 1.0}, one(foreign))
    found = Bulk(100, rates, Run(1.0, 100.0, most), 10, identical)
    said = missed(found)
    assert len(said) == len(misses)
    assert all(begin in each for begin, each in zip(misses, said, strict=True))
    assert missed(msgspec.structs.replace(found, kills=0))[len(said) - (not identical)].startswith("no run was killed")
    assert ("no, 10" if not identical else "yes, 10") in bulk_table(msgspec.to_builtins(found))
