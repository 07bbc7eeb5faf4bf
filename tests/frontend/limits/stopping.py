"""A process that stops itself in the middle of its first decision, with the lock held; it tells what it decided then.

python -m tests.frontend.limits.stopping FOLDER
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from frontend.limits.embedded import EmbeddedWindows, boot_clock
from frontend.limits.quota import Quota


def stopping_clock() -> int:
    now = boot_clock()
    os.kill(os.getpid(), signal.SIGSTOP)
    return now


async def main() -> None:
    store = EmbeddedWindows(Path(sys.argv[1]), clock=stopping_clock)
    verdict = await store.admit("key", Quota(rpm=100), 1)
    print(verdict.admitted, flush=True)
    store.close()


if __name__ == "__main__":
    asyncio.run(main())
