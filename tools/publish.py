"""Last stage of prepare: the manifest, one writer at a time, and a folder that appears whole, in one rename."""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ipc.bundle import GRAPHS, TOKENIZER, FileRecord, Layout, Loss, Manifest, Parity, Precision, hash_file
from ipc.liveness import open_lock
from tools.fetch import Fetched, Say

if TYPE_CHECKING:
    from tools.checkpoint import Checkpoint
    from tools.foreign import Foreign

# To be raised where the same model is built into a better graph, so that bundles in place are made again.
# 1: a sum and its norm are operators of their own on the CPU. 2: texts of mixed lengths in a batch there.
BUILDER = 2


def describe(
    fetched: Fetched,
    checkpoint: "Checkpoint | Foreign",
    folder: Path,
    parity: Parity,
    losses: dict[str, Loss],
    layouts: Mapping[Precision, Layout],
) -> Manifest:
    """The manifest of the graphs that are in the folder; `layouts` are theirs."""
    graphs: dict[Precision, str] = {precision: name for precision, name in GRAPHS.items() if (folder / name).exists()}
    return Manifest(
        id=fetched.id,
        revision=fetched.revision,
        architecture=checkpoint.architecture,
        dim=checkpoint.dim,
        max_tokens=checkpoint.max_tokens,
        vocab_size=checkpoint.vocab_size,
        pooling=checkpoint.pooling,
        normalize=checkpoint.normalize,
        files={
            name: FileRecord(sha256=hash_file(folder / name), bytes=(folder / name).stat().st_size)
            for name in (TOKENIZER, *graphs.values())
        },
        precisions={str(precision): name for precision, name in graphs.items()},
        parity=parity,
        layouts={precision: layouts[precision] for precision in graphs},
        losses=losses,
        builder=BUILDER,
        prompts=checkpoint.prompts,
        default_prompt_name=checkpoint.default_prompt_name,
    )


@contextmanager
def locked(target: Path, say: Say) -> Iterator[None]:
    """Hold the right to write `target`. The lock goes with the process; its file stays, as removing it would race."""
    with os.fdopen(open_lock(hidden(target, "lock")), "rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting    for another process that prepares {target}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def publish(partial: Path, target: Path) -> None:
    """Put the finished folder into its place. Processes that have the old one's files open keep them."""
    for path in (*partial.iterdir(), partial):
        _flush(path)
    old = hidden(target, "old")
    remove(old)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    _flush(target.parent)
    remove(old)


def _flush(path: Path) -> None:
    """Have a file's content, or a folder's names, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hidden(target: Path, purpose: str) -> Path:
    """A name beside `target` for what is not to be seen."""
    return target.parent / f".{target.name}.{purpose}"


def remove(*folders: Path) -> None:
    """Remove folders with all that is in them; those that are not there are no error."""
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
