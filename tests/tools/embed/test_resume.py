"""A run that ends anywhere goes on to the same bytes."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.errors import StartError
from perf.texts import make_texts
from tests.tools.embed.test_formats import jsonl, parquet
from tests.tools.embed.words import run
from tools.embed import readers
from tools.embed.journal import Journal, Mark, beside
from tools.embed.local import Local

KEEP = {"out.npy": (), "out.jsonl": ("n",), "out.parquet": ("n", "text")}
TEXTS = make_texts("short", 14)


def whole(backend: Local, folder: Path, source: str, out: str) -> bytes:
    run(backend, folder / source, folder / out, keep=KEEP[out])
    return (folder / out).read_bytes()


@pytest.mark.parametrize("source", ["in.jsonl", "in.parquet"])
@pytest.mark.parametrize("out", KEEP)
def test_from_whatever_is_on_the_disk_at_any_moment(
    backend: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str
) -> None:
    (tmp_path / source).write_bytes({"in.jsonl": jsonl, "in.parquet": parquet}[source](TEXTS))
    expected = whole(backend, tmp_path, source, out)
    states: list[Path] = []

    def look(descriptor: int, sync: object = os.fsync) -> None:
        """Keep what there is, as a kill would leave it; and with torn ends, as a loss of power may."""
        sync(descriptor)  # type: ignore[operator]
        for torn in ("", "journal", "partial"):
            state = tmp_path / f"state-{len(states)}"
            state.mkdir()
            states.append(state)
            for path in tmp_path.glob(f"{out}*"):
                shutil.copy2(path, state)
            if torn and (file := state / f"{out}.{torn}").exists():
                with file.open("ab") as end:
                    end.write(b"\x00torn")

    (tmp_path / out).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", look)
        patch.setattr(os, "fsync", look)
        assert whole(backend, tmp_path, source, out) == expected
    assert len(states) >= 3 * (2 * len(TEXTS) // 4 + 3)
    for state in states:
        shutil.copy2(tmp_path / source, state)
        # There may have been a loss between the name and the end: then all is done.
        if not (state / out).exists() or beside(state / out, "partial").exists():
            assert whole(backend, state, source, out) == expected
        else:
            with pytest.raises(StartError, match="is there already"):
                whole(backend, state, source, out)
        assert {path.name for path in state.iterdir()} <= {source, out, f"{out}.partial"}


def begin(backend: Local, folder: Path) -> Path:
    """An output that is not whole, for its last row is bad."""
    (folder / "in.txt").write_text("\n".join([*TEXTS, "tornado"]))
    with pytest.raises(StartError, match=r"^Row 15"):
        run(backend, folder / "in.txt", folder / "out.npy")
    return folder / "out.npy"


def test_another_input_or_option_or_model_is_refused(backend: Local, tmp_path: Path) -> None:
    out = begin(backend, tmp_path)
    with pytest.raises(StartError, match="begun with another options"):
        run(backend, tmp_path / "in.txt", out, window=5)
    (tmp_path / "in.txt").write_text("\n".join([*TEXTS, "calm"]))
    with pytest.raises(StartError, match=r"begun with another input .*--restart"):
        run(backend, tmp_path / "in.txt", out)
    assert run(backend, tmp_path / "in.txt", out, restart=True).rows == 15
    with pytest.raises(StartError, match="is there already"):
        run(backend, tmp_path / "in.txt", out)
    assert run(backend, tmp_path / "in.txt", out, restart=True).rows == 15


def test_two_processes_do_not_write_the_same_output(tmp_path: Path) -> None:
    first = Journal.open(tmp_path / "out", {}, b"", restart=False)
    with pytest.raises(StartError, match="Another process writes"):
        Journal.open(tmp_path / "out", {}, b"", restart=False)
    first.close()
    Journal.open(tmp_path / "out", {}, b"", restart=False).close()


def test_rows_that_are_gone_are_said_to_be(backend: Local, tmp_path: Path) -> None:
    out = begin(backend, tmp_path)
    beside(out, "partial").write_bytes(b"")
    with pytest.raises(StartError, match="shorter than its journal says"):
        run(backend, tmp_path / "in.txt", out)


def test_skipped_rows_are_not_forgotten(backend: Local, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n\nb\nc\nd\ntornado\n" + "long " * 300)
    with pytest.raises(StartError, match=r"^Row 2"):
        run(backend, tmp_path / "in.txt", tmp_path / "out.npy", truncate=False)
    assert run(backend, tmp_path / "in.txt", tmp_path / "out.npy", truncate=False, skip_bad=True).bad == 3


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 400), wrong=st.integers(0, 255))
def test_a_damaged_journal_is_read_as_far_as_it_is_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int, wrong: int
) -> None:
    out = tmp_path_factory.mktemp("journal") / "out"
    journal = Journal.open(out, {"input": "x"}, b"head", restart=False)
    marks = [journal.mark]
    for rows in (1, 2, 3):
        journal.commit([b"row" * rows], Mark(rows=rows))
        marks.append(journal.mark)
    journal.close()
    log = beside(out, "journal").read_bytes()
    first_two = log.index(b"\n", log.index(b"\n") + 1) + 1
    at = min(first_two + cut, len(log) - 1)
    beside(out, "journal").write_bytes(log[:at] + bytes([wrong]))
    journal = Journal.open(out, {"input": "x"}, b"head", restart=False)
    lines = log[:at].count(b"\n") - 2 + (bytes([wrong]) == log[at : at + 1] == b"\n")
    assert journal.mark == marks[lines]
    assert beside(out, "partial").read_bytes() == b"head" + b"".join(b"row" * n for n in range(1, lines + 1))
    journal.commit([b"more"], Mark(rows=9))
    journal.close()
    again = Journal.open(out, {"input": "x"}, b"head", restart=False)
    again.close()
    assert again.mark == journal.mark


def test_standard_input_is_read_but_not_again(backend: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def give(text: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    give(b"a\ntornado\n")
    with pytest.raises(StartError, match=r"^Row 2"):
        run(backend, Path("-"), tmp_path / "out.npy", input="lines")
    give(b"a\nb\n")
    with pytest.raises(StartError, match="cannot be read a second time"):
        run(backend, Path("-"), tmp_path / "out.npy", input="lines")
    assert run(backend, Path("-"), tmp_path / "out.npy", input="lines", restart=True).rows == 2


def test_an_input_that_is_changed_meanwhile_is_noticed(
    backend: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("\n".join(TEXTS))
    commit = Journal.commit

    def change(self: Journal, data: Sequence[bytes | memoryview], mark: Mark) -> None:
        commit(self, data, mark)
        os.utime(source)

    monkeypatch.setattr(Journal, "commit", change)
    with pytest.raises(StartError, match="was changed while it was read"):
        run(backend, source, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_a_line_without_end_does_not_fill_the_memory(
    backend: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "MOST_LINE_BYTES", 1 << 20)
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a"}\n' + b"x" * (3 << 20))
    with pytest.raises(StartError, match="more than 1 MiB at byte 14"):
        run(backend, tmp_path / "in.jsonl", tmp_path / "out.npy")
