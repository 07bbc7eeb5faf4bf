"""Every operation there is, as the document describes it: the one table behind `/openapi.json` and `/docs`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from frontend import answers
from frontend.dialects import Dialect, openai, original, tei
from ipc.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    InputTooLong,
    InternalError,
    InvalidRequest,
    Overloaded,
    PoisonRequest,
    RequestError,
    Unauthorized,
    UnsupportedMedia,
)
from ipc.settings import DEFAULT_MODEL

Errors = tuple[type[RequestError], ...]

OPEN: Final[Errors] = (InternalError,)
KEYED: Final[Errors] = (Unauthorized, InternalError)
WITH_BODY: Final[Errors] = (*KEYED, InvalidRequest, UnsupportedMedia, BodyTooLarge)
EMBEDDING: Final[Errors] = (
    *WITH_BODY,
    InputTooLong,
    Overloaded,
    EngineUnavailable,
    DeadlineExceeded,
    EngineFailure,
    PoisonRequest,
)

JSON: Final = "application/json"


@dataclass(frozen=True)
class Family:
    """Operations of one dialect: how their errors read, and who uses them."""

    name: str
    dialect: Dialect
    error: type
    description: str


OPENAI: Final = Family(
    "OpenAI", openai, answers.OpenAIError, "For OpenAI's clients: their base URL is this server's /v1."
)
TEI: Final = Family(
    "TEI", tei, answers.TEIError, "For clients of text-embeddings-inference: their base URL is this server's."
)
ORIGINAL: Final = Family("Original", original, answers.OriginalError, "For clients of the original gateway.")
SERVER: Final = Family("Server", original, answers.OriginalError, "For orchestrators and for people; no key is needed.")
FAMILIES: Final = (OPENAI, TEI, ORIGINAL, SERVER)


@dataclass(frozen=True)
class Operation:
    """One method of one path, and of its aliases in `also`.

    `body` and `answer` are types that msgspec makes schemas of. `examples` are bodies that work, by what they show;
    `shown` is an answer to the first of them, its vectors cut short. `other` holds answers that are no errors, by
    status; `media` the types of a 200, of which only JSON has a schema.
    """

    method: str
    path: str
    summary: str
    family: Family
    errors: Errors
    answer: Any = None
    shown: Any = None
    body: type | None = None
    examples: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    other: Mapping[int, type] = field(default_factory=dict)
    media: tuple[str, ...] = (JSON,)

    @property
    def is_open(self) -> bool:
        """Whether it needs no key."""
        return Unauthorized not in self.errors

    @property
    def embeds(self) -> bool:
        """Whether texts go to the engine."""
        return EngineFailure in self.errors


TEXT: Final = "The quick brown fox"
SHORT_VECTOR: Final = [0.0612, -0.0225, 0.0448]

OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/embeddings",
        "Embed texts",
        OPENAI,
        EMBEDDING,
        body=openai.EmbeddingsBody,
        examples={
            "one text": {"input": TEXT, "model": DEFAULT_MODEL},
            "several texts, the first 64 numbers of each, as base64": {
                "input": [TEXT, "jumps over the lazy dog"],
                "dimensions": 64,
                "encoding_format": "base64",
            },
            "a text that is cut where it is too long": {"input": TEXT, "truncate": True},
        },
        answer=answers.EmbeddingsAnswer,
        shown={
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": SHORT_VECTOR}],
            "model": DEFAULT_MODEL,
            "usage": {"prompt_tokens": 6, "total_tokens": 6},
        },
        also=("/embeddings",),
    ),
    Operation(
        "GET",
        "/v1/models",
        "List the one model",
        OPENAI,
        KEYED,
        answer=answers.ModelsAnswer,
        shown={
            "object": "list",
            "data": [{"id": DEFAULT_MODEL, "object": "model", "created": 0, "owned_by": "embedlane"}],
        },
    ),
    Operation(
        "POST",
        "/embed",
        "Embed texts: a bare list of vectors",
        TEI,
        EMBEDDING,
        body=tei.EmbedBody,
        examples={
            "one text": {"inputs": TEXT},
            "several texts, cut where they are too long": {"inputs": [TEXT, "jumps"], "truncate": True},
            "the first 64 numbers": {"inputs": TEXT, "dimensions": 64, "normalize": True},
        },
        answer=list[answers.Vector],
        shown=[SHORT_VECTOR],
    ),
    Operation(
        "POST",
        "/v1/embed",
        "Embed one text, cut where it is too long",
        ORIGINAL,
        EMBEDDING,
        body=original.EmbedBody,
        examples={"one text": {"input_text": TEXT}},
        answer=answers.EmbedAnswer,
        shown={"embedding": SHORT_VECTOR, "model": DEFAULT_MODEL},
    ),
    Operation(
        "GET",
        "/health",
        "Whether this process runs",
        SERVER,
        OPEN,
        answer=answers.Health,
        shown={"status": "ok"},
    ),
    Operation(
        "GET",
        "/ready",
        "Whether embeddings go through",
        SERVER,
        OPEN,
        answer=answers.Ready,
        shown={"status": "ready", "model": DEFAULT_MODEL},
        other={503: answers.NotReady},
    ),
    Operation("GET", "/openapi.json", "This interface as an OpenAPI document", SERVER, OPEN, answer=dict[str, Any]),
    Operation("GET", "/docs", "This interface as a page", SERVER, OPEN, also=("/",), media=("text/html",)),
)
