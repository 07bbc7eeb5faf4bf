"""The original project's load test: 50 users, each at most 10 requests a second. See perf.load_test.

A closed loop: a user who waits asks for nothing. The file has a folder of its own because Locust puts that folder where
Python looks first.
"""

from __future__ import annotations

import itertools
import os
from typing import Final

from locust import FastHttpUser, constant_throughput, task

from perf.texts import original_texts

TEXTS: Final = itertools.cycle(original_texts(50_000))
HEADERS: Final = {"Authorization": f"Bearer {os.environ['EMBEDLANE_API_KEY']}"}


class OriginalUser(FastHttpUser):
    """One user. Locust's faster client, for it has the server's own cores."""

    wait_time = constant_throughput(10)

    @task
    def embed(self) -> None:
        """One text."""
        self.client.post("/v1/embed", json={"input_text": next(TEXTS)}, headers=HEADERS)
