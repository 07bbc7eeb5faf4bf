"""Parquet in and out, with PyArrow, which only the extra `bulk` installs.

A Parquet file cannot be written on: its table of contents is at its end. So OUT.partial is an Arrow stream, which can,
and the end makes a Parquet file of it, a row group a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from ipc.errors import StartError
from tools.embed.journal import beside
from tools.embed.readers import check_fields, row_of
from tools.embed.window import Row, Terms, Window
from tools.embed.writers import EMBEDDING, Data

READ_ROWS = 1024
# Numbers of a vector neither repeat nor compress.
LEAF = f"{EMBEDDING}.list.element"


def import_arrow() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`. Raises StartError where they are not installed."""
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise StartError(
            "Parquet needs PyArrow, which is not installed: install the extra `bulk` (`pip install pyarrow`)."
        ) from None


class ParquetReader:
    """A column of texts, and columns to keep. Positions are rows."""

    has_requests = False

    def __init__(self, path: Path, terms: Terms, field: str, keep: Sequence[str]) -> None:
        arrow, parquet = import_arrow()
        try:
            self._file = parquet.ParquetFile(path)
        except arrow.ArrowInvalid as error:
            raise StartError(f"{path} is not a Parquet file ({error}): does --from name its format?") from None
        schema = self._file.schema_arrow
        check_fields(schema.names, (field, *keep))
        # What is encoded as a dictionary is written as what it holds.
        self.types = {
            name: kind.value_type if arrow.types.is_dictionary(kind := schema.field(name).type) else kind
            for name in (*keep, field)
        }
        kind = self.types[field]
        if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
            raise StartError(f"The column {field!r} of {path} holds {kind}: name one that holds strings with --text.")
        self.size: int | None = self._file.metadata.num_rows
        self._terms = terms
        self._field = field
        self._keep = keep

    def rows(self, position: int) -> Iterator[tuple[Row, int]]:
        """See Reader."""
        metadata = self._file.metadata
        groups, before = list(range(metadata.num_row_groups)), 0
        while groups and before + metadata.row_group(groups[0]).num_rows <= position:
            before += metadata.row_group(groups.pop(0)).num_rows
        batches = self._file.iter_batches(READ_ROWS, row_groups=groups, columns=[self._field, *self._keep])
        for batch in batches:
            columns = [batch.column(name).to_pylist() for name in (self._field, *self._keep)]
            for text, *kept in zip(*columns, strict=True):
                before += 1
                if before > position:
                    yield row_of(text, kept, self._terms), before


class ParquetWriter:
    """The columns that are kept, and `embedding`, a list of fixed size; null where there is none.

    `types` is of columns that came from Parquet; others are strings, with JSON for what is none.
    """

    def __init__(self, dim: int, keep: Sequence[str], types: Mapping[str, Any]) -> None:
        self._arrow, self._parquet = import_arrow()
        self._dim = dim
        self._keep = keep
        self._is_text = [name not in types for name in keep]
        fields = [(name, types.get(name, self._arrow.string())) for name in keep]
        self._schema = self._arrow.schema([*fields, (EMBEDDING, self._arrow.list_(self._arrow.float32(), dim))])
        self.head = self._schema.serialize().to_pybytes()

    def data(self, window: Window) -> Data:
        """See Writer."""
        arrow = self._arrow
        vectors = window.row_vectors()
        bad = [row.fault is not None for row in window.rows]
        columns = [
            arrow.array([_as_text(row.about[n]) if is_text else row.about[n] for row in window.rows], field.type)
            for n, (is_text, field) in enumerate(zip(self._is_text, self._schema, strict=False))
        ]
        mask = arrow.array(bad) if any(bad) else None
        columns.append(arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.reshape(-1)), self._dim, mask=mask))
        return [arrow.record_batch(columns, schema=self._schema).serialize().to_pybytes()]

    def finish(self, partial: BinaryIO, path: Path, rows: int) -> Path:
        """See Writer."""
        whole = beside(path, "parquet")
        kept: Any = [*self._keep]
        compression = dict.fromkeys(self._keep, "zstd") | {LEAF: "none"}
        with (
            # Not mapped: the whole file would count as this process's memory.
            self._arrow.OSFile(str(path)) as source,
            self._parquet.ParquetWriter(
                whole, self._schema, use_dictionary=kept, write_statistics=kept, compression=compression
            ) as writer,
        ):
            for batch in self._arrow.ipc.open_stream(source):
                writer.write_batch(batch)
        return whole


def _as_text(value: object) -> str | None:
    return value if isinstance(value, str) or value is None else orjson.dumps(value).decode()
