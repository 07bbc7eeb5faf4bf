"""How fast the lanes run texts, from the batches that have ended."""

from __future__ import annotations

# What is left of a batch's weight with each later one, so that about the last twenty count.
KEEP = 0.95
# A batch that was stopped, or took the machine's stall, counts as so many times slower than expected and not more.
MOST_SURPRISE = 4


class Rate:
    """Tokens per second of all lanes together, as if all of them worked."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._tokens = self._ns = 0.0

    def after(self, tokens: int, compute_ns: int) -> int:
        """The rate, with a batch of so many tokens that took a lane so long counted in."""
        if self._tokens:
            compute_ns = min(compute_ns, round(MOST_SURPRISE * tokens * self._ns / self._tokens))
        self._tokens = self._tokens * KEEP + tokens
        self._ns = self._ns * KEEP + max(1, compute_ns)
        return round(self._lanes * self._tokens * 1e9 / self._ns)
