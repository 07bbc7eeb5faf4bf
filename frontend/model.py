"""What a front end knows of the model that it reads texts for; replaced as one when the engine's model changes."""

from __future__ import annotations

import string
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import quote

from frontend.flight import Take
from frontend.responses import raw_vector, sliced, unit_length
from frontend.tokenizer import Tokenizer
from ipc.bundle import TOKENIZER, Bundle, load_bundle
from ipc.errors import InvalidRequest, StartError
from ipc.messages import Welcome
from ipc.settings import Settings

# A prompt of the model by its name, or what chooses one among those it has.
PromptName: TypeAlias = str | Callable[[Container[str]], str | None] | None
# What may be in a header as it is.
PRINTABLE: Final = string.punctuation + " "


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle and its tokenizer.

    `header` is its id as the header `x-model` has it, `origin` names what its vectors depend on.
    """

    bundle: Bundle
    tokenizer: Tokenizer
    header: str
    origin: str

    @classmethod
    def load(cls, bundle: Bundle, settings: Settings) -> Model:
        """Raises StartError for a tokenizer that cannot be read."""
        tokenizer = Tokenizer(bundle.path(TOKENIZER), bundle.max_tokens, settings.max_chars)
        # One model has other vectors in another precision, and may have in another runner.
        origin = f"{bundle.fingerprint} {settings.runner} {settings.precision}"
        return cls(bundle, tokenizer, quote(bundle.id, safe=PRINTABLE), origin)

    @classmethod
    def of_engine(cls, engine: Welcome, settings: Settings) -> Model:
        """The model that an engine serves. Raises StartError where this process cannot have it."""
        bundle = load_bundle(Path(engine.folder), verify=False)
        if bundle.digest != engine.digest:
            raise StartError(f"{engine.folder} is no longer what the engine has loaded: swap once more.")
        return cls.load(bundle, settings)

    def prompt(self, asked: PromptName) -> str:
        """What is put before each text. Raises InvalidRequest."""
        prompts = self.bundle.prompts
        name = asked(prompts) if callable(asked) else asked
        if name is None:
            name = self.bundle.default_prompt_name
        if name is None:
            return ""
        if name not in prompts:
            there = f"choose one of: {', '.join(sorted(prompts))}" if prompts else "leave it out, the model has none"
            raise InvalidRequest(f"`prompt_name` is no prompt of the model: {there}.", param="prompt_name")
        return prompts[name]

    def shape(self, take: Take | None, normalize: bool | None, dimensions: int | None) -> Take | None:
        """`take` for the asked part and length of each vector. `dimensions` alone means a part of length 1.

        None is for the rows as they are in the slab; where another shape is asked for, the part is its bytes. Raises
        InvalidRequest.
        """
        if normalize is False and self.bundle.normalize:
            raise InvalidRequest(
                "`normalize` must be true or left out: the model itself scales its vectors to length 1, and what they "
                "were before cannot be had.",
                param="normalize",
            )
        if dimensions is not None:
            if dimensions > self.bundle.dim:
                raise InvalidRequest(
                    f"`dimensions` is {dimensions}, the model has {self.bundle.dim}: ask for at most that many.",
                    param="dimensions",
                )
            return sliced(take or raw_vector, dimensions, normalize=normalize is not False)
        return unit_length(take or raw_vector) if normalize and not self.bundle.normalize else take
