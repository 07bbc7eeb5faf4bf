from __future__ import annotations

import time

import msgspec
import pytest

import perf.pauses
from perf.pauses import Pauses, befores, cpu_us, measure, pauses_table, spin
from perf.stats import spread


def test_each_pause_is_measured_so_many_times() -> None:
    found = measure(turns=2, times=3)
    assert list(found.cpu_us) == list(befores())
    assert all(0 < each.min <= each.median <= each.max for each in found.cpu_us.values())


def test_the_pause_itself_is_not_counted() -> None:
    began = time.thread_time()
    spin(0.05)
    pause = time.thread_time() - began
    assert cpu_us(lambda: spin(0.05), 1) < pause * 1e6


def test_the_work_is_done_after_each_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(perf.pauses, "work", lambda: done.append("work"))
    cpu_us(lambda: done.append("pause"), 2)
    assert done == ["pause", "work"] * 2


def test_the_table_tells_how_many_times() -> None:
    found = Pauses({"at once": spread([60.0]), "4 ms asleep": spread([300.0])})
    *_, row = pauses_table(msgspec.to_builtins(found)).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["4 ms asleep", "300 (300–300)", "5.0"]
