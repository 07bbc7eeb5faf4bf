from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipc.backlog import ACTIVE, FIRST, FLOWS, TOTAL, Backlog
from ipc.priority import Priority

INTERACTIVE, BULK, SUSPECT = Priority


def backlog_of(waiting: dict[Priority, dict[int, int]], rate: int = 100) -> Backlog:
    backlog = Backlog.private()
    backlog.rate = rate
    for priority, flows in waiting.items():
        part = backlog.part(priority)
        part[TOTAL], part[ACTIVE] = sum(flows.values()), len(flows)
        for flow, tokens in flows.items():
            part[FIRST + flow] = tokens
    return backlog


def test_nothing_is_foretold_while_the_rate_is_unknown() -> None:
    assert backlog_of({INTERACTIVE: {0: 10**6}}, rate=0).seconds(INTERACTIVE, 0, 10**6) == 0


def test_a_flow_that_is_alone_waits_for_its_own() -> None:
    assert backlog_of({INTERACTIVE: {7: 300}}).seconds(INTERACTIVE, 7) == 3
    assert backlog_of({INTERACTIVE: {7: 300}}).seconds(INTERACTIVE, 7, tokens=100) == 4


def test_a_flow_with_nothing_queued_does_not_wait_for_the_others() -> None:
    backlog = backlog_of({INTERACTIVE: {0: 10_000, 1: 10_000}})
    assert backlog.seconds(INTERACTIVE, 2) == 0
    assert backlog.seconds(INTERACTIVE, 2, tokens=100) == 3, "two others take turns with it"


def test_flows_that_have_little_are_done_before_ones_that_have_much() -> None:
    backlog = backlog_of({INTERACTIVE: {0: 100, 1: 10_000}})
    assert backlog.seconds(INTERACTIVE, 0) == 2
    assert backlog.seconds(INTERACTIVE, 1) == 101, "and those wait for all there is at most"


def test_bulk_waits_for_what_is_interactive_and_not_the_other_way_round() -> None:
    backlog = backlog_of({INTERACTIVE: {0: 200}, BULK: {0: 500}})
    assert backlog.seconds(INTERACTIVE, 0) == 2
    assert backlog.seconds(BULK, 0) == 7


def test_bulk_goes_at_its_own_rate_once_that_is_known() -> None:
    backlog = backlog_of({INTERACTIVE: {0: 200}, BULK: {0: 500}})
    backlog.bulk_rate = 10
    assert backlog.seconds(INTERACTIVE, 0) == 2
    assert backlog.seconds(BULK, 0) == 52
    assert backlog.seconds(BULK, 0, tokens=100) == 62
    assert backlog.rate_of(BULK) == 10
    assert backlog.rate_of(INTERACTIVE) == 100


def test_nobody_waits_longer_than_for_all_there_is() -> None:
    backlog = backlog_of({INTERACTIVE: {0: 200, 1: 100}, BULK: {0: 500}})
    assert backlog.most_seconds() == 8
    backlog.bulk_rate = 10
    assert backlog.most_seconds() == 53
    assert backlog_of({BULK: {0: 500}}, rate=0).most_seconds() == 0


flows = st.dictionaries(st.integers(0, FLOWS - 1), st.integers(1, 10**6), max_size=9)


@given(flows, st.integers(0, FLOWS - 1), st.integers(0, 1000), st.integers(1, 10**6))
def test_no_flow_waits_longer_than_for_everything(waiting: dict[int, int], flow: int, tokens: int, rate: int) -> None:
    seconds = backlog_of({INTERACTIVE: waiting}, rate).seconds(INTERACTIVE, flow, tokens)
    assert waiting.get(flow, 0) + tokens <= seconds * rate * 1.000001
    assert seconds * rate <= (sum(waiting.values()) + tokens) * 1.000001
