from __future__ import annotations

from pathlib import Path

import pytest

from ipc.errors import StartError
from ipc.settings import DEFAULT_MODEL, SECRETS, Settings, load_settings, setting_names

NO_FILE = Path("/nonexistent/.env")


def load(**environment: str) -> Settings:
    return load_settings(environment, NO_FILE)


def test_defaults() -> None:
    settings = load()
    assert (settings.host, settings.port, settings.device, settings.model) == (
        "127.0.0.1",
        8000,
        "auto",
        DEFAULT_MODEL,
    )
    assert settings.frontend_count >= 2


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("EMBEDLANE_PORT=8001\nEMBEDLANE_HOST=0.0.0.0\nOTHER=1\n")
    settings = load_settings({"EMBEDLANE_PORT": "8002"}, tmp_path / ".env")
    assert (settings.host, settings.port) == ("0.0.0.0", 8002)  # noqa: S104 - read, not bound


def test_an_empty_value_means_not_set() -> None:
    assert load(EMBEDLANE_PORT="").port == 8000


def test_the_table_is_frozen_and_does_not_show_its_secret() -> None:
    settings = load(EMBEDLANE_API_KEY="hush")
    with pytest.raises(AttributeError):
        settings.port = 1  # type: ignore[misc]
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("EMBEDLANE_PROT", "1", "EMBEDLANE_PROT is no setting"),
        ("EMBEDLANE_PORT", "eighty", "EMBEDLANE_PORT is not valid: expected `int`"),
        ("EMBEDLANE_PORT", "70000", "EMBEDLANE_PORT is not valid: expected `int` <= 65535"),
        ("EMBEDLANE_DEVICE", "tpu", "choose one of 'auto', 'cpu', 'cuda'"),
        ("EMBEDLANE_RUNNER", "onxx", "EMBEDLANE_RUNNER is not valid: choose onnx or torch"),
        ("EMBEDLANE_PRECISION", "fp64", "choose one of 'auto', 'fp32', 'int8', 'fp16'"),
        ("EMBEDLANE_MAX_WAIT_MS", "-1", "EMBEDLANE_MAX_WAIT_MS is not valid"),
        ("EMBEDLANE_CACHE_MB", "-1", "EMBEDLANE_CACHE_MB is not valid: expected `int` >= 0"),
        ("EMBEDLANE_CACHE_TTL_S", "0", "EMBEDLANE_CACHE_TTL_S is not valid: expected `int` >= 1"),
        ("EMBEDLANE_HOST", "::1", "IPv6"),
        ("EMBEDLANE_RUN_DIR", "/" + "x" * 90, "EMBEDLANE_RUN_DIR is longer"),
        ("EMBEDLANE_SLAB_ROWS", "16", "EMBEDLANE_SLAB_ROWS is too small"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: str, says: str) -> None:
    with pytest.raises(StartError) as error:
        load(**{name: value})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_name_in_the_file_is_told_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("EMBEDLANE_WORKERS=4\n")
    with pytest.raises(StartError, match="EMBEDLANE_WORKERS"):
        load_settings({}, tmp_path / ".env")


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_be_in_a_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hush\n")
    variable = f"EMBEDLANE_{name.upper()}"
    assert getattr(load(**{f"{variable}_FILE": str(file)}), name) == "hush"
    assert getattr(load(**{f"{variable}_FILE": str(file), variable: "given"}), name) == "given"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff"])
def test_a_file_without_its_secret_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(
        StartError, match=r"^EMBEDLANE_API_KEY_FILE names \S+/secret, which cannot be read \(.+\): .+\.$"
    ):
        load(EMBEDLANE_API_KEY_FILE=str(file))


def test_only_secrets_may_be_in_files() -> None:
    with pytest.raises(StartError, match="EMBEDLANE_PORT_FILE is no setting"):
        load(EMBEDLANE_PORT_FILE="/nonexistent")


def test_every_setting_has_a_help_text() -> None:
    assert all(setting_names().values())


def test_two_servers_on_two_ports_do_not_share_a_run_dir() -> None:
    assert load(EMBEDLANE_PORT="8001").run_path != load(EMBEDLANE_PORT="8002").run_path
