"""The architecture, held by a test: who may import whom, and what the core must not contain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("ipc", "frontend", "engine", "tools", "perf", "monitoring", "tests")
CORE = ("ipc", "frontend", "engine")
MOST_LINES = 300

# A folder → which of ours it may import. All others may import anything.
MAY_IMPORT: dict[str, set[str]] = {
    "ipc": {"ipc"},
    "frontend": {"frontend", "ipc"},
    "engine": {"engine", "ipc"},
}

# A name → the folders that must not import it at module level. Heavy libraries are extras that most installs lack.
NOT_AT_MODULE_LEVEL: dict[str, tuple[str, ...]] = {
    "torch": OURS,
    "transformers": OURS,
    "sentence_transformers": OURS[:-1],  # tests/reference/make.py is all about it
    "tiktoken": OURS[:-1],
    "pynvml": OURS[:-1],
    "opentelemetry": tuple({*OURS} - {"frontend", "tests"}),  # and a front end does without unless it is asked
    "starlette": ("ipc", "engine"),
    "uvicorn": ("ipc", "engine"),
    "tokenizers": ("ipc", "engine"),
    "onnxruntime": ("ipc", "frontend"),
}

# A name → why the core does without it, wherever it stands.
NEVER_IN_CORE: dict[str, str] = {
    "pickle": "whoever can write to the socket could run code",
    "multiprocessing": "processes are the supervisor's, and on 3.11 an attaching one unlinks shared memory as it ends",
    "zmq.asyncio": "it costs ten times a plain socket on the loop",
}


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Import(NamedTuple):
    """One imported module and where it stands."""

    module: str
    line: int
    at_module_level: bool


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), path.name)


def imports(tree: ast.Module) -> Iterator[Import]:
    """Every import, also those of names that may be modules themselves (`from zmq import asyncio`)."""
    inside = {id(node) for scope in ast.walk(tree) if isinstance(scope, FUNCTIONS) for node in ast.walk(scope)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports: they hide the layer"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            yield Import(module, node.lineno, id(node) not in inside)


def is_part_of(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_there_is_something_to_look_at() -> None:
    assert all(files(folder) for folder in OURS)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_dependencies_point_one_way(folder: str) -> None:
    wrong = [
        f"{name(path)}:{found.line} imports {found.module}"
        for path in files(folder)
        for found in imports(parse(path))
        if (top := found.module.partition(".")[0]) in OURS and top not in MAY_IMPORT[folder]
    ]
    assert not wrong


@pytest.mark.parametrize("library", NOT_AT_MODULE_LEVEL)
def test_heavy_libraries_are_imported_only_where_they_are_used(library: str) -> None:
    wrong = [
        f"{name(path)}:{found.line}"
        for path in files(*NOT_AT_MODULE_LEVEL[library])
        for found in imports(parse(path))
        if found.at_module_level and is_part_of(found.module, library)
    ]
    assert not wrong


@pytest.mark.parametrize("library", NEVER_IN_CORE)
def test_what_the_core_does_without(library: str) -> None:
    wrong = [
        f"{name(path)}:{found.line}"
        for path in files(*CORE)
        for found in imports(parse(path))
        if is_part_of(found.module, library)
    ]
    assert not wrong, NEVER_IN_CORE[library]
    # Nor by another way in, such as an attribute.
    assert not [name(path) for path in files(*CORE) if re.search(rf"\b{re.escape(library)}\.\w+\(", path.read_text())]


@pytest.mark.parametrize("path", files(*CORE), ids=name)
def test_a_file_of_the_core_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", files(*CORE), ids=name)
def test_no_error_is_swallowed(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            is_wide = caught in {"everything", "Exception", "BaseException"}
            does_nothing = all(isinstance(line, ast.Pass | ast.Continue | ast.Break) for line in node.body)
            assert not (is_wide and does_nothing), f"line {node.lineno}: whatever went wrong, nobody will know"


def test_the_rules_see_what_they_are_to_see() -> None:
    tree = ast.parse("import torch\ndef f():\n    from zmq import asyncio\n    import a.b\n")
    assert list(imports(tree)) == [Import("torch", 1, True), Import("zmq.asyncio", 3, False), Import("a.b", 4, False)]
    assert is_part_of("zmq.asyncio", "zmq")
    assert not is_part_of("zmqasyncio", "zmq")
