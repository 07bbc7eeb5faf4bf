"""Not an embedder: five scores a text, one for each language, served as vectors of five numbers.

    python -m examples.languages data/languages
    EMBEDLANE_MODEL=data/languages EMBEDLANE_RUNNER=examples.languages:LanguageRunner make serve

A naive Bayes classifier of words: each word has a row of log-probabilities, and a text's scores are the mean of its
words' rows. docs/runners.md tells what each part is for.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ipc.bundle import MANIFEST, TOKENIZER, Bundle, FileRecord, Manifest, Parity
from ipc.messages import Ids
from ipc.settings import Settings
from ipc.slab import Rows

TABLE = "words.npy"
MAX_TOKENS = 512
TEXTS = {
    "de": "der hund und die katze sind nicht im haus , aber ich habe sie mit einem ball auf der straße gesehen . "
    "wir gehen heute zu dem markt , wenn das wetter gut ist",
    "en": "the dog and the cat are not in the house , but i have seen them with a ball on the street . "
    "we go to the market today if the weather is good",
    "es": "el perro y el gato no están en la casa , pero los he visto con una pelota en la calle . "
    "hoy vamos al mercado si el tiempo es bueno",
    "fr": "le chien et le chat ne sont pas dans la maison , mais je les ai vus avec une balle sur la rue . "
    "nous allons au marché aujourd'hui si le temps est bon",
    "it": "il cane e il gatto non sono nella casa , ma li ho visti con una palla sulla strada . "
    "oggi andiamo al mercato se il tempo è buono",
}


class LanguageRunner:
    """Keeps the protocol of `engine.runners.Runner`."""

    device = "cpu"
    precision = "fp32"
    lanes = 1

    def __init__(self, settings: Settings, bundle: Bundle) -> None:
        self._table = np.load(bundle.graph(self.precision), allow_pickle=False)

    def warm_up(self, rows: Rows) -> None:
        """There is nothing to warm up but the table's pages."""
        self.run([np.zeros(1, np.int32)], rows[:1])

    def run(self, texts: Sequence[Ids], rows: Rows) -> None:
        """All texts have one length, so they stack."""
        self._table[np.stack(texts)].mean(axis=1, out=rows)


def build(folder: Path) -> None:
    """Write the bundle, which is all that the server knows of a model."""
    words = ["[UNK]", "[CLS]", *sorted({word for text in TEXTS.values() for word in text.split()})]
    counts = np.array([[text.split().count(word) for text in TEXTS.values()] for word in words], np.float64)
    shares = np.log((counts + 0.1) / (counts + 0.1).sum(axis=0))
    table = (shares - shares.mean(axis=1, keepdims=True)).astype(np.float32)
    # Neither says anything about the language.
    table[:2] = 0
    packed = io.BytesIO()
    np.save(packed, table, allow_pickle=False)
    files = {TABLE: packed.getvalue(), TOKENIZER: _tokenizer(words).to_str().encode()}
    manifest = Manifest(
        id="languages",
        revision="1",
        architecture="naive-bayes",
        dim=len(TEXTS),
        max_tokens=MAX_TOKENS,
        vocab_size=len(words),
        pooling="mean",
        normalize=False,
        files={name: FileRecord(sha256(content).hexdigest(), len(content)) for name, content in files.items()},
        precisions={"fp32": TABLE},
        # There is no other implementation to compare with.
        parity=Parity("itself", 1, 1.0),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    # Last: a folder with a manifest is whole.
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))


def _tokenizer(words: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # A text must have a token, even one without words.
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{words[1]} $A", special_tokens=[(words[1], 1)])
    return tokenizer


if __name__ == "__main__":
    build(Path(sys.argv[1]))
