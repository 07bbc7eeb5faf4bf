"""How fast the lanes run texts, from the batches that have ended."""

from __future__ import annotations

# What is left of a batch's weight with each later one, so that about the last twenty count.
KEEP = 0.95
# A batch that was stopped, or took the machine's stall, counts as so many times slower than expected and not more.
MOST_SURPRISE = 4
# Of the rate, what bulk is thought to get at least: a batch every half second is more than that on a CPU.
LEAST_BULK = 1 / 16
# How long the batch took that a rate given at first is taken for.
FIRST_NS = 50_000_000


class Rate:
    """Tokens per second of all lanes together, as if all of them worked; `first` is what it is thought to be, if known.

    Only batches that left others waiting should be counted: what a run costs whatever is in it would make one of few
    texts look slow.
    """

    def __init__(self, lanes: int, first: int = 0) -> None:
        self._lanes = lanes
        # In place of a batch.
        self._ns = FIRST_NS if first else 0.0
        self._tokens = first * self._ns / 1e9 / lanes if first else 0.0

    def after(self, tokens: int, compute_ns: int) -> int:
        """The rate, with a batch of so many tokens that took a lane so long counted in."""
        if self._tokens:
            compute_ns = min(compute_ns, round(MOST_SURPRISE * tokens * self._ns / self._tokens))
        self._tokens = self._tokens * KEEP + tokens
        self._ns = self._ns * KEEP + max(1, compute_ns)
        return round(self._lanes * self._tokens * 1e9 / self._ns)


class BulkRate:
    """Tokens of bulk per second beside what is interactive: what it got while some waited all the time, or else what
    is left. Told so often that a span of `began` (ns) until now has several batches.
    """

    def __init__(self) -> None:
        self.began = 0
        self._got = 0.0

    def after(self, now: int, rate: int, *, interactive: int, bulk: int, waited: bool) -> int:
        """The rate, of `rate` for all, with a span counted in in which so many tokens of each ran."""
        seconds, self.began = (now - self.began) / 1e9, now
        if waited:
            self._got = (self._got + bulk / seconds) / 2 if self._got else bulk / seconds
        else:
            self._got = 0.0
        left = self._got if waited else rate - interactive / seconds
        return round(min(rate, max(LEAST_BULK * rate, left)))
