"""Make the stored reference: texts.json, vectors.npy and meta.json, with sentence-transformers.

    pip install torch sentence-transformers        # in an environment of its own; nothing else here needs PyTorch
    python tests/reference/make.py MODEL_FOLDER

MODEL_FOLDER holds all-MiniLM-L6-v2 as published (or unpacked from the wheel that tools/fetch.py names). Each text
is embedded alone, so no padding has a part in its vector. All texts were written for this file.
"""

import hashlib
import json
import random
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

HERE = Path(__file__).resolve().parent

TEXTS = [
    # One word, one character, almost nothing.
    "lighthouse",
    "a",
    "Z",
    "7",
    "?",
    "…",
    "é",
    " ",
    "",
    # Plain sentences.
    "The ferry was late because the harbour had frozen overnight.",
    "She keeps a jar of odd buttons, and nobody is allowed to sort them.",
    "Our tomatoes ripened two weeks earlier than last year.",
    "Nobody told the night porter that the clocks had changed.",
    "How do I reset the password of an account I can no longer read mail for?",
    "To restart the pump, close the upper valve, wait a minute, and press the green button twice.",
    "WHY IS THIS FORM SHOUTING AT ME ABOUT MY POSTCODE",
    "pneumonoultramicroscopicsilicovolcanoconiosis is longer than antidisestablishmentarianism",
    "Zxqvbnmlkj wrtpsdfgh qqqqzzzzxxxx",
    # Accents, as one code point and as combining marks; ligatures, widths and other doubles.
    "Le garçon goûte une crème brûlée à l'œuf près du château.",
    "Le garc\u0327on gou\u0302te une cre\u0300me bru\u0302le\u0301e a\u0300 l'\u0153uf.",
    "Z\u0351\u036b\u0343a\u0334l\u0321g\u0322o\u0327 marks piled on plain letters",
    "Die Bäckerei schließt früher, weil der Ofen repariert wird.",
    "İstanbul'da ılık bir akşamüstü vapura bindik.",
    "ﬁne ﬂour, ﬀ, Ⅷ, ①, ㎏, ｆｕｌｌ ｗｉｄｔｈ",
    # Scripts.
    "图书馆星期一不开门，所以我们改去河边散步。",
    "雨がやんだので、子どもたちは長靴のまま庭へ飛び出した。",
    "ｶﾀｶﾅとひらがなと漢字を、ひとつの文に mixed with English.",
    "버스가 늦어서 우리는 시장까지 걸어갔다.",
    "وصل القطار متأخرًا فشربنا الشاي في المحطة.",
    "שכחנו את המפתחות אצל השכנה מהקומה השנייה.",
    "Right to left שלום in the middle, then العربية, then left again.",
    "हमने बारिश रुकने तक बरामदे में चाय पी।",
    "ตลาดเช้าวันนี้มีมะม่วงสุกเต็มแผง",
    "Το καφενείο ανοίγει πριν από την ανατολή του ήλιου.",
    "Почтальон перепутал ящики, и письмо пришло на неделю позже.",
    "ძველი ხიდი მდინარეზე ისევ დგას.",
    "இன்று காலை மழை பெய்தது.",
    # Emoji: plain, with skin tone, joined, flags.
    "🙂",
    "Launch day 🚀🚀🚀 and the coffee machine is broken 😭",
    "👩‍🔬 met 👨🏽‍🌾 under a 🏳️‍🌈 near the 🇳🇿 embassy 👍🏿",
    # Code, data, addresses.
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n",
    "SELECT name, COUNT(*) FROM visits WHERE day >= '2024-02-29' GROUP BY name HAVING COUNT(*) > 3;",
    '{"order": 1881, "items": [{"sku": "lamp-07", "qty": 2}], "gift": false, "note": null}',
    "<ul class=\"menu\"><li data-id='3'>Soup &amp; bread</li></ul>",
    "https://shop.example.org/search?q=red+wool&page=2#results and mailto:desk@example.org",
    "C:\\Users\\Ada\\notes.txt and /var/log/app/error.log.1.gz",
    "3.141592653589793 2,718,281.83 -0.5e-10 0xFF 1/3 ½ ٣٤٥ 42nd 100% $9.99 €12",
    "2031-05-17T08:30:00+02:00, week 20, 8 1/2 hours, -40 °C = -40 °F",
    "a+b=c; x_1≠x_2; ∀ε>0 ∃δ>0; ∑ᵢ aᵢ² ≤ √2",
    "!!! ??? ... --- *** ((())) [[]] {} <> @#$%^&",
    # Words that the tokenizer knows as something else.
    "[CLS] is a token, and so are [SEP], [MASK], [PAD] and [UNK]",
    "##ing ##s un##believ##able",
    # White space and what cannot be seen.
    "   spaces    before,   between      and after    ",
    "tabs\tand\nnew lines\r\nand\u00a0no-break\u3000wide\u2028separators",
    "zero\u200bwidth\u200djoiners\u2060and\ufeffmarks",
    "control\u0000characters\u0007in\u001bbetween\u007fand\u0085out",
    "private \ue000 and unassigned \U000e0fff and replaced \ufffd characters",
    # Repetition, and a word without an end.
    "echo " * 60,
    "ha" * 400,
    "x" * 90,
    "x" * 101,
]

