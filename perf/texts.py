"""Seeded texts of known length: `short`, `passage`, `mixed`, and texts of an exact number of tokens.

Every word of the list is one token of BERT's English vocabulary, so a text's length is known without a tokenizer, and
a load generator needs no model. Lengths count the two special tokens, as the model sees them. All texts of one call
are distinct, so that a cache cannot flatter, but those of `repeated_texts` and `original_texts`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["short", "passage", "mixed"]

# [CLS], the full stop, [SEP].
OVERHEAD = 3
SHORTEST, LONGEST = 4, 256
MIXED_MEDIAN, MIXED_SIGMA = 24, 0.9
REPEATED = 20_000

_WORDS: Final = """
    able about above across action actor after again age agree air album allow almost alone along already also always
    among amount ancient animal another answer anyone appear apple area arm army around arrive art ask attack aunt
    author autumn away baby back bad balance ball band bank bar base basic battle bay beach bear beat beautiful became
    because become bed before began behind believe below best better between beyond big bird birth black blood blue
    board boat body book born both bottom bought box boy branch bread break bridge bright bring broke brother brought
    brown build burn business busy buy call calm came camp capital captain car card care carry case castle cat catch
    cause cell center central century certain chance change charge check chief child choice church circle city claim
    class clean clear climb clock close cloth cloud club coach coal coast coat cold color come common company complete
    contain control cook cool copper corn corner correct cost could count country couple course court cover create
    cross crowd cup current cut dance danger dark date daughter day dead deal dear death decide deep degree desert
    design desk detail develop did different difficult dinner direct discover distance divide doctor dog dollar door
    double down draw dream dress drink drive drop dry during each early earth east easy eat edge effect eight either
    electric else empty end enemy energy engine english enough enter equal evening event ever every exact example
    except exercise expect experience explain eye face fact factory fair fall family famous far farm fast father fear
    feed feel fell few field fight figure fill final find fine finger finish fire first fish five floor flow flower fly
    follow food foot force forest form forward four free french fresh friend front fruit full game garden gas gate
    gather gave general gentle get girl give glad glass gold gone good govern grand grass gray great green grew ground
    group grow guess guide gun hair half hall hand happen happy hard hat head hear heart heat heavy held help here high
    hill history hold hole home hope horse hospital hot hotel hour house huge human hundred hurry husband ice idea
    imagine inch include increase industry inside instead interest iron island job join journey judge jump just keep
    kept key kill kind king kitchen knew know lady lake land language large last late laugh law lay lead learn least
    leave left leg less letter level library lie life lift light like line list listen little live local long look
    lost love low machine main make man many map mark market master match matter mean measure meat meet member men
    metal method middle might mile milk mill mind mine minute miss modern moment money month moon more morning most
    mother motion mountain mouth move much music must name nation nature near neck need never new next night nine
    noise none noon north nose note nothing notice number object observe ocean offer office often oil old once one
    open operate opposite order organ original other our out over own page paint pair paper park part party pass past
    path pattern pay people perhaps period person piano pick picture piece place plain plan plane planet plant play
    please plural poem point police poor popular port position possible post pound power practice prepare present
    press pretty print private probable problem process produce product promise proper protect prove provide public
    pull push put quarter queen question quick quiet quite race radio rail rain raise ran range rather reach read
    ready real reason receive record red region remember repeat reply report represent require rest result return
    rich ride right ring rise river road rock roll roof room root rope rose round row royal rule run sail salt same
    sand save say scale school science sea search season seat second section see seem sell send sense sentence
    separate serve set settle seven several shade shall shape share sharp sheet ship shirt shoe shop shore short
    should shoulder show side sight sign silver similar simple since sing single sister size skill skin sky sleep slow
    small smell smile snow soft soil soldier solution some son song soon sound south space speak special speech speed
    spend spoke spot spread spring square stand star start state station stay steel step stick still stone stood stop
    store storm story strange stream street strong student study subject success sudden sugar summer sun supply
    support sure surface surprise swim symbol system table tail take talk tall teach team tell ten test thank their
    then there these thick thin thing think third thought thousand three through throw time tiny today together told
    tone took tool top total touch toward town track trade train travel tree triangle trip trouble truck true try tube
    turn twenty two type uncle under unit until usual valley value vary very view village visit voice wait walk wall
    want war warm wash watch water wave way wear weather week weight well west what wheel where which while white
    whole whose why wide wife wild will wind window wing winter wish woman wonder wood word work world would write
    wrong yard year yellow yes yet young
"""
WORDS: Final = tuple(_WORDS.split())


def make_texts(kind: Kind, count: int, seed: int = 0) -> list[str]:
    """`short`: 12 to 20 tokens, 16 on average; `passage`: 112 to 144, 128 on average; `mixed`: log-normal, 4 to 256."""
    chance = random.Random(f"{kind} {seed}")  # noqa: S311 - reproducible texts, no secret
    return _distinct(chance, count, _LENGTHS[kind])


def exact_texts(tokens: int, count: int, seed: int = 0) -> list[str]:
    """Texts of exactly this many tokens, 4 or more."""
    if tokens < SHORTEST:
        raise ValueError(f"A text has {SHORTEST} tokens at least, not {tokens}.")
    chance = random.Random(f"{tokens} {seed}")  # noqa: S311
    if tokens == SHORTEST and count > len(WORDS):
        raise ValueError(f"There are only {len(WORDS)} texts of {SHORTEST} tokens.")
    return _distinct(chance, count, lambda _: tokens)


def repeated_texts(count: int, seed: int = 0) -> list[str]:
    """So many of 20,000 texts of 16 tokens, text n with a weight of 1/n (Zipf): what a cache is for."""
    chance = random.Random(f"repeated {seed}")  # noqa: S311
    texts = exact_texts(16, REPEATED, seed)
    return chance.choices(texts, [1 / n for n in range(1, REPEATED + 1)], k=count)


def original_texts(count: int, seed: int = 0) -> list[str]:
    """The four kinds of the original project's load test, a quarter each; many come again and again."""
    chance = random.Random(f"original {seed}")  # noqa: S311
    kinds: tuple[Callable[[], str], ...] = (
        lambda: f"Query {chance.randint(1, 100_000)}",
        lambda: f"Document {chance.randint(1, 10_000)}",
        lambda: "Short text",
        lambda: "Longer text " * chance.randint(5, 20),
    )
    return [chance.choice(kinds)() for _ in range(count)]


def _distinct(chance: random.Random, count: int, length: Callable[[random.Random], int]) -> list[str]:
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[_sentence(chance, length(chance))] = None
    return list(texts)


def _sentence(chance: random.Random, tokens: int) -> str:
    return " ".join(chance.choices(WORDS, k=tokens - OVERHEAD)).capitalize() + "."


def _mixed(chance: random.Random) -> int:
    """Drawn again where it is out of bounds: clipping would pile texts up at the ends."""
    while True:
        length = round(MIXED_MEDIAN * chance.lognormvariate(0, MIXED_SIGMA))
        if SHORTEST <= length <= LONGEST:
            return length


_LENGTHS: Final[dict[Kind, Callable[[random.Random], int]]] = {
    "short": lambda chance: chance.randint(12, 20),
    "passage": lambda chance: chance.randint(112, 144),
    "mixed": _mixed,
}
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
