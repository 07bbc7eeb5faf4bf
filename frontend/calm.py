"""Loads a front end's code without taking a core from those that serve: to be imported first.

Loading it is three quarters of a start, 0.4 s of CPU time. What has lowered its priority needs privileges to raise it,
but on Linux a priority is a thread's own: so a thread of low priority does the work, and the main thread waits for it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from importlib import import_module
from typing import Final

# By the kernel's weights a quarter of a core that others want for themselves. At 19 it would be a seventieth.
NICENESS: Final = 5


def import_calmly(name: str) -> None:
    """Have a module, and all that it imports, loaded in a thread of low priority."""
    thread = threading.Thread(target=_load, args=(name,), name="imports")
    thread.start()
    thread.join()


def _load(name: str) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    # What fails here fails again where it is asked for, and is told there.
    with contextlib.suppress(Exception):
        import_module(name)


import_calmly("frontend.app")
