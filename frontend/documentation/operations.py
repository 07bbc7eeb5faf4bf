"""Every operation there is, as the document describes it: the one table behind `/openapi.json` and `/docs`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from frontend.dialects import Dialect, openai, original, tei
from frontend.documentation import answers
from frontend.raw import NPY, OCTETS
from frontend.tokenizer import Token
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
    RateLimited,
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
    RateLimited,
    Overloaded,
    EngineUnavailable,
    DeadlineExceeded,
    EngineFailure,
    PoisonRequest,
)

JSON: Final = "application/json"
# Vectors as they are, where `Accept` asks for them.
VECTORS: Final = (JSON, OCTETS, NPY)


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

    `body` (any one of these) and `answer` are types that msgspec makes schemas of. `examples` are bodies that work, by
    what they show; `shown` is an answer to the first of them, its vectors cut short. `other` holds answers that are no
    errors, by status; `media` the types of a 200, of which only JSON has a schema.
    """

    method: str
    path: str
    summary: str
    family: Family
    errors: Errors
    answer: Any = None
    shown: Any = None
    body: tuple[type, ...] = ()
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

    @property
    def is_limited(self) -> bool:
        """Whether it counts against the key's limits."""
        return RateLimited in self.errors


TEXT: Final = "The quick brown fox"
COMPARISON: Final = {"source_sentence": TEXT, "sentences": ["A fast auburn fox", "Interest rates rose"]}
SHORT_VECTOR: Final = [0.0612, -0.0225, 0.0448]

OPERATIONS: Final = (
    Operation(
        "POST",
        "/v1/embeddings",
        "Embed texts",
        OPENAI,
        EMBEDDING,
        body=(openai.EmbeddingsBody,),
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
        media=VECTORS,
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
        body=(tei.EmbedBody,),
        examples={
            "one text": {"inputs": TEXT},
            "several texts, cut where they are too long": {"inputs": [TEXT, "jumps"], "truncate": True},
            "the first 64 numbers": {"inputs": TEXT, "dimensions": 64, "normalize": True},
        },
        answer=list[answers.Vector],
        shown=[SHORT_VECTOR],
        media=VECTORS,
    ),
    Operation(
        "POST",
        "/similarity",
        "Compare a text with others: the cosine of each",
        TEI,
        EMBEDDING,
        body=(tei.SimilarityBody,),
        examples={
            "two comparisons": {"inputs": COMPARISON},
            "texts cut where they are too long": {"inputs": COMPARISON, "parameters": {"truncate": True}},
        },
        answer=list[answers.Cosine],
        shown=[0.7131, 0.0214],
    ),
    Operation(
        "POST",
        "/",
        "What `/embed` or `/similarity` does, by the body",
        TEI,
        EMBEDDING,
        body=(tei.EmbedBody, tei.SimilarityBody),
        examples={"vectors": {"inputs": [TEXT], "truncate": True}, "cosines": {"inputs": COMPARISON}},
        answer=list[answers.Vector | answers.Cosine],
        shown=[SHORT_VECTOR],
        media=VECTORS,
    ),
    Operation(
        "POST",
        "/tokenize",
        "Split texts into tokens; `start` and `stop` count bytes of UTF-8",
        TEI,
        (*WITH_BODY, InputTooLong, RateLimited),
        body=(tei.TokenizeBody,),
        examples={"one text": {"inputs": "fox", "add_special_tokens": False}, "several texts": {"inputs": [TEXT, "a"]}},
        answer=list[list[Token]],
        shown=[[{"id": 4419, "text": "fox", "special": False, "start": 0, "stop": 3}]],
    ),
    Operation(
        "GET",
        "/info",
        "The model and the limits",
        TEI,
        KEYED,
        answer=answers.Info,
        shown={
            "model_id": DEFAULT_MODEL,
            "model_sha": "1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
            "model_dtype": "float32",
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": 16384,
            "max_input_length": 256,
            "max_batch_tokens": 2048,
            "max_batch_requests": 16,
            "max_client_batch_size": 2048,
            "auto_truncate": False,
            "dimensions": 384,
            "prompts": [],
            "default_prompt_name": None,
        },
    ),
    Operation(
        "POST",
        "/v1/embed",
        "Embed one text, cut where it is too long",
        ORIGINAL,
        EMBEDDING,
        body=(original.EmbedBody,),
        examples={"one text": {"input_text": TEXT}},
        answer=answers.EmbedAnswer,
        shown={"embedding": SHORT_VECTOR, "model": DEFAULT_MODEL},
        media=VECTORS,
    ),
    Operation(
        "GET",
        "/v1/usage",
        "The key's limits, and what is left of them",
        ORIGINAL,
        KEYED,
        answer=answers.UsageAnswer,
        shown={
            "key": "a-name",
            "limits": {"requests_per_minute": 60, "requests_per_hour": 1000, "tokens_per_minute": None},
            "remaining": {"requests_per_minute": 59, "requests_per_hour": 999, "tokens_per_minute": None},
            "reset_seconds": {"requests_per_minute": 60.0, "requests_per_hour": 3600.0, "tokens_per_minute": None},
        },
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
        also=("/readiness", "/ping"),
    ),
    Operation("GET", "/metrics", "What all processes count, for Prometheus", SERVER, OPEN, media=("text/plain",)),
    Operation("GET", "/openapi.json", "This interface as an OpenAPI document", SERVER, OPEN, answer=dict[str, Any]),
    Operation("GET", "/docs", "This interface as a page", SERVER, OPEN, media=("text/html",)),
    Operation("GET", "/", "A page to try the server and to watch it", SERVER, OPEN, media=("text/html",)),
)
