"""Without EMBEDLANE_TRACING an application has no part of it, and with it says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from frontend.app import create_app
from frontend.tracing import open_tracing
from ipc.bundle import Bundle
from ipc.errors import StartError
from tests.frontend.served import KEY, small_bounds

# redis-py imports OpenTelemetry wherever it finds it, so that it is hidden from both here.
START = """
import sys
from pathlib import Path
sys.modules["opentelemetry"] = None
import frontend.__main__
from frontend.app import create_app
from ipc.bundle import load_bundle
from ipc.settings import Settings
app = create_app(Settings(run_dir=sys.argv[1], data_dir=sys.argv[1]), load_bundle(Path(sys.argv[2])), "key")
print(*[middleware.cls.__name__ for middleware in app.user_middleware])
print(*[name for name in sys.modules if name.startswith("frontend.tracing")])
"""


def test_off_there_is_no_middleware_and_opentelemetry_is_not_asked_for(run_dir: Path, bundle: Bundle) -> None:
    command = [sys.executable, "-c", START, str(run_dir), str(bundle.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["Correlation Errors Auth", "frontend.tracing"]


def test_without_its_packages_a_front_end_cannot_start_and_says_what_to_install(
    run_dir: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "frontend.tracing.spans", raising=False)
    monkeypatch.delitem(sys.modules, "frontend.tracing.export", raising=False)
    settings = msgspec.structs.replace(small_bounds(run_dir), tracing=True)
    with pytest.raises(StartError, match=r"extra `tracing` .*: install opentelemetry-sdk and opentelemetry-exporter"):
        create_app(settings, bundle, KEY)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ],
)
def test_what_cannot_be_is_told_at_the_start(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=rf"{name}={value} is not|max_queue_size must .*OTEL_"):
        open_tracing("frontend-0")
