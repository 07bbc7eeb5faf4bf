from __future__ import annotations

import pytest

from tools.processes import Process, cannot_go_on

ENGINE = Process("engine", "engine", 10, "RUNNING", 0)
FRONTENDS = [Process("frontend", str(n), 20 + n, "RUNNING", 0) for n in range(2)]


def ended(process: Process, status: int = 3) -> Process:
    return Process(process.group, process.name, 0, "EXITED", status)


@pytest.mark.parametrize(
    ("processes", "over"),
    [
        ([ENGINE, *FRONTENDS], False),
        ([ended(ENGINE), *FRONTENDS], True),
        ([ended(ENGINE, 1), *FRONTENDS], False),
        ([ENGINE, ended(FRONTENDS[0]), FRONTENDS[1]], False),
        ([ENGINE, ended(FRONTENDS[0]), ended(FRONTENDS[1], 0)], True),
        ([ENGINE, *map(ended, FRONTENDS)], True),
        # The successor that a swap would have started.
        ([ENGINE, Process("engine", "1", 0, "EXITED", 3), *FRONTENDS], False),
        ([Process("engine", "0", 0, "STOPPED", 0), Process("engine", "1", 0, "EXITED", 3), *FRONTENDS], True),
        ([Process("engine", "engine", 0, "STOPPED", 0), *FRONTENDS], False),
        ([], False),
    ],
)
def test_a_server_ends_where_a_whole_group_can_never_start(processes: list[Process], over: bool) -> None:
    assert cannot_go_on(processes) is over
