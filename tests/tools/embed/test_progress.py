from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tools.embed.journal import Mark
from tools.embed.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, quiet: bool = False) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    progress = Progress(Mark(rows=100, texts=100, position=1000), 4000, lambda: "waits 3 s", quiet=quiet)
    progress.on_mark(Mark(rows=150, texts=150, position=2000))
    progress.on_texts(100)
    progress.close()
    return stream.getvalue()


def test_a_terminal_shows_rate_share_and_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(monkeypatch, Terminal())
    # A half of the input had 150 texts.
    assert "200/300" in said
    assert "texts/s" in said
    assert "waits 3 s" in said


def test_nothing_is_shown_without_one_or_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO()) == shown(monkeypatch, Terminal(), quiet=True) == ""


def test_the_summary_tells_all_that_is_to_be_known() -> None:
    progress = Progress(Mark(rows=1000, texts=1000), None, str, quiet=True)
    said = progress.summary(Mark(rows=2500, texts=2500, truncated=2, bad=1), Path("out.npy"))
    assert said.startswith("embed: out.npy: 2,500 texts, 1,000 of them by earlier runs, 0.0 s, ")
    assert said.endswith(" texts/s, 2 truncated, 1 rows without a vector")
    several = Progress(Mark(), None, str, quiet=True).summary(Mark(rows=2, texts=5), Path("o"))
    assert "5 texts in 2 rows" in several
