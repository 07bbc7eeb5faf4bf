from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frontend import tokenizer as module
from frontend.tokenizer import INLINE_CHARS, Side, Token, Tokenizer, Tokens
from ipc.bundle import TOKENIZER, Bundle
from ipc.errors import InputTooLong, StartError

pytestmark = pytest.mark.anyio

MAX_CHARS = 10_000
PATIENCE_SECONDS = 20

Make = Callable[..., Tokenizer]
Library = tokenizers.Tokenizer


class Watched:
    """The library's tokenizer, which notes what it is given and by which thread."""

    chars = 0
    threads: list[int]
    before: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, real: Library) -> None:
        self.real = real

    @classmethod
    def from_file(cls, path: str) -> Watched:
        return cls(Library.from_file(path))

    def enable_truncation(self, max_length: int) -> None:
        self.real.enable_truncation(max_length)

    def encode(self, text: str, add_special_tokens: bool = True) -> tokenizers.Encoding:
        self._note([text])
        return self.real.encode(text, add_special_tokens=add_special_tokens)

    def encode_batch_fast(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        self._note(texts)
        return self.real.encode_batch_fast(texts)

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        return self.real.num_special_tokens_to_add(is_pair)

    def post_process(self, encoding: tokenizers.Encoding) -> tokenizers.Encoding:
        return self.real.post_process(encoding)

    def _note(self, texts: Sequence[str]) -> None:
        Watched.chars += sum(map(len, texts))
        Watched.threads.append(threading.get_ident())
        Watched.before()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr(tokenizers, "Tokenizer", Watched)
    monkeypatch.setattr(Watched, "chars", 0)
    monkeypatch.setattr(Watched, "threads", [], raising=False)
    monkeypatch.setattr(Watched, "before", Watched.before)
    return Watched


@pytest.fixture
def make(bundle: Bundle) -> Make:
    def of(max_tokens: int, max_chars: int = MAX_CHARS) -> Tokenizer:
        return Tokenizer(bundle.path(TOKENIZER), max_tokens, max_chars)

    return of


def whole(bundle: Bundle, max_tokens: int, side: Side = "right") -> Library:
    """The library truncating the whole text, which is what truncation must equal."""
    library = Library.from_file(str(bundle.path(TOKENIZER)))
    library.enable_truncation(max_tokens, direction=side)
    return library


# exactness

PIECES = [
    " " * 3_000,
    "\n\t \u00a0\u3000" * 200,
    "x" * 5_000,
    "supercalifragilistic" * 4,
    "a" * 99,
    "e\u0301\u0323" * 50,
    "\u0301" * 300,
    "漢字かな交じり文" * 30,
    "한국어" * 30,
    "👩\u200d👩\u200d👧\u200d👦" * 20,
    "\U0001f1e9\U0001f1ea",
    "\x00\x01\x7f\ufffd\u200b\ufeff" * 100,
    "word ",
    "un-believ-ably, (so) it's! ",
    "[SEP] [CLS][MASK] [PAD][UNK]",
    "[SE",
    "##ing ",
    "1234567890" * 20,
    "مرحبا بالعالم ",
    "ﬁ ﷺ ½ ",
    "İSTANBUL ",
]
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=40)), max_size=25).map("".join)


SIDES: tuple[Side, ...] = ("left", "right")
Pair = tuple[Tokenizer, dict[Side, Library]]


@pytest.fixture(scope="module", params=[3, 8, 64])
def pair(bundle: Bundle, request: pytest.FixtureRequest) -> Pair:
    """Ours, and the library truncating the whole text, which is what ours must equal."""
    ours = Tokenizer(bundle.path(TOKENIZER), request.param, 10**6)
    return ours, {side: whole(bundle, request.param, side) for side in SIDES}


@pytest.mark.parametrize("side", SIDES)
@settings(max_examples=80, deadline=None)
@given(text=texts, chars_per_token=st.integers(1, 16))
@example(text=" " * 5_000 + "at the end", chars_per_token=1)
@example(text="y" * 5_000 + " and more", chars_per_token=1)
@example(text="at the beginning" + " " * 5_000, chars_per_token=1)
@example(text="more and " + "y" * 5_000, chars_per_token=1)
@example(text="word" * 20 + " [SEP]" * 100, chars_per_token=1)
@example(text="[SEP] " * 100 + "word" * 20, chars_per_token=1)
def test_truncation_gives_the_ids_of_the_whole_text(pair: Pair, side: Side, text: str, chars_per_token: int) -> None:
    ours, library = pair[0], pair[1][side]
    with pytest.MonkeyPatch.context() as patch:
        # Whatever the first guess: it is there for speed alone.
        patch.setattr(module, "CHARS_PER_TOKEN", chars_per_token)
        tokens = asyncio.run(ours.encode([text], truncate=True, side=side))
    encoding = library.encode(text)
    assert tokens.texts[0].tolist() == encoding.ids
    assert tokens.truncated == bool(encoding.overflowing)


@pytest.mark.parametrize("side", SIDES)
async def test_a_batch_is_truncated_text_by_text(make: Make, bundle: Bundle, side: Side) -> None:
    many = ["short", "a longer one of many words " * 40, "word", "z " * 300]
    tokens = await make(16).encode(many, truncate=True, side=side)
    library = whole(bundle, 16, side)
    assert [text.tolist() for text in tokens.texts] == [library.encode(text).ids for text in many]
    assert [text.dtype for text in tokens.texts] == [np.int32] * 4
    assert tokens.truncated == 2
    assert tokens.total == sum(map(len, tokens.texts))


