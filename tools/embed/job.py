"""One input, one output: what the options name is opened, and windows go from one to the other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from ipc.errors import StartError
from tools.embed.batch import BatchWriter, requests
from tools.embed.journal import Journal, Mark, beside
from tools.embed.parquet import ParquetReader, ParquetWriter
from tools.embed.pipeline import Pipeline
from tools.embed.progress import Progress
from tools.embed.readers import Bytes, CsvReader, LineReader, json_lines, plain
from tools.embed.window import Backend, Reader, Terms, Window, windows
from tools.embed.writers import EMBEDDING, JsonlWriter, NpyWriter, Writer

Input = Literal["lines", "jsonl", "csv", "parquet", "openai"]
Output = Literal["npy", "jsonl", "parquet", "openai"]

STDIN: Final = "-"
INPUTS: Final[dict[str, Input]] = {
    ".txt": "lines",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
OUTPUTS: Final[dict[str, Output]] = {".npy": "npy", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
# Rows that are written and marked together, hence the most that a kill costs; and the texts that are sorted by length.
WINDOW_ROWS: Final = 4096
HASHED_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is to be done. `source` is a path or STDIN; formats that are None go by the names' ends."""

    source: str
    out: Path
    input: Input | None = None
    output: Output | None = None
    text: str = "text"
    keep: Sequence[str] = ()
    prompt: str | None = None
    truncate: bool = True
    skip_bad: bool = False
    window: int = WINDOW_ROWS
    restart: bool = False
    quiet: bool = False

    @property
    def path(self) -> Path | None:
        """Of the input; None for standard input."""
        return None if self.source == STDIN else Path(self.source)


@dataclass(frozen=True)
class Model:
    """What answers in OpenAI's batch format say and allow: the model's name, and the most texts of a request."""

    name: str
    most_texts: int


def embed(options: Options, backend: Backend, model: Model) -> tuple[Mark, str]:
    """Do it, or what is left of it; gives the last mark and a line for people. Raises StartError, OSError."""
    input_format, output_format = formats(options)
    if options.prompt is not None and options.prompt not in backend.prompts:
        there = ", ".join(sorted(backend.prompts)) or "none"
        raise StartError(f"--prompt {options.prompt} is no prompt of the model; there are: {there}.")
    reader = open_reader(options, input_format, backend, model)
    writer = open_writer(options, output_format, reader, backend, model)
    identity = {"input": identify(options.path), **backend.identity, "options": _described(options)}
    if options.path is None and not options.restart and beside(options.out, "journal").exists():
        raise StartError("Standard input cannot be read a second time, so nothing can be resumed: give --restart.")
    journal = Journal.open(options.out, identity, writer.head, restart=options.restart)
    try:
        if journal.mark.bad and not options.skip_bad and not reader.has_requests:
            raise StartError(f"{journal.mark.bad} bad rows were skipped before: give --skip-bad again, or --restart.")
        before = journal.mark
        progress = Progress(before, reader.size, lambda: backend.status, quiet=options.quiet)
        try:
            if not before.is_done:
                _run(options, reader, writer, backend, journal, progress)
                if identify(options.path) != identity["input"]:
                    raise StartError(f"{options.source} was changed while it was read: give --restart.")
                journal.finish_reading()
        finally:
            progress.close()
        journal.publish(writer.finish(journal.partial, beside(options.out, "partial"), journal.mark.rows))
    finally:
        journal.close()
    return journal.mark, progress.summary(journal.mark, options.out)


def _run(
    options: Options, reader: Reader, writer: Writer, backend: Backend, journal: Journal, progress: Progress
) -> None:
    mark = journal.mark
    with Pipeline(windows(reader, mark.rows, mark.position, options.window), backend) as pipeline:
        for window in pipeline.results(progress.on_texts):
            if not options.skip_bad and not reader.has_requests:
                _refuse_bad(window)
            journal.commit(writer.data(window), _after(journal.mark, window))
            progress.on_mark(journal.mark)


