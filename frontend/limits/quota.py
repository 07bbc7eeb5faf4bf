"""What a key may use, and the answer to "may this request pass?"; both stores and the answers' headers share it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

# A rule's window is so many buckets long, and one more is counted: the oldest, which is partly outside, counts whole.
BUCKETS: Final = 60
COUNTED: Final = BUCKETS + 1
MINUTE_SECONDS: Final = 60.0
HOUR_SECONDS: Final = 3600.0

# What a store says of a rule: amount used, and seconds until nothing is used, until the request fits (negative:
# never), and until anything is freed.
RuleState = tuple[int, float, float, float]
UNUSED: Final[RuleState] = (0, 0.0, 0.0, 0.0)


class Quota(msgspec.Struct, frozen=True):
    """Most requests in any 60 s, requests in any 3,600 s and tokens in any 60 s; 0: no limit."""

    rpm: int = 0
    rph: int = 0
    tpm: int = 0

    @property
    def limits(self) -> tuple[int, int, int]:
        """In the order of every list of rules."""
        return self.rpm, self.rph, self.tpm


class Rule(msgspec.Struct, frozen=True, gc=False):
    """A limit, what is left of it, and the seconds until all of it is free again."""

    limit: int
    remaining: int
    reset: float


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Whether a request may pass, with each rule that has a limit; the others are None.

    `retry_after` is in seconds: when the refused request fits, should nothing else be admitted until then. None where
    it was admitted, and where it never fits for it is larger than the whole limit. For `blocked_for` seconds something
    is used up, so that no request at all can pass. `at` is when, by the embedded store's clock.
    """

    admitted: bool
    rpm: Rule | None = None
    rph: Rule | None = None
    tpm: Rule | None = None
    retry_after: float | None = None
    blocked_for: float = 0.0
    at: int = 0

    @property
    def never_fits(self) -> bool:
        """Whether the request alone is more than a limit allows."""
        return not self.admitted and self.retry_after is None

    @property
    def requests(self) -> Rule | None:
        """The tightest rule on requests: that with the fewest left."""
        if self.rpm is None or self.rph is None:
            return self.rpm or self.rph
        return self.rpm if self.rpm.remaining <= self.rph.remaining else self.rph

    def headers(self) -> list[tuple[str, str]]:
        """X-RateLimit-* of the tightest rule on requests, and OpenAI's x-ratelimit-*."""
        pairs: list[tuple[str, str]] = []
        if (rule := self.requests) is not None:
            limit, remaining = str(rule.limit), str(rule.remaining)
            pairs += (
                ("x-ratelimit-limit", limit),
                ("x-ratelimit-remaining", remaining),
                ("x-ratelimit-reset", str(math.ceil(rule.reset))),
                ("x-ratelimit-limit-requests", limit),
                ("x-ratelimit-remaining-requests", remaining),
                ("x-ratelimit-reset-requests", duration(rule.reset)),
            )
        if (rule := self.tpm) is not None:
            pairs += (
                ("x-ratelimit-limit-tokens", str(rule.limit)),
                ("x-ratelimit-remaining-tokens", str(rule.remaining)),
                ("x-ratelimit-reset-tokens", duration(rule.reset)),
            )
        return pairs

    def after(self, seconds: float) -> Verdict:
        """The same refusal, told so many seconds later."""

        def later(rule: Rule | None) -> Rule | None:
            return rule and Rule(rule.limit, rule.remaining, max(0.0, rule.reset - seconds))

        retry_after = None if self.retry_after is None else max(0.0, self.retry_after - seconds)
        blocked_for = max(0.0, self.blocked_for - seconds)
        return Verdict(self.admitted, later(self.rpm), later(self.rph), later(self.tpm), retry_after, blocked_for)

    def tighter(self, other: Verdict) -> Verdict:
        """Of each rule what the store said that has less left; both admitted the request."""
        return Verdict(True, _less(self.rpm, other.rpm), _less(self.rph, other.rph), _less(self.tpm, other.tpm))


class Store(Protocol):
    """Where use is counted. None: the store is away."""

    async def admit(self, key_id: str, quota: Quota, tokens: int, requests: int) -> Verdict | None:
        """Charge all rules, or none where one of them has too little left."""

    async def usage(self, key_id: str, quota: Quota) -> Verdict | None:
        """What is left; charges nothing."""


def make_verdict(quota: Quota, admitted: bool, states: Sequence[RuleState], at: int = 0) -> Verdict:
    """From what a store found for each rule."""
    (used, free, _, _), (used_hour, free_hour, _, _), (used_tokens, free_tokens, _, _) = states
    rpm = Rule(quota.rpm, max(0, quota.rpm - used), free) if quota.rpm else None
    rph = Rule(quota.rph, max(0, quota.rph - used_hour), free_hour) if quota.rph else None
    tpm = Rule(quota.tpm, max(0, quota.tpm - used_tokens), free_tokens) if quota.tpm else None
    if admitted:
        return Verdict(True, rpm, rph, tpm, at=at)
    fits = [state[2] for state in states]
    rules = zip((rpm, rph, tpm), states, strict=True)
    blocked_for = max(state[3] if rule and not rule.remaining else 0.0 for rule, state in rules)
    return Verdict(False, rpm, rph, tpm, None if min(fits) < 0 else max(fits), blocked_for)


def duration(seconds: float) -> str:
    """As OpenAI writes it: "120ms", "1.2s", "6m0s", "1h0m0s"; never less than it is."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60}m{rest}s"


def _less(one: Rule | None, other: Rule | None) -> Rule | None:
    if one is None or other is None:
        return one or other
    return one if one.remaining <= other.remaining else other
