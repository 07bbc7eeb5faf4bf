"""Which model the next engine serves, where `python -m tools.swap` chose another than the settings name.

A file in the run directory: it lives as long as the server, and whatever process starts meanwhile follows it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ipc.errors import StartError
from ipc.settings import Settings

_FILE = "model.json"


class Choice(msgspec.Struct, frozen=True):
    """A bundle's folder, and the folder with its weights where the runner is torch."""

    model: str
    checkpoint: str = ""


def write_choice(run_dir: Path, choice: Choice | None) -> None:
    """Put a choice in place of the last one, all at once; None goes back to what the settings say."""
    path = run_dir / _FILE
    if choice is None:
        path.unlink(missing_ok=True)
        return
    new = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(choice))
    new.rename(path)


def read_choice(run_dir: Path) -> Choice | None:
    """What was chosen, if anything was. Raises StartError for a file that cannot be read."""
    path = run_dir / _FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Choice)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise StartError(f"{path} cannot be read ({error}): remove it, or swap again.") from None


def as_chosen(settings: Settings) -> Settings:
    """The settings with the chosen model in place of their own. Raises StartError."""
    choice = read_choice(settings.run_path)
    if choice is None:
        return settings
    return msgspec.structs.replace(settings, model=choice.model, checkpoint=choice.checkpoint)
