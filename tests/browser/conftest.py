"""The server of the system tests, for a browser to look at."""

from __future__ import annotations

from tests.system.conftest import server

__all__ = ["server"]