def _after(mark: Mark, window: Window) -> Mark:
    return Mark(
        rows=window.first + len(window.rows),
        position=window.position,
        texts=mark.texts + len(window.texts),
        truncated=mark.truncated + window.truncated,
        bad=mark.bad + len(window.bad()),
    )


def _refuse_bad(window: Window) -> None:
    for number in window.bad():
        fault = window.rows[number].fault
        assert fault is not None, "that is what makes it bad"
        raise StartError(
            f"Row {window.first + number + 1} of the input (from 1): {fault.reason}. Correct it, or give --skip-bad; "
            "rows before it are kept."
        )


def formats(options: Options) -> tuple[Input, Output]:
    """Those that are named, or that the names' ends tell. Raises StartError."""
    given = options.input or (INPUTS.get(options.path.suffix.lower()) if options.path else None)
    if given is None:
        raise StartError(f"What {options.source} holds is not known: give --from {_choices(Input)}.")
    if options.path is None and given == "parquet":
        raise StartError("Parquet cannot be read from standard input: name a file.")
    if "openai" in {given, options.output}:
        if given != "openai" or options.output not in {None, "openai"} or options.keep:
            raise StartError(
                "OpenAI's batch format goes in and comes out: give --from openai, and neither --to nor --keep."
            )
        return given, "openai"
    output = options.output or OUTPUTS.get(options.out.suffix.lower())
    if output is None:
        raise StartError(f"What {options.out} is to be is not known: give --to {_choices(Output)}.")
    if options.keep and output == "npy":
        raise StartError("A .npy file holds vectors alone: name a .parquet or .jsonl output for --keep.")
    if EMBEDDING in options.keep:
        raise StartError(f"--keep {EMBEDDING} would be written over: rename that field.")
    return given, output


def open_reader(options: Options, format_: Input, backend: Backend, model: Model) -> Reader:
    """The input. Raises StartError, OSError."""
    terms, path = Terms(options.truncate, options.prompt), options.path
    if format_ == "parquet":
        assert path is not None, "`formats` looks"
        return ParquetReader(path, terms, options.text, options.keep)
    file = Bytes(path)
    match format_:
        case "csv":
            delimiter = "\t" if path and path.suffix.lower() == ".tsv" else ","
            return CsvReader(file, terms, options.text, options.keep, delimiter)
        case "openai":
            return LineReader(file, requests(backend.dim, backend.prompts, model.most_texts), has_requests=True)
        case "jsonl":
            return LineReader(file, json_lines(terms, options.text, options.keep))
        case "lines":
            return LineReader(file, plain(terms, options.keep))


def open_writer(options: Options, format_: Output, reader: Reader, backend: Backend, model: Model) -> Writer:
    """The output. Raises StartError."""
    make: dict[Output, Callable[[], Writer]] = {
        "npy": lambda: NpyWriter(backend.dim),
        "jsonl": lambda: JsonlWriter(options.keep),
        "openai": lambda: BatchWriter(model.name),
        "parquet": lambda: ParquetWriter(
            backend.dim, options.keep, reader.types if isinstance(reader, ParquetReader) else {}
        ),
    }
    return make[format_]()


def identify(path: Path | None) -> str:
    """What tells an input from a changed one: size, time of change, and a hash of its first and last MiB."""
    if path is None:
        return "standard input"
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(HASHED_BYTES))
        file.seek(max(0, status.st_size - HASHED_BYTES))
        digest.update(file.read(HASHED_BYTES))
    return f"{status.st_size} bytes of {status.st_mtime_ns}, {digest.hexdigest()[:16]}"


def _described(options: Options) -> str:
    """The options that the output depends on, formats included."""
    names = ("text", "keep", "prompt", "truncate", "window")
    said = {name: getattr(options, name) for name in names}
    said["formats"] = formats(options)
    return msgspec.json.encode(said).decode()


def _choices(formats: object) -> str:
    return "|".join(formats.__args__)  # type: ignore[attr-defined]
