from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.procfs import Usage
from perf.stack import Stack
from perf.watch import GENERATOR, Sample, Watch, complaints, condense


def test_samples_become_medians_of_their_spans() -> None:
    samples: list[Sample] = [{"rss": {"engine": value}} for value in (1, 9, 2, 5, 7)]
    found = condense([0.1, 10, 20, 30, 59], samples, 30)
    assert found.seconds == [10, 44.5]
    assert found.values == {"rss": {"engine": [2, 6]}}


def test_the_log_s_complaints_are_counted_without_its_requests(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    log.write_text(
        '{"level":"INFO","message":"request"}\n'
        "  Embedlane is ready\n"
        '{"level":"WARNING","message":"away","process":"engine"}\n'
        * 2
        + '{"level":"ERROR","message":"broken"}\n{"level":"ERR\n'
    )
    assert complaints(log) == {"WARNING away": 2, "ERROR broken": 1, "a line that is no JSON": 1}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack(frontends=2) as stack:
        yield stack


def test_every_process_is_looked_at_and_parts_are_told(stack: Stack) -> None:
    told: list[int] = []

    def tell(number: int, sample: Sample, usage: Usage) -> None:
        assert usage.seconds > 0
        assert sample["rss"].keys() == {"engine", "frontend-0", "frontend-1", "supervisord", "serve", GENERATOR}
        told.append(number)

    watch = Watch(stack, 0.4, 4, 2, tell)
    asyncio.run(watch.run(lambda: False))
    assert told == [1, 2]
    assert len(watch.usages) == 2
    assert watch.probes == {"answered": 10}
    tracks = watch.tracks(0.0001)
    assert len(tracks.seconds) == 5
    assert tracks.seconds == sorted(tracks.seconds)
    values = tracks.values
    assert all(rss >= pss > 0 for rss, pss in zip(values["rss"]["engine"], values["pss"]["engine"], strict=True))
    assert all(count > 3 for kind in ("descriptors", "mappings") for count in values[kind]["frontend-0"])
    assert values["files"]["metrics"] == [values["files"]["metrics"][0]] * 5
    assert values["rows"]["lent"] == [0] * 5


def test_a_watch_ends_with_what_it_watches(stack: Stack) -> None:
    watch = Watch(stack, 3600, 4, 2, lambda *_: None)
    asyncio.run(watch.run(lambda: True))
    assert watch.usages == []


def test_a_process_that_ended_is_told_with_the_log_s_complaints() -> None:
    with Stack(frontends=2) as stack:
        watch = Watch(stack, 0.1, 2, 2, lambda *_: None)
        stack.stop()
        with pytest.raises(RuntimeError, match=r"ended after 0\.0 minutes; its log has no complaint"):
            asyncio.run(watch.run(lambda: False))
