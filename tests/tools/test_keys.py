from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from frontend.keys import KEYS_FILE, create_key, read_keys
from tools.keys import main

ROOT = Path(__file__).parent.parent.parent
WRITERS = 4


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands keep their keys in this test."""
    monkeypatch.setenv("EMBEDLANE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)  # no .env of the checkout
    return tmp_path / "data" / KEYS_FILE


def test_create_prints_the_key_and_nothing_else(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["create", "ci", "--rpm", "600", "--rph", "0"]) == 0
    output = capsys.readouterr()
    assert re.fullmatch(r"el-[A-Za-z0-9_-]{43}\n", output.out)
    secret = output.out.strip()
    assert secret not in output.err
    (key,) = read_keys(path)
    assert key.digest == hashlib.sha256(secret.encode()).hexdigest()
    assert (key.name, key.rpm, key.rph, key.tpm) == ("ci", 600, 0, None)


def test_list_shows_everything_but_the_secrets(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = [create_key(path, "ci", rpm=600, rph=0), create_key(path, "a-longer-name", tpm=1)]
    assert main(["list"]) == 0
    output = capsys.readouterr()
    heading, *rows = (line.split() for line in output.out.splitlines())
    assert heading == ["NAME", "ID", "CREATED", "RPM", "RPH", "TPM"]
    first, second = read_keys(path)
    assert rows == [
        ["ci", first.id, first.created, "600", "no-limit", "default"],
        ["a-longer-name", second.id, second.created, "default", "default", "1"],
    ]
    for hidden in (*secrets, first.digest, second.digest):
        assert hidden not in output.out + output.err


def test_list_of_none(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not path.exists()


def test_revoke(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_key(path, "a")
    create_key(path, "b")
    assert main(["revoke", "a"]) == 0
    assert [key.name for key in read_keys(path)] == ["b"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "here"], "already"),
        (["create", "default"], "'default'"),
        (["create", "a b"], "'a b'"),
        (["create", "x" * 65], "1 to 64"),
        (["create", "a", "--tpm", "-1"], "tpm"),
        (["revoke", "nobody"], "'nobody'"),
        (["revoke", "default"], "EMBEDLANE_API_KEY"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_sentence_and_status_3(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    create_key(path, "here")
    before = path.read_bytes()
    assert main(arguments) == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert says in output.err
    assert output.err.startswith("keys: ")
    assert output.err.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("arguments", [["list"], ["create", "a"], ["revoke", "a"]], ids=str)
def test_a_broken_file_is_told(path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    path.parent.mkdir()
    path.write_text("{")
    assert main(arguments) == 3
    assert KEYS_FILE in capsys.readouterr().err


def test_a_wrong_setting_is_told(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDLANE_DATA_DRI", "x")
    assert main(["list"]) == 3
    assert "EMBEDLANE_DATA_DRI" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["create"], ["create", "a", "--rpm", "many"], ["rename", "a"]], ids=str)
def test_what_is_no_command_is_status_2(path: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert not path.exists()


def test_commands_run_at_once_lose_nothing(path: Path) -> None:
    commands = [[sys.executable, "-m", "tools.keys", "create", f"key-{number}"] for number in range(WRITERS)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for command in commands]
    printed = [process.communicate()[0].strip() for process in running]
    assert [process.returncode for process in running] == [0] * WRITERS
    digests = {key.name: key.digest for key in read_keys(path)}
    assert digests == {
        f"key-{number}": hashlib.sha256(secret.encode()).hexdigest() for number, secret in enumerate(printed)
    }
