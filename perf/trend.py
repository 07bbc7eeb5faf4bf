"""Whether something that was sampled for a while stayed as it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

# How much of its ends a series' first and last value are medians of.
ENDS: Final = 5
# From the median distance to the middle to the standard deviation, for normal noise.
MAD_TO_SIGMA: Final = 1.4826
MOST_NOISE: Final = 2.0
MOST_PART: Final = 0.01


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """A series in its own unit: medians of its first and last fifth; `growth` is the rise of its line (least squares)
    from end to end, `noise` the standard deviation around that line by the median distance, in which a step that comes
    late is no noise, `allowed` the most growth that is none.

    `allowed` is the largest of twice the noise, a hundredth of the median, and a floor. The noise is that of the
    values and not the slope's own standard error: neighbouring samples of a heap are alike, and the error would come
    out far too small. The hundredth and the floor are what allocators move about in a process that does the same
    all the time; they hide little, for in an hour at 600 requests a second a front end that kept the smallest object
    there is, 16 bytes, for each of its million requests would grow by 16 MiB. What grows with time alone, and by less
    than that, is not seen.

    Least squares, and not a slope that outliers cannot move: what is sampled are medians already, and memory that
    was lost in one step, late, must count.
    """

    first: float
    last: float
    growth: float
    noise: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """Neither up nor down: what falls has not come to rest, and what it hides is not known."""
        return abs(self.growth) <= self.allowed

    @property
    def is_no_more(self) -> bool:
        """For what is counted, and may as well become fewer."""
        return self.last - self.first <= self.allowed


def find_trend(times: Sequence[float], values: Sequence[float], floor: float) -> Trend:
    """Of two values or more; `floor` is the unit's own least growth that counts."""
    x, y = np.array(times), np.array(values)
    x = x - x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    away = np.abs(y - slope * x - np.median(y - slope * x))
    noise = MAD_TO_SIGMA * float(np.median(away))
    end = max(1, len(y) // ENDS)
    return Trend(
        first=float(np.median(y[:end])),
        last=float(np.median(y[-end:])),
        growth=slope * float(x[-1] - x[0]),
        noise=noise,
        allowed=max(MOST_NOISE * noise, MOST_PART * float(np.median(y)), floor),
    )
