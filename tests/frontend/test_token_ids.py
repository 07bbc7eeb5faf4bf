from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiktoken.registry
from hypothesis import given
from hypothesis import strategies as st

from frontend.app import create_app
from frontend.token_ids import accept, load_cl100k
from ipc.bundle import Bundle
from ipc.errors import InvalidRequest, StartError
from tests.frontend.served import small_bounds


@given(lists=st.lists(st.lists(st.integers(), max_size=12), max_size=4))
def test_what_is_taken_is_what_was_sent(lists: list[list[int]]) -> None:
    is_fine = all(1 <= len(ids) <= 8 and all(0 <= i < 100 for i in ids) for ids in lists)
    if not is_fine:
        with pytest.raises(InvalidRequest, match=r"`input`|token ids"):
            accept(lists, vocab_size=100, max_tokens=8)
        return
    taken = accept(lists, vocab_size=100, max_tokens=8)
    assert [ids.tolist() for ids in taken] == lists
    assert all(ids.dtype == np.int32 for ids in taken)


def test_without_the_package_the_start_stops(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, run_dir: Path) -> None:
    settings = small_bounds(run_dir)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(StartError, match="install the extra `cl100k`"):
        create_app(msgspec.structs.replace(settings, token_input="cl100k"), bundle, "key")  # noqa: S106 - no password
    create_app(settings, bundle, "key")


def test_without_the_vocabulary_the_start_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    # What this process has loaded before is forgotten for this test.
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    with pytest.raises(StartError, match="point TIKTOKEN_CACHE_DIR to a folder that holds it"):
        load_cl100k()
