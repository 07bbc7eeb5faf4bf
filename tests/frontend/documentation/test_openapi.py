"""The document against the code that it describes; tests/system/test_openapi.py holds it against a running server."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import orjson
import pytest

from frontend.app import DIALECTS, OPEN_PATHS, ROUTES
from frontend.dialects import original
from frontend.documentation.openapi import VERSION, build_document
from frontend.documentation.operations import OPERATIONS, Operation
from ipc.bundle import Bundle
from ipc.settings import Settings

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]


@pytest.fixture
def document(bundle: Bundle) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(build_document(Settings(max_inputs=7), bundle))
    return content


def paths(operation: Operation) -> tuple[str, ...]:
    return (operation.path, *operation.also)


def everywhere(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of the document."""
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from everywhere(inner)


def find(document: dict[str, Any], reference: str) -> Any:
    for name in reference.removeprefix("#/").split("/"):
        document = document[name]
    return document


def is_valid(document: dict[str, Any], schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is of a schema of the document."""
    return jsonschema_rs.is_valid(schema | {"components": document["components"]}, value)


def is_decoded(kind: type, body: Any) -> bool:
    """Whether the dialect takes this body for one of a kind."""
    try:
        msgspec.json.decode(orjson.dumps(body), type=kind)
    except msgspec.ValidationError:
        return False
    return True


def test_the_table_is_what_the_routes_are() -> None:
    routes = {(method, route.path) for route in ROUTES for method in route.methods or () if method != "HEAD"}
    described = [(operation.method, path) for operation in OPERATIONS for path in paths(operation)]
    assert sorted(described) == sorted(routes)


def test_the_document_is_what_the_table_is(document: dict[str, Any]) -> None:
    written = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert written == {(operation.method, path) for operation in OPERATIONS for path in paths(operation)}


def test_no_key_where_none_is_needed() -> None:
    for operation in OPERATIONS:
        for path in paths(operation):
            assert operation.is_open == (path in OPEN_PATHS and operation.method == "GET"), path


def test_errors_are_those_of_the_dialect() -> None:
    for operation in OPERATIONS:
        for path in paths(operation):
            assert operation.family.dialect is DIALECTS.get(path, original) or operation.is_open, path


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    references = {node["$ref"] for node in everywhere(document) if "$ref" in node}
    assert references
    assert all(find(document, reference) for reference in references)


def test_names_are_unique(document: dict[str, Any]) -> None:
    names = [node["operationId"] for node in everywhere(document["paths"]) if "operationId" in node]
    assert len(names) == len(set(names))


def test_every_example_is_of_its_schema(document: dict[str, Any]) -> None:
    seen = 0
    for node in everywhere([document["paths"], document["components"]["responses"]]):
        if "schema" in node:
            shown = [example["value"] for example in node.get("examples", {}).values()]
            shown += [node["example"]] if "example" in node else []
            assert [value for value in shown if not is_valid(document, node["schema"], value)] == []
            seen += len(shown)
    assert seen > 20


@pytest.mark.parametrize("operation", [op for op in OPERATIONS if op.body], ids=lambda op: op.path)
def test_every_example_is_what_the_dialect_decodes(operation: Operation) -> None:
    assert operation.examples
    for body in operation.examples.values():
        assert any(is_decoded(kind, body) for kind in operation.body), body


def test_limits_are_those_of_settings_and_model(document: dict[str, Any], bundle: Bundle) -> None:
    schema = document["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert is_valid(document, schema, {"inputs": ["a"] * 7, "dimensions": bundle.dim})
    refused: list[dict[str, Any]] = [
        {"inputs": ["a"] * 8},
        {"inputs": "a", "dimensions": bundle.dim + 1},
        {"inputs": "a", "dimensions": 0},
        {"inputs": ""},
        {"inputs": []},
        {},
    ]
    for wrong in refused:
        assert not is_valid(document, schema, wrong), wrong
    assert bundle.id in document["info"]["description"]


@pytest.mark.parametrize("operation", [op for op in OPERATIONS if op.body], ids=lambda op: op.path)
async def test_answers_and_errors_are_as_described(
    http: httpx.AsyncClient, document: dict[str, Any], operation: Operation
) -> None:
    responses = document["paths"][operation.path]["post"]["responses"]
    bodies = [orjson.dumps(body) for body in (*operation.examples.values(), {}, [], None)]
    answers = [await http.post(operation.path, content=body) for body in (*bodies, b"{", b" " * 100_001)]
    answers.append(await http.post(operation.path, content=b"{}", headers={"content-type": "text/plain"}))
    answers.append(await http.post(operation.path, content=b"{}", headers={"authorization": "wrong"}))
    assert {answer.status_code for answer in answers} >= {200, 401, 413, 415}
    for answer in answers:
        described = responses[str(answer.status_code)]
        described = find(document, described["$ref"]) if "$ref" in described else described
        assert is_valid(document, described["content"]["application/json"]["schema"], answer.json())
        assert {name for name in answer.headers if name.startswith("x-")} <= {n.lower() for n in described["headers"]}


async def test_it_is_served_without_a_key(http: httpx.AsyncClient) -> None:
    request = http.build_request("GET", "/openapi.json")
    del request.headers["authorization"]
    answer = await http.send(request)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["openapi"].startswith("3.1")


def test_the_version_is_the_package_s() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
