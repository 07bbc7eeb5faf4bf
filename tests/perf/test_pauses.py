from __future__ import annotations

import time

import msgspec
import pytest

import perf.pauses
from perf.pauses import WARM_UP, Pauses, befores, cpu_us, measure, pauses_table, spin, work
from perf.stats import spread


def test_each_pause_is_measured_so_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def counted() -> None:
        work()
        done.append("work")

    monkeypatch.setattr(perf.pauses, "work", counted)
    found = measure(turns=2, times=3)
    assert len(done) == WARM_UP + 2 * 3 * len(befores())
    assert list(found.cpu_us) == list(befores())
    assert all(0 < each.min <= each.median <= each.max for each in found.cpu_us.values())


def test_the_pause_itself_is_not_counted() -> None:
    def burn() -> None:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    assert cpu_us(burn, 1) < 50_000


def test_what_spins_keeps_the_core_so_long() -> None:
    began = time.perf_counter()
    spin(0.01)
    assert time.perf_counter() - began >= 0.01


def test_the_work_is_done_after_each_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(perf.pauses, "work", lambda: done.append("work"))
    cpu_us(lambda: done.append("pause"), 2)
    assert done == ["pause", "work"] * 2


def test_the_table_tells_how_many_times() -> None:
    found = Pauses({"at once": spread([60.0]), "4 ms asleep": spread([300.0])})
    *_, row = pauses_table(msgspec.to_builtins(found)).splitlines()
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["4 ms asleep", "300 (300–300)", "5.0"]
