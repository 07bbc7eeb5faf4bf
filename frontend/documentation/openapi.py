"""The OpenAPI 3.1 document: the table of operations as JSON, built once at start-up."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import orjson

from frontend.documentation.operations import FAMILIES, JSON, OPERATIONS, Family, Operation
from frontend.responses import error_response
from ipc.bundle import Bundle
from ipc.errors import RequestError
from ipc.settings import Settings

Json = dict[str, Any]
# What is allowed of a field of each type; None where that type is not taken.
Limits = dict[str, Json | None]

VERSION: Final = "0.1.0"
EXAMPLE_ID: Final = "01234567-example"
EXAMPLE_RETRY_SECONDS: Final = 1.0

WHOLE: Final = {"type": "string", "pattern": "^[0-9]+$"}
MILLISECONDS: Final = {"type": "string", "pattern": r"^[0-9]+\.[0-9]{3}$"}

IDENTITY: Final = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9._:/+=@-]+$"}

SENT_ALWAYS: Final[Json] = {
    "X-Correlation-ID": {
        "description": "Name of this request in answers and logs: up to 128 letters, digits and `._:/+=@-`. Any other "
        "is replaced by a new one. `X-Request-ID` is taken as well.",
        "schema": {"type": "string"},
        "example": EXAMPLE_ID,
    }
}
SENT_TO_EMBED: Final[Json] = {
    "X-Request-Timeout-Ms": {
        "description": "Give up with 504 after so many milliseconds, or with 429 at once where that is too soon; more "
        "than the server's own limit is that limit.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
        "example": 5000,
    },
    "X-Priority": {
        "description": "`bulk` waits behind `interactive`, which is the default.",
        "schema": {"enum": ["interactive", "bulk"], "type": "string"},
        "example": "bulk",
    },
}
GIVEN_ALWAYS: Final[Json] = {
    "X-Correlation-ID": {
        "description": "The request's id, given or made.",
        "required": True,
        "schema": IDENTITY,
    }
}
GIVEN_WITH_VECTORS: Final[Json] = {
    "x-compute-tokens": {"description": "Tokens, counted after truncation.", "required": True, "schema": WHOLE},
    "x-total-time": {"description": "Milliseconds in the server.", "required": True, "schema": MILLISECONDS},
    "x-tokenization-time": {"description": "Of these, until tokenized.", "required": True, "schema": MILLISECONDS},
    "x-queue-time": {"description": "Milliseconds in the queue.", "required": True, "schema": MILLISECONDS},
    "x-inference-time": {"description": "Milliseconds in the model.", "required": True, "schema": MILLISECONDS},
    "x-model": {"description": "The model whose vectors these are.", "required": True, "schema": {"type": "string"}},
    "x-truncated-texts": {"description": "How many texts were cut, if any was.", "schema": WHOLE},
    "x-cache": {"description": "Whether vectors came from the cache.", "schema": {"type": "string"}},
    "x-embedding-shape": {
        "description": "Rows and numbers in each, where the answer is raw little-endian float32.",
        "schema": {"type": "string", "pattern": "^[0-9]+,[0-9]+$"},
    },
}
GIVEN_WITH_LIMITS: Final[Json] = {
    f"x-ratelimit-{what}{of}": {"description": f"{said}{whose}, where the key has a limit.", "schema": schema}
    for of, whose in (
        ("", " of the tightest limit on requests"),
        ("-requests", " of the same"),
        ("-tokens", " of tokens a minute"),
    )
    for what, said, schema in (
        ("limit", "What is allowed", WHOLE),
        ("remaining", "What is left", WHOLE),
        ("reset", "When all is free again", {"type": "string"}),
    )
}
GIVEN_WITH_ERRORS: Final[Json] = {
    "Retry-After": {"description": "Seconds after which to try again.", "schema": WHOLE},
    "retry-after-ms": {"description": "The same in milliseconds.", "schema": WHOLE},
    "WWW-Authenticate": {"description": "How to send the key.", "schema": {"type": "string"}},
}
ALL_GIVEN: Final[Json] = GIVEN_ALWAYS | GIVEN_WITH_VECTORS | GIVEN_WITH_LIMITS | GIVEN_WITH_ERRORS

SECURITY: Final[Json] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "`Authorization: Bearer KEY`; the bare key is taken as well.",
    },
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

DESCRIPTION: Final = (
    "Texts in, vectors out: {model}, {dim} numbers a vector, at most {tokens} tokens a text and {inputs} texts a "
    "request. A body may have {bytes} bytes."
)


def build_document(settings: Settings, bundle: Bundle) -> bytes:
    """The document as JSON, with the limits of these settings and this model."""
    schemas, components = _schemas()
    limits = _limits(settings, bundle)
    for component in components.values():
        _narrow(component, limits)
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "Embedlane",
            "version": VERSION,
            "summary": "An embedding server.",
            "description": DESCRIPTION.format(
                model=bundle.id,
                dim=bundle.dim,
                tokens=bundle.max_tokens,
                inputs=settings.max_inputs,
                bytes=settings.max_body_bytes,
            ),
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": family.name, "description": family.description} for family in FAMILIES],
        "security": [{name: []} for name in SECURITY],
        "paths": _paths(schemas),
        "components": {
            "schemas": components,
            "parameters": {
                name: {"name": name, "in": "header"} | header for name, header in (SENT_ALWAYS | SENT_TO_EMBED).items()
            },
            "headers": ALL_GIVEN,
            "responses": {
                _error_name(family, status): _error_answer(family, status, kinds, schemas[family.error])
                for family in FAMILIES
                for status, kinds in _by_status(family).items()
            },
            "securitySchemes": SECURITY,
        },
    }
    # Structs of the same name get their module's in front.
    return orjson.dumps(whole).replace(b"frontend.dialects.", b"")


def _schemas() -> tuple[Mapping[Any, Json], dict[str, Json]]:
    """Each type of the table with its schema, and the components that these refer to."""
    types: dict[Any, None] = {kind: None for op in OPERATIONS for kind in (*op.body, op.answer)}
    types |= {kind: None for op in OPERATIONS for kind in op.other.values()}
    types |= {family.error: None for family in FAMILIES}
    del types[None]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return dict(zip(types, schemas, strict=True)), components


def _limits(settings: Settings, bundle: Bundle) -> dict[str, Limits]:
    """What settings and model allow of a field, by its name."""
    inputs: Limits = {"array": {"maxItems": settings.max_inputs}}
    only_texts: Limits = {"array": {"maxItems": settings.max_inputs, "items": {"type": "string", "minLength": 1}}}
    return {
        "dimensions": {"integer": {"maximum": bundle.dim}},
        "embedding": {"array": {"maxItems": bundle.dim}},
        "inputs": inputs,
        "input": only_texts if settings.token_input == "reject" else {},  # noqa: S105 - no password
        "sentences": {"array": {"maxItems": settings.max_inputs - 1}},
        "normalize": {"boolean": {"enum": [True]}} if bundle.normalize else {},
        "prompt_name": {"string": {"enum": sorted(bundle.prompts)} if bundle.prompts else None},
    }


def _narrow(schema: Json, limits: Mapping[str, Limits]) -> None:
    """Narrow the fields of a component to what is allowed."""
    for name in schema.get("properties", {}).keys() & limits.keys():
        field = schema["properties"][name]
        for kind in list(field.get("anyOf", [field])):
            narrower = limits[name].get(kind.get("type", ""), {})
            if narrower is None:
                field["anyOf"].remove(kind)
            else:
                kind.update(narrower)


def _paths(schemas: Mapping[Any, Json]) -> Json:
    paths: Json = defaultdict(dict)
    for op in OPERATIONS:
        for path in (op.path, *op.also):
            paths[path][op.method.lower()] = _operation(op, path, schemas)
    return paths


def _operation(op: Operation, path: str, schemas: Mapping[Any, Json]) -> Json:
    sent = SENT_ALWAYS | (SENT_TO_EMBED if op.embeds else {})
    written: Json = {
        "operationId": f"{op.method.lower()}_{_slug(path)}",
        "tags": [op.family.name],
        "summary": op.summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in sent],
        "responses": dict(_answers(op, schemas)),
    }
    if path != op.path:
        written |= {"x-alias-of": op.path, "description": f"The same as `{op.path}`."}
    if op.is_open:
        written["security"] = []
    if op.body:
        any_of = [schemas[kind] for kind in op.body]
        examples = {title.replace(" ", "-"): {"summary": title, "value": body} for title, body in op.examples.items()}
        content = {JSON: {"schema": any_of[0] if len(any_of) == 1 else {"anyOf": any_of}, "examples": examples}}
        written["requestBody"] = {"required": True, "content": content}
    return written


def _slug(path: str) -> str:
    return re.sub(r"\W", "_", path.strip("/")) or "root"


def _answers(op: Operation, schemas: Mapping[Any, Json]) -> Iterator[tuple[str, Json]]:
    good: Json = {media: {} for media in op.media}
    if op.answer is not None:
        good[JSON] = {"schema": schemas[op.answer]} | ({} if op.shown is None else {"example": op.shown})
    limits = GIVEN_WITH_LIMITS if op.is_limited else {}
    headers = _headers(GIVEN_ALWAYS | (GIVEN_WITH_VECTORS if op.embeds else {}) | limits)
    yield "200", {"description": "Done.", "headers": headers, "content": good}
    for status, kind in op.other.items():
        content = {JSON: {"schema": schemas[kind]}}
        yield str(status), {"description": _said_of(kind), "headers": _headers(GIVEN_ALWAYS), "content": content}
    for status in sorted({op.family.dialect.STATUS[kind] for kind in op.errors}):
        yield str(status), {"$ref": f"#/components/responses/{_error_name(op.family, status)}"}


def _headers(given: Json) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in given}


def _by_status(family: Family) -> dict[int, list[type[RequestError]]]:
    """What any operation of a family may answer with, by status."""
    kinds = {kind: None for op in OPERATIONS if op.family is family for kind in op.errors}
    grouped = defaultdict(list)
    for kind in kinds:
        grouped[family.dialect.STATUS[kind]].append(kind)
    return grouped


def _error_name(family: Family, status: int) -> str:
    return f"{family.name}{status}"


def _error_answer(family: Family, status: int, kinds: list[type[RequestError]], schema: Json) -> Json:
    """One status, with an example for each error that has it, written by the dialect itself."""
    examples, headers = {}, GIVEN_ALWAYS | GIVEN_WITH_LIMITS
    for kind in kinds:
        is_passing = status in {429, 503}
        error = kind(_said_of(kind), retry_after=EXAMPLE_RETRY_SECONDS if is_passing else None)
        body = family.dialect.error_body(error, status, EXAMPLE_ID)
        examples[kind.code] = {"summary": _said_of(kind), "value": orjson.loads(body)}
        given = {name.lower() for name in error_response(error, status, body).headers}
        headers |= {name: header for name, header in GIVEN_WITH_ERRORS.items() if name.lower() in given}
    return {
        "description": " ".join(_said_of(kind) for kind in kinds),
        "headers": _headers(headers),
        "content": {JSON: {"schema": schema, "examples": examples}},
    }


def _said_of(kind: type) -> str:
    """The first line of its docstring."""
    return (kind.__doc__ or kind.__name__).partition("\n")[0]
