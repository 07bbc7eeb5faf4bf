"""What answers look like, for the document alone: dialects write theirs as bytes, and tests hold them to this."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Count = Annotated[int, Meta(ge=0)]
Vector = Annotated[list[float], Meta(min_length=1, description="float32 numbers that read back exactly; of length 1")]
Base64Vector = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9+/]+={0,2}$",
        description="the same as little-endian float32, where `encoding_format` is base64",
    ),
]


class EmbeddingItem(Struct, forbid_unknown_fields=True):
    """One text's vector."""

    object: Literal["embedding"]
    index: Annotated[Count, Meta(description="the text's place in the request")]
    embedding: Vector | Base64Vector


class Usage(Struct, forbid_unknown_fields=True):
    """Tokens, counted after truncation."""

    prompt_tokens: Count
    total_tokens: Count


class EmbeddingsAnswer(Struct, forbid_unknown_fields=True):
    """One item a text, in the request's order."""

    object: Literal["list"]
    data: Annotated[list[EmbeddingItem], Meta(min_length=1)]
    model: str
    usage: Usage


class Model(Struct, forbid_unknown_fields=True):
    """The model this server runs."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str


class ModelsAnswer(Struct, forbid_unknown_fields=True):
    """The one model there is."""

    object: Literal["list"]
    data: list[Model]


Cosine = Annotated[float, Meta(ge=-1, le=1)]


class Pooling(Struct, forbid_unknown_fields=True):
    """How a text's vector comes of those of its tokens."""

    pooling: str


class ModelType(Struct, forbid_unknown_fields=True):
    """What kind of model it is: one for embeddings."""

    embedding: Pooling


class Info(Struct, forbid_unknown_fields=True):
    """The model and the limits; `model_dtype` is null while there is no engine."""

    model_id: str
    model_sha: str
    model_dtype: str | None
    model_type: ModelType
    max_concurrent_requests: Count
    max_input_length: Count
    max_batch_tokens: Count
    max_batch_requests: Count
    max_client_batch_size: Count
    auto_truncate: bool
    dimensions: Count
    prompts: list[str]
    default_prompt_name: str | None


class EmbedAnswer(Struct, forbid_unknown_fields=True):
    """The one text's vector."""

    embedding: Vector
    model: str


class PerRule(Struct, forbid_unknown_fields=True):
    """Of each limit; null where there is none."""

    requests_per_minute: float | None
    requests_per_hour: float | None
    tokens_per_minute: float | None


class UsageAnswer(Struct, forbid_unknown_fields=True):
    """The key's limits, what is left of them, and the seconds until all of it is free again."""

    key: str
    limits: PerRule
    remaining: PerRule
    reset_seconds: PerRule


class Health(Struct, forbid_unknown_fields=True):
    """The process runs."""

    status: Literal["ok"]


class Ready(Struct, forbid_unknown_fields=True):
    """An embedding went through within the last second."""

    status: Literal["ready"]
    model: str


class NotReady(Struct, forbid_unknown_fields=True):
    """No embedding goes through now."""

    status: Literal["not ready"]
    reason: str


class OpenAIProblem(Struct, forbid_unknown_fields=True):
    """What went wrong; `param` names the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(Struct, forbid_unknown_fields=True):
    """An error as OpenAI's clients read it."""

    error: OpenAIProblem


class TEIError(Struct, forbid_unknown_fields=True):
    """An error as clients of text-embeddings-inference read it."""

    error: str
    error_type: str


class OriginalError(Struct, forbid_unknown_fields=True):
    """An error of the original gateway, and of every path that belongs to no dialect."""

    error: str
    detail: str
    code: str
    correlation_id: str
    retry_after: Annotated[float, Meta(ge=0, description="seconds, where trying again helps")] | UnsetType = UNSET
