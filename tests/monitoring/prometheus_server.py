"""A real Prometheus with the configuration of `monitoring/`, and its answers. No wheel carries one: it is Debian's."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from perf.stack import ROOT, free_port

MONITORING = ROOT / "monitoring"
START_SECONDS = 30
STEP_SECONDS = 1
Values = dict[tuple[tuple[str, str], ...], list[float]]


def binary(name: str) -> str:
    """Path of `prometheus` or `promtool`. Raises RuntimeError with what to do where there is none."""
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"There is no {name} on this machine: on Debian and Ubuntu, apt-get install prometheus.")
    return found


def configure(folder: Path, port: int, key: str) -> Path:
    """The committed configuration for one server on this port, with the key's lines taken in and every second."""
    for name in ("alerts.yml", "prometheus.yml", "targets.yml"):
        shutil.copy(MONITORING / name, folder)
    path = folder / "prometheus.yml"
    changed = path.read_text()
    for old, new in (
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("scrape_timeout: 4s", "scrape_timeout: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ("    # authorization:\n    #   credentials_file:", "    authorization:\n      credentials_file:"),
    ):
        assert changed.count(old) == 1, old
        changed = changed.replace(old, new)
    path.write_text(changed)
    (folder / "embedlane-key").write_text(key)
    targets = folder / "targets.yml"
    assert "127.0.0.1:8000" in targets.read_text()
    targets.write_text(targets.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    return path


class Prometheus:
    """One server on a free port, its data in `folder`; a context manager."""

    def __init__(self, configuration: Path, folder: Path) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._log = folder / "prometheus.log"
        self._command = [
            binary("prometheus"),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        self.began = 0.0
        self.ended = 0.0

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        give_up = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self._process.kill()
                raise RuntimeError(f"Prometheus is not ready:\n{self._log.read_text()}")
            time.sleep(0.02)
        self.began = time.time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(START_SECONDS)

    def get(self, path: str, **parameters: str | float) -> Any:
        """The `data` of an answer of its API."""
        body = urllib.parse.urlencode(parameters).encode()
        query = f"?{body.decode()}" if parameters else ""
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}{query}", timeout=30) as answer:  # noqa: S310 - ours
            return json.loads(answer.read())["data"]

    def now(self, expr: str) -> list[float]:
        """The finite values of an expression at this moment."""
        found = self.get("query", query=expr)["result"]
        return [value for series in found if math.isfinite(value := float(series["value"][1]))]

    def over_the_run(self, expr: str) -> Values:
        """The finite values of each series of an expression, each second from `began` to `ended`."""
        # The last moment is one of them.
        start = self.ended - (self.ended - self.began) // STEP_SECONDS * STEP_SECONDS
        try:
            found = self.get("query_range", query=expr, start=start, end=self.ended, step=STEP_SECONDS)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expr}\n{error.read().decode()}") from None
        values = {
            tuple(sorted(series["metric"].items())): [
                value for _, text in series["values"] if math.isfinite(value := float(text))
            ]
            for series in found["result"]
        }
        return {labels: finite for labels, finite in values.items() if finite}

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:  # noqa: S310 - our own http URL
                return bool(answer.status == 200)
        except OSError:
            return False