# Exactly this many tokens, with the special ones, before truncation: around 128, and around the model's 256.
TOKEN_COUNTS = [127, 128, 129, 254, 255, 256, 257, 258, 300, 513]
WORDS_OF_THE_LONGEST = 3000

WHO = ["the miller", "an old sailor", "our teacher", "a quiet child", "the night nurse", "my aunt", "some tourist"]
DID = ["mended", "painted", "lost", "sold", "borrowed", "described", "carried", "forgot", "measured", "hid"]
WHAT = ["a blue door", "the broken clock", "two wet maps", "the last lemon", "a brass key", "seven chairs", "the kite"]
WHERE = ["behind the school", "before sunrise", "in the empty market", "on the slow train", "during the storm"]


def story(words: int, seed: int) -> str:
    """A text of exactly this many words, by chance but always the same for a seed."""
    chance = random.Random(seed)  # noqa: S311 - nothing secret here
    told: list[str] = []
    while len(told) < words:
        sentence = " ".join(chance.choice(part) for part in (WHO, DID, WHAT, WHERE))
        told += (sentence.capitalize() + ".").split()
    return " ".join(told[:words])


def count_untruncated(model: SentenceTransformer, text: str) -> int:
    """How many tokens a text has, with the special ones."""
    return len(model.tokenizer(text, truncation=False, verbose=False)["input_ids"])


def story_of_tokens(model: SentenceTransformer, tokens: int) -> str:
    """A text of exactly this many tokens: whole words, and full stops for what is left."""
    words = next(n for n in range(tokens, 0, -1) if count_untruncated(model, story(n, tokens)) <= tokens)
    text = story(words, tokens)
    text += " ." * (tokens - count_untruncated(model, text))
    assert count_untruncated(model, text) == tokens
    return text


def main(folder: Path) -> None:
    """Write the three files."""
    model = SentenceTransformer(str(folder), device="cpu")
    texts = [*TEXTS, *(story_of_tokens(model, n) for n in TOKEN_COUNTS), story(WORDS_OF_THE_LONGEST, 0)]
    tokens = [min(count_untruncated(model, text), model.max_seq_length) for text in texts]
    vectors = np.concatenate([model.encode([text], convert_to_numpy=True) for text in texts])
    entries = [{"text": text, "tokens": count} for text, count in zip(texts, tokens, strict=True)]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in entries)
    (HERE / "texts.json").write_text(f"[\n{lines}\n]\n", encoding="ascii")
    np.save(HERE / "vectors.npy", vectors.astype(np.float32))
    meta = {
        "made_with": {name: version(name) for name in ("sentence-transformers", "transformers", "torch", "tokenizers")},
        "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "max_tokens": model.max_seq_length,
        "pooling": model[1].pooling_mode,
        "normalize": len(model) == 3,
    }
    (HERE / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="ascii")
    print(f"{len(texts)} texts, {vectors.shape[1]} dimensions, {min(tokens)} to {max(tokens)} tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