async def test_without_a_loop_it_gives_the_same(make: Make) -> None:
    tokenizer = make(max_tokens=8)
    given = ["word " * 20, "a"]
    here, there = tokenizer.encode_here(given, truncate=True), await tokenizer.encode(given, truncate=True)
    assert [ids.tolist() for ids in here.texts] == [ids.tolist() for ids in there.texts]
    assert here.truncated == there.truncated == 1
    with pytest.raises(InputTooLong, match="Text 0 has 22 tokens"):
        tokenizer.encode_here(given, truncate=False)


def test_no_texts_have_no_tokens() -> None:
    assert Tokens([], 0).total == 0


# work


@pytest.mark.parametrize("unit", ["the cat sat on the mat. ", "漢字", "naïve café "], ids=["prose", "cjk", "accents"])
@pytest.mark.parametrize("side", SIDES)
async def test_a_megabyte_is_not_tokenized(watched: type[Watched], make: Make, unit: str, side: Side) -> None:
    tokens = await make(256).encode([unit * (1_000_000 // len(unit))], truncate=True, side=side)
    assert (len(tokens.texts[0]), tokens.truncated) == (256, 1)
    assert watched.chars < 40_000


@pytest.mark.parametrize("unit", [" ", "x"], ids=["one run of spaces", "one word"])
@pytest.mark.parametrize(("side", "which"), [("left", "last"), ("right", "first")])
async def test_a_search_for_words_has_a_bound(
    watched: type[Watched], make: Make, unit: str, side: Side, which: str
) -> None:
    with pytest.raises(InputTooLong, match=f"the {which} {MAX_CHARS} of them fewer than 256 tokens"):
        await make(256).encode([unit * 1_000_000], truncate=True, side=side)
    assert watched.chars <= 3 * MAX_CHARS, "each look is at twice as much as the one before"


@pytest.mark.parametrize("max_chars", [300, 4_000, 9_999, 65_536])
@pytest.mark.parametrize("side", SIDES)
async def test_prose_longer_than_is_tokenized_whole_is_truncated(
    make: Make, bundle: Bundle, max_chars: int, side: Side
) -> None:
    text = "a cat, a mat. " * 10_000
    tokens = await make(64, max_chars).encode([text], truncate=True, side=side)
    assert tokens.texts[0].tolist() == whole(bundle, 64, side).encode(text).ids
    assert tokens.truncated == 1


@pytest.mark.parametrize("unit", [" ", "x"], ids=["one run of spaces", "one word"])
async def test_a_text_of_the_bound_itself_is_taken_whatever_it_is(make: Make, bundle: Bundle, unit: str) -> None:
    text = unit * (MAX_CHARS - 2) + " a"
    tokens = await make(256).encode([text], truncate=True)
    assert tokens.texts[0].tolist() == whole(bundle, 256).encode(text).ids


async def test_what_is_too_long_to_be_tokenized_whole_is_not(watched: type[Watched], make: Make) -> None:
    with pytest.raises(InputTooLong, match=rf"Text 1 has {MAX_CHARS + 1} characters, the most is {MAX_CHARS}"):
        await make(256).encode(["fine", "x" * (MAX_CHARS + 1)], truncate=False)
    assert watched.chars == 0


async def test_short_requests_stay_on_the_loop_and_long_ones_leave_it(watched: type[Watched], make: Make) -> None:
    tokenizer = make(256)
    here = threading.get_ident()
    for truncate in (True, False):
        await tokenizer.encode(["a " * (INLINE_CHARS // 2)], truncate=True)
        assert set(watched.threads) == {here}
        watched.threads.clear()
        await tokenizer.encode(["a b c d "] * (INLINE_CHARS // 8 + 1), truncate=truncate)
        assert len(set(watched.threads)) == 1
        assert here not in watched.threads
        watched.threads.clear()


async def test_the_loop_turns_while_a_long_request_is_tokenized(
    watched: type[Watched], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = threading.Event()
    # The tokenizer goes on only once the loop has run something else.
    monkeypatch.setattr(watched, "before", lambda: turned.wait(PATIENCE_SECONDS))
    encoding = asyncio.ensure_future(make(256).encode(["a b c d "] * INLINE_CHARS, truncate=False))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(turned.set)
    assert len((await encoding).texts) == INLINE_CHARS
    assert turned.is_set()


# splitting


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_every_token_says_where_it_is_among_the_bytes(pair: Pair, bundle: Bundle, text: str) -> None:
    (encoded,) = asyncio.run(pair[0].split([text], msgspec.json.encode, special=True))
    found = msgspec.json.decode(encoded, type=list[Token])
    library = Library.from_file(str(bundle.path(TOKENIZER)))
    assert [token.id for token in found] == library.encode(text).ids
    assert (found[0], found[-1]) == (Token(101, "[CLS]", True, None, None), Token(102, "[SEP]", True, None, None))
    for token in found[1:-1]:
        assert not token.special
        assert token.text == text.encode()[token.start : token.stop].decode()


# refusals


@pytest.mark.parametrize("before", [0, 2])
async def test_too_long_names_the_text_its_tokens_and_the_limit(make: Make, before: int) -> None:
    texts = ["fine"] * before + ["cat " * 20, "also fine"]
    with pytest.raises(InputTooLong, match=rf"Text {before} has 22 tokens, the model takes 16"):
        await make(16).encode(texts, truncate=False)


async def test_exactly_the_limit_is_not_too_long(make: Make) -> None:
    tokens = await make(16).encode(["cat " * 14], truncate=False)
    assert (len(tokens.texts[0]), tokens.truncated) == (16, 0)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_tokenizer_that_cannot_be_read_stops_the_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / TOKENIZER
    path.write_bytes(content)
    with pytest.raises(StartError, match=r"tokenizer\.json"):
        Tokenizer(path, 256, MAX_CHARS)


def test_a_tokenizer_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="prepare"):
        Tokenizer(tmp_path / TOKENIZER, 256, MAX_CHARS)
