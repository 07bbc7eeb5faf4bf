from __future__ import annotations

from pathlib import Path

import pytest

from ipc.choice import Choice, as_chosen, read_choice, write_choice
from ipc.errors import StartError
from ipc.settings import Settings


def test_what_was_chosen_stands_in_for_the_settings_until_it_is_taken_back(tmp_path: Path) -> None:
    settings = Settings(run_dir=str(tmp_path), model="one", checkpoint="weights", lanes=3)
    assert as_chosen(settings) == settings
    write_choice(tmp_path, Choice("two"))
    chosen = as_chosen(settings)
    assert (chosen.model, chosen.checkpoint, chosen.lanes) == ("two", "", 3)
    write_choice(tmp_path, Choice("three", "other weights"))
    assert read_choice(tmp_path) == Choice("three", "other weights")
    write_choice(tmp_path, None)
    assert as_chosen(settings) == settings
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_private_and_replaced_as_a_whole(tmp_path: Path) -> None:
    # What a swap that was killed left.
    (tmp_path / "model.new").write_text("half")
    write_choice(tmp_path, Choice("two"))
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_none_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(StartError, match=r"model\.json cannot be read"):
        read_choice(tmp_path)
