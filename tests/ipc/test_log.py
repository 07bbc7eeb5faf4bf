from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from ipc.log import configure_logging, correlation_id


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def test_a_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("engine", "info")
    logging.getLogger("somewhere").info("two\nlines: %s", "é", extra={"texts": 3})
    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "two\nlines: é"
    assert (line["process"], line["logger"], line["level"], line["texts"]) == ("engine", "somewhere", "INFO", 3)
    assert line["time"].endswith("Z")
    assert "correlation_id" not in line


def test_the_correlation_id_is_on_the_line_of_its_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("frontend", "info")
    token = correlation_id.set("abc")
    logging.getLogger("somewhere").warning("hello")
    correlation_id.reset(token)
    assert json.loads(capsys.readouterr().err)["correlation_id"] == "abc"


def test_a_traceback_stays_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("engine", "info")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("somewhere").exception("failed")
    assert "ValueError: no" in json.loads(capsys.readouterr().err)["exc_info"]


def test_less_than_the_level_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("engine", "warning")
    logging.getLogger("somewhere").info("quiet")
    assert not capsys.readouterr().err
