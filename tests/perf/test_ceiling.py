from __future__ import annotations

import numpy as np
import pytest

from engine.scheduler import Limits
from perf.alone import Alone, equal_batches
from perf.ceiling import cpu_ratios, ratios


def test_a_ratio_compares_with_both_neighbours() -> None:
    alone = [Alone(10.0, 100.0, 1000.0), Alone(10.0, 300.0, 9000.0), Alone(10.0, 100.0, 1000.0)]
    served = [Alone(10.0, 180.0, 1800.0), Alone(10.0, 100.0, 2000.0)]
    assert ratios(alone, served) == pytest.approx([0.9, 0.5])
    # 100 and 300 µs of CPU a token alone, 100 and 200 served.
    assert cpu_ratios(alone, served) == pytest.approx([2.0, 1.0])


def test_equal_batches_hold_every_text_once_and_one_length_each() -> None:
    texts = [np.full(length, n, np.int32) for n, length in enumerate([3, 5, 3, 3, 5, 7, 3, 3])]
    batches = equal_batches(texts, Limits(rows=2, tokens=9, max_wait=0, queue_items=0))
    assert all(len({len(text) for text in batch}) == 1 for batch in batches)
    # Two of five tokens would be ten.
    assert sorted((len(batch[0]), len(batch)) for batch in batches) == [(3, 1), (3, 2), (3, 2), (5, 1), (5, 1), (7, 1)]
    assert sorted(int(text[0]) for batch in batches for text in batch) == list(range(8))
