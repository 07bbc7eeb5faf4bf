"""README and docs are part of the product: what they say of the code is what the code says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from frontend.app import ROUTES
from ipc.settings import PREFIX, Settings, setting_names
from tools.families import CONFIGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
GRPC = (ROOT / "docs" / "grpc.md").read_text()
MODELS = (ROOT / "docs" / "models.md").read_text()


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    default = getattr(Settings(), name.removeprefix(PREFIX).lower())
    shown = f"`{default}` " if default != "" else ""
    assert f"| `{name}` | {shown}| {setting_names()[name]} |" in README


def test_no_setting_is_documented_that_is_gone() -> None:
    documented = [line.split("`")[1] for line in README.splitlines() if line.startswith(f"| `{PREFIX}")]
    assert documented == list(setting_names())


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_route_is_documented(route: object) -> None:
    for method in route.methods - {"HEAD"}:  # type: ignore[attr-defined]
        name = f"`{method} {route.path}`"  # type: ignore[attr-defined]
        assert name in README
        assert name in API


def test_every_architecture_that_is_built_is_documented() -> None:
    built = MODELS.partition("## Built here")[2].partition("##")[0]
    assert [name for name in CONFIGS if f"`{name}`" not in built] == []


def test_what_grpc_needs_is_documented() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.search(r"pip install (grpcio .+)", GRPC)
    assert named is not None
    assert set(named[1].split()) == {each.partition(">")[0] for each in extras["grpc"]}
