"""Inputs: plain lines, JSONL and CSV by bytes, Parquet by rows, each from any position that it has told."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import orjson

from ipc.errors import StartError
from tools.embed.window import Fault, Row, Terms

BOM = b"\xef\xbb\xbf"
# A longer line is hardly one: it must not fill the memory.
MOST_LINE_BYTES = 64 << 20
EMPTY = Fault("the text is empty")


class Bytes:
    """A file of bytes, or standard input where there is no path, read line by line."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.size = path.stat().st_size if path else None
        self.position = 0

    def lines(self, position: int) -> Iterator[bytes]:
        """Lines with their ends; `position` is kept up to date. Raises StartError for one that is far too long."""
        with self._open() as file:
            if position:
                file.seek(position)
            self.position = position
            while line := file.readline(MOST_LINE_BYTES + 1):
                if len(line) > MOST_LINE_BYTES:
                    raise StartError(
                        f"There is a line of more than {MOST_LINE_BYTES >> 20} MiB at byte {self.position} of the "
                        "input: is it of the format that --from names?"
                    )
                skipped = 0
                if not self.position and line.startswith(BOM):
                    skipped = len(BOM)
                self.position += len(line)
                yield line[skipped:]

    def _open(self) -> BinaryIO:
        return self.path.open("rb", buffering=1 << 20) if self.path else sys.stdin.buffer


class LineReader:
    """A row a line: its text (`lines`), or a JSON object with the text in a field."""

    def __init__(self, file: Bytes, parse: Callable[[bytes], Row], *, has_requests: bool = False) -> None:
        self._file = file
        self._parse = parse
        self.size = file.size
        self.has_requests = has_requests

    def rows(self, position: int) -> Iterator[tuple[Row, int]]:
        """See Reader; positions are bytes."""
        for line in self._file.lines(position):
            yield self._parse(line.rstrip(b"\r\n")), self._file.position


def plain(terms: Terms, keep: Sequence[str]) -> Callable[[bytes], Row]:
    """Lines that are texts; they have one field to keep, `text`."""
    check_fields(["text"], keep)

    def parse(line: bytes) -> Row:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return Row([], [None] * len(keep), Fault("it is not UTF-8"))
        return row_of(text, [text] * len(keep), terms)

    return parse


def json_lines(terms: Terms, field: str, keep: Sequence[str]) -> Callable[[bytes], Row]:
    """Lines that are JSON objects."""

    def parse(line: bytes) -> Row:
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return Row([], [None] * len(keep), Fault(f"it is not JSON ({error})"))
        if not isinstance(found, dict):
            return Row([], [None] * len(keep), Fault("it is not a JSON object"))
        kept = [found.get(name) for name in keep]
        if field not in found:
            return Row([], kept, Fault(f"it has no field {field!r} ({_named(found)})"))
        return row_of(found[field], kept, terms)

    return parse


class CsvReader:
    """CSV whose first line names the fields."""

    has_requests = False

    def __init__(self, file: Bytes, terms: Terms, field: str, keep: Sequence[str], delimiter: str) -> None:
        csv.field_size_limit(MOST_LINE_BYTES)
        self._file = file
        self._terms = terms
        self._wanted = (field, *keep)
        self._delimiter = delimiter
        self.size = file.size

    def rows(self, position: int) -> Iterator[tuple[Row, int]]:
        """See Reader; positions are bytes. Blank lines are no rows."""
        lines = self._file.lines(0)
        names = next(self._parsed(lines), [])
        check_fields(names, self._wanted)
        columns = [names.index(name) for name in self._wanted]
        if position:
            lines = self._file.lines(position)
        parsed = self._parsed(lines)
        while True:
            try:
                fields = next(parsed)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._faulty(f"it is not valid CSV ({error})"), self._file.position
                continue
            if fields:
                yield self._row(fields, columns, len(names)), self._file.position

    def _parsed(self, lines: Iterator[bytes]) -> Iterator[list[str]]:
        # What is no UTF-8 is found in the fields, where it can be told whose it is.
        texts = (line.decode(errors="surrogateescape") for line in lines)
        return csv.reader(texts, delimiter=self._delimiter, strict=True)

    def _row(self, fields: list[str], columns: list[int], width: int) -> Row:
        if len(fields) != width:
            return self._faulty(f"it has {len(fields)} fields, the first line has {width}")
        text, *kept = (fields[column] for column in columns)
        if not all(map(_is_utf8, (text, *kept))):
            return self._faulty("it is not UTF-8")
        return row_of(text, kept, self._terms)

    def _faulty(self, reason: str) -> Row:
        return Row([], [None] * (len(self._wanted) - 1), Fault(reason))


def row_of(text: object, kept: Sequence[object], terms: Terms) -> Row:
    """A row with one text, if that is what it is."""
    if not isinstance(text, str):
        return Row([], kept, Fault("it has no text" if text is None else "what should be its text is none"))
    return Row([text], kept, None, terms) if text else Row([], kept, EMPTY)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_fields(names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise StartError where the input lacks a field."""
    for name in wanted:
        if name not in names:
            raise StartError(f"The input has no field {name!r} ({_named(names)}).")


def _named(names: object) -> str:
    shown = ", ".join(map(str, itertools.islice(names, 20)))  # type: ignore[call-overload]
    return f"there are: {shown}; --text and --keep name fields"
