"""A step of the machine's clock harms nothing: only what people read comes from it, and no wait or deadline."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Calls that read CLOCK_REALTIME, by where they may stand, and what for.
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "time.localtime", "time.ctime"}
FOR_PEOPLE = {
    "frontend/keys.py": "when a key was made",
    "frontend/request_log.py": "the time of a line",
    "frontend/tracing/spans.py": "when a span was",
}


def calls(path: Path) -> set[str]:
    """Every call in a file, as `module.function`."""
    nodes = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {f"{f.value.id}.{f.attr}" for f in nodes if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name)}


def test_nothing_waits_by_the_wall_clock() -> None:
    paths = [path for folder in ("ipc", "frontend", "engine") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): calls(path) & WALL_CLOCK for path in paths}
    assert {name for name, names in found.items() if names} == FOR_PEOPLE.keys()
    imports = [line for path in paths for line in path.read_text().splitlines() if line.startswith("from time import")]
    assert set(imports) <= {"from time import monotonic"}, "other names would not be found above"
