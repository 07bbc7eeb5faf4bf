"""The OpenAPI document as one page of HTML that needs no script and no other file."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, Final

import orjson

from frontend.documentation.markup import Html, block, table, tag, whole_page
from frontend.documentation.operations import JSON

Json = dict[str, Any]

TYPES: Final = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
LIMITS: Final = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} long",
    "maxLength": "at most {} long",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}


class Page:
    """One document as one page; `url` is where the lines to copy send their requests."""

    def __init__(self, document: Json, url: str) -> None:
        self._document = document
        self._url = url

    def render(self) -> Html:
        """The whole page."""
        info = self._document["info"]
        body = [
            tag("h1", info["title"], " ", tag("small", info["version"])),
            tag("p", info["description"]),
            tag("p", "Programs read the same from ", tag("a", "/openapi.json", href="/openapi.json"), "."),
            tag("p", "To try the server and to watch it: ", tag("a", "its page", href="/"), "."),
            *self._key(),
            tag("nav", tag("ul", *(tag("li", link) for link in self._links()))),
            *(part for family in self._document["tags"] for part in self._family(family)),
            tag("h2", "Headers"),
            tag("h4", "A request may have"),
            _headers(self._document["components"]["parameters"]),
            tag("h4", "An answer may have"),
            _headers(self._document["components"]["headers"]),
        ]
        return whole_page(info["title"], body)

    def _key(self) -> Iterator[Html]:
        yield tag("h2", "The key")
        yield tag(
            "p", "Send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`. The lines to copy take it from here:"
        )
        yield block(f"URL={shlex.quote(self._url)}\nKEY='the key that the server printed'", "setup")

    def _links(self) -> Iterator[Html]:
        for path, method, operation in self._operations():
            name = tag("a", f"{method.upper()} {path}", href=f"#{operation['operationId']}")
            yield Html(name + tag("small", " ", operation["summary"]))

    def _operations(self) -> Iterator[tuple[str, str, Json]]:
        for path, methods in self._document["paths"].items():
            for method, operation in methods.items():
                yield path, method, operation

    def _family(self, family: Json) -> Iterator[Html]:
        yield tag("h2", family["name"])
        yield tag("p", family["description"])
        for path, method, operation in self._operations():
            if family["name"] in operation["tags"]:
                yield tag("article", *self._operation(path, method, operation), id=operation["operationId"])

    def _operation(self, path: str, method: str, operation: Json) -> Iterator[Html]:
        yield tag("h3", tag("span", method.upper(), class_="method"), " ", path)
        yield tag("p", operation["summary"], ". ", operation.get("description", ""))
        if "x-alias-of" in operation:
            return
        content = operation.get("requestBody", {"content": {}})["content"].get(JSON, {})
        if content:
            yield tag("h4", "Fields")
            yield table(("Name", "Type", "Default", "Meaning"), self.fields(content["schema"]))
        yield tag("h4", "Request")
        auth = "" if operation.get("security") == [] else ' -H "Authorization: Bearer $KEY"'
        for example in content.get("examples", {"": None}).values():
            yield block(f'curl -s "$URL{path}"{auth}{_sent(example)}', "request")
        yield from self._answers(operation["responses"])

    def _answers(self, answers: Json) -> Iterator[Html]:
        example = answers["200"]["content"].get(JSON, {}).get("example")
        if example is not None:
            yield tag("h4", "Answer, vectors cut short")
            yield block(_pretty(example), "answer")
        problems = [(status, self._resolve(answer)) for status, answer in answers.items() if status != "200"]
        yield tag("h4", "Errors")
        yield table(("Status", "Meaning"), [(status, problem["description"]) for status, problem in problems])

    def fields(self, schema: Json, before: str = "") -> Iterator[tuple[str, ...]]:
        """Name, type, default and meaning of each field; those of an object within follow it."""
        schema = self._resolve(schema)
        for kind in schema.get("anyOf", ()):
            yield from self.fields(kind, before)
        for name, field in schema.get("properties", {}).items():
            default = "required" if name in schema.get("required", ()) else orjson.dumps(field.get("default")).decode()
            yield tag("code", before + name), self._type(field), default, field.get("description", "")
            yield from self.fields(field, f"{before}{name}.")

    def _type(self, schema: Json) -> str:
        """A field's type in words, with its limits."""
        schema = self._resolve(schema)
        if "anyOf" in schema:
            return " or ".join(self._type(kind) for kind in schema["anyOf"] if kind != {"type": "null"}) or "`null`"
        if "enum" in schema:
            return " or ".join(f"`{orjson.dumps(value).decode()}`" for value in schema["enum"])
        kind = str(schema.get("type", "anything"))
        words = f"list of {self._item(schema['items'])}" if "items" in schema else TYPES.get(kind, kind)
        limits = [text.format(schema[name]) for name, text in LIMITS.items() if name in schema]
        return f"{words} ({', '.join(limits)})" if limits else words

    def _item(self, schema: Json) -> str:
        words = self._type(schema)
        return f"({words})" if "anyOf" in schema else words

    def _resolve(self, schema: Json) -> Json:
        while "$ref" in schema:
            _, group, name = schema["$ref"].removeprefix("#/").split("/")
            schema = self._document["components"][group][name]
        return schema


def _headers(headers: Json) -> Html:
    rows = [(tag("code", name), header["description"]) for name, header in headers.items()]
    return table(("Name", "Meaning"), rows)


def _sent(example: Json | None) -> str:
    if example is None:
        return ""
    return f" -H 'Content-Type: application/json' -d {shlex.quote(orjson.dumps(example['value']).decode())}"


def _pretty(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
