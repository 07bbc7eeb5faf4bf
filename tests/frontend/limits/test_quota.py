from __future__ import annotations

import pytest

from frontend.limits.quota import Quota, Rule, Verdict, duration, make_verdict


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.12, "120ms"),
        (0.0004, "1ms"),
        (1.0, "1s"),
        (1.13, "1.2s"),
        (59.5, "59.5s"),
        (60.0, "1m0s"),
        (359.2, "6m0s"),
        (3600.0, "1h0m0s"),
        (3661.0, "1h1m1s"),
    ],
)
def test_durations_read_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_headers_tell_the_tightest_rule_on_requests_and_the_tokens() -> None:
    verdict = Verdict(True, Rule(60, 40, 30.2), Rule(1000, 7, 3000.0), Rule(5000, 4984, 0.25))
    assert dict(verdict.headers()) == {
        "x-ratelimit-limit": "1000",
        "x-ratelimit-remaining": "7",
        "x-ratelimit-reset": "3000",
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "7",
        "x-ratelimit-reset-requests": "50m0s",
        "x-ratelimit-limit-tokens": "5000",
        "x-ratelimit-remaining-tokens": "4984",
        "x-ratelimit-reset-tokens": "250ms",
    }


def test_rules_without_a_limit_are_in_no_header() -> None:
    assert Verdict(True).headers() == []
    assert [name for name, _ in Verdict(True, tpm=Rule(10, 5, 1.0)).headers()] == [
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
    ]


def test_a_refusal_waits_for_all_rules_and_blocks_while_one_is_used_up() -> None:
    states = [(5, 60.0, 7.0, 7.0), (9, 3600.0, 900.0, 900.0), (30, 60.0, 20.0, 3.0)]
    verdict = make_verdict(Quota(5, 9, 31), False, states)
    assert (verdict.retry_after, verdict.blocked_for) == (900.0, 900.0)
    # Of the tokens one is left: another request may well fit.
    states = [(4, 60.0, 0.0, 0.0), (8, 3600.0, 0.0, 0.0), (30, 60.0, 20.0, 3.0)]
    verdict = make_verdict(Quota(5, 9, 31), False, states)
    assert (verdict.retry_after, verdict.blocked_for) == (20.0, 0.0)
    assert not verdict.never_fits


def test_what_is_larger_than_a_limit_never_fits() -> None:
    verdict = make_verdict(Quota(tpm=10), False, [(0, 0.0, 0.0, 0.0), (0, 0.0, 0.0, 0.0), (3, 60.0, -1.0, 50.0)])
    assert verdict.never_fits
    assert verdict.retry_after is None


def test_a_refusal_told_later_is_nearer_its_end() -> None:
    verdict = Verdict(False, Rule(5, 0, 60.0), None, None, 10.0, 8.0)
    assert verdict.after(9.0) == Verdict(False, Rule(5, 0, 51.0), None, None, 1.0, 0.0)


def test_of_two_stores_the_one_with_less_left_is_told() -> None:
    one = Verdict(True, Rule(5, 4, 60.0), None, Rule(9, 1, 5.0))
    other = Verdict(True, Rule(5, 2, 30.0), None, Rule(9, 8, 6.0))
    assert one.tighter(other) == Verdict(True, Rule(5, 2, 30.0), None, Rule(9, 1, 5.0))
