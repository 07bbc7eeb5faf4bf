from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ipc.bundle import Bundle
from ipc.errors import StartError
from perf.texts import make_texts
from tests.tools.embed.words import local, run, vectors
from tools.embed.local import Local

TEXTS = [
    *make_texts("mixed", 11),
    'she said "no", twice',
    "Καλημέρα, こんにちは, שלום",
    " spaces ",
    "a\ttab; a semicolon, a comma",
]


def lines(texts: list[str]) -> bytes:
    return "\n".join(texts).encode()


def jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"n": n, "text": text, "x": [n]}).encode() + b"\r\n" for n, text in enumerate(texts))


def as_csv(texts: list[str]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([("n", "text"), *enumerate(texts)])
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def parquet(texts: list[str]) -> bytes:
    out = io.BytesIO()
    table = pa.table({"n": pa.array(range(len(texts)), pa.int16()), "text": pa.array(texts).dictionary_encode()})
    pq.write_table(table, out, row_group_size=5)
    return out.getvalue()


MAKE = {"in.txt": lines, "in.jsonl": jsonl, "in.csv": as_csv, "in.parquet": parquet}


@pytest.mark.parametrize("name", MAKE)
def test_every_input_gives_the_vectors_of_its_rows_in_order(
    backend: Local, bundle: Bundle, tmp_path: Path, name: str
) -> None:
    texts = TEXTS if name == "in.txt" else [*TEXTS, "two\nlines"]
    (tmp_path / name).write_bytes(MAKE[name](texts))
    mark = run(backend, tmp_path / name, tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors(bundle, texts))
    assert (mark.rows, mark.texts, mark.truncated, mark.bad) == (len(texts), len(texts), 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out.npy"])


def test_npy_is_what_numpy_writes_itself(backend: Local, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(lines(TEXTS))
    run(backend, tmp_path / "in.txt", tmp_path / "out.npy")
    np.save(tmp_path / "numpy.npy", vectors(bundle, TEXTS))
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.parquet"])
def test_jsonl_and_parquet_keep_fields_beside_the_vector(
    backend: Local, bundle: Bundle, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(MAKE[name](TEXTS))
    run(backend, tmp_path / name, tmp_path / "out.jsonl", keep=("n", "text"))
    run(backend, tmp_path / name, tmp_path / "out.parquet", keep=("n", "text"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    number = str if name == "in.csv" else int
    assert [(row["n"], row["text"]) for row in rows] == [(number(n), text) for n, text in enumerate(TEXTS)]
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], np.float32), vectors(bundle, TEXTS))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("n").type == (pa.int16() if name == "in.parquet" else pa.string())
    assert [int(n) for n in table["n"].to_pylist()] == list(range(len(TEXTS)))
    assert table["text"].to_pylist() == TEXTS
    found = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(found, vectors(bundle, TEXTS))


def test_batches_are_full_and_sorted_by_length(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(lines(make_texts("mixed", 200)))
    for mixes in (True, False):
        backend, runner = local(bundle, mixes_lengths=mixes)
        run(backend, tmp_path / "in.txt", tmp_path / "out.npy", window=200, restart=True)
        assert sum(map(len, runner.batches)) == 200
        assert all(lengths[0] * len(lengths) <= 512 and len(lengths) <= 16 for lengths in runner.batches)
        assert all(lengths == sorted(lengths, reverse=True) for lengths in runner.batches)
        assert mixes or all(len(set(lengths)) == 1 for lengths in runner.batches)


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl", "in.csv"])
def test_an_empty_input_gives_no_rows(backend: Local, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"text\n" if name == "in.csv" else b"")
    assert run(backend, tmp_path / name, tmp_path / "out.npy").rows == 0
    assert np.load(tmp_path / "out.npy").shape == (0, 3)


BAD: dict[str, list[tuple[bytes, str]]] = {
    "in.txt": [(b"", "the text is empty"), (b"\xff", "it is not UTF-8"), (b"a tornado", "the model failed on it")],
    "in.jsonl": [
        (b"", "it is not JSON"),
        (b"[]", "it is not a JSON object"),
        (b'{"texts": 1}', "it has no field 'text' (there are: texts;"),
        (b'{"text": null}', "it has no text"),
        (b'{"text": 5}', "what should be its text is none"),
        (b'{"text": "\\ud800"}', "it is not JSON"),
        (b'{"text": "good for nobody"}', "the model gave something that is not a number"),
    ],
    "in.csv": [(b"a,b", "it has 2 fields, the first line has 1"), (b'"a"b', "it is not valid CSV"), (b"\xff", "UTF-8")],
}


@pytest.mark.parametrize(("name", "line", "says"), [(name, *each) for name, bad in BAD.items() for each in bad])
def test_a_bad_row_is_named_and_may_be_skipped(
    backend: Local, bundle: Bundle, tmp_path: Path, name: str, line: bytes, says: str
) -> None:
    good = [b'{"text": "%d"}' % n if name == "in.jsonl" else b"%d" % n for n in range(6)]
    head = [b"text"] if name == "in.csv" else []
    (tmp_path / name).write_bytes(b"\n".join([*head, *good, line, *good]) + b"\n")
    with pytest.raises(StartError, match=r"^Row 7 of the input") as error:
        run(backend, tmp_path / name, tmp_path / "out.npy")
    assert says in str(error.value)
    # Goes on behind the rows that were written.
    mark = run(backend, tmp_path / name, tmp_path / "out.npy", skip_bad=True)
    assert (mark.rows, mark.bad) == (13, 1)
    found = np.load(tmp_path / "out.npy")
    assert np.isnan(found[6]).all()
    expected = vectors(bundle, [str(n) for n in range(6)])
    np.testing.assert_array_equal(np.delete(found, 6, axis=0), np.concatenate([expected, expected]))


def test_a_skipped_row_is_null(backend: Local, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a", "n": 1}\n{"n": 2}\n')
    for name in ("out.jsonl", "out.parquet"):
        run(backend, tmp_path / "in.jsonl", tmp_path / name, keep=["n"], skip_bad=True)
    last = json.loads((tmp_path / "out.jsonl").read_bytes().splitlines()[1])
    assert last["n"] == 2
    assert last["embedding"] is None
    assert "no field" in last["error"]
    assert [each is None for each in pq.read_table(tmp_path / "out.parquet")["embedding"].to_pylist()] == [False, True]


def test_texts_that_are_too_long_are_cut_and_counted_or_refused(backend: Local, tmp_path: Path) -> None:
    long = " ".join(["word"] * 300)
    (tmp_path / "in.txt").write_bytes(lines(["a", long, "b", "c", "d", long]))
    mark = run(backend, tmp_path / "in.txt", tmp_path / "out.npy")
    assert mark.truncated == 2
    assert np.load(tmp_path / "out.npy")[:, 0].tolist() == [3, 256, 3, 3, 3, 256]
    with pytest.raises(StartError, match=r"^Row 2 of the input \(from 1\): it has 302 tokens, the model takes 256"):
        run(backend, tmp_path / "in.txt", tmp_path / "out2.npy", truncate=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out": "out.bin"}, "give --to"),
        ({"source": "in.bin"}, "give --from"),
        ({"source": "-"}, "give --from"),
        ({"source": "-", "input": "parquet"}, "cannot be read from standard input"),
        ({"input": "openai", "output": "npy"}, "OpenAI's batch format"),
        ({"keep": ["text"]}, "vectors alone"),
        ({"keep": ["embedding"], "out": "out.jsonl"}, "would be written over"),
        ({"keep": ["n"], "out": "out.jsonl"}, "The input has no field 'n' (there are: text;"),
        ({"prompt": "query"}, "no prompt of the model; there are: none"),
        ({"input": "parquet"}, "is not a Parquet file"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_made(
    backend: Local, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "in.bin").write_text("a\n")
    given = {"source": "in.txt", "out": "out.npy", **options}
    source, out = given.pop("source"), given.pop("out")
    with pytest.raises(StartError) as error:
        run(backend, Path("-") if source == "-" else tmp_path / source, tmp_path / out, **given)
    assert says in str(error.value)
    assert not list(tmp_path.glob("out*"))


def test_parquet_says_what_is_missing(backend: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(StartError, match="install the extra `bulk`"):
        run(backend, tmp_path / "in.txt", tmp_path / "out.parquet")


def test_a_column_that_holds_no_strings_is_refused(backend: Local, tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(parquet(TEXTS))
    with pytest.raises(StartError, match=r"'n' of .* holds int16"):
        run(backend, tmp_path / "in.parquet", tmp_path / "out.npy", text="n")
