from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from perf.report import TABLES, markdown
from perf.results import RESULTS, ROOT, Machine, load_result, make_result, save_result
from perf.stats import spread

COMMITTED = sorted(RESULTS.glob("*.json"))


def test_a_result_reads_back_as_it_was_written(tmp_path: Path) -> None:
    result = make_result("bench", "python -m perf.bench", {"lanes": "2"}, {"ratio": spread([1.0, 2.0])})
    path = save_result(result, tmp_path)
    assert path.name == f"bench-{result.machine.slug}.json"
    found = load_result(path)
    assert (found.name, found.command, found.settings, found.commit) == (
        result.name,
        result.command,
        result.settings,
        result.commit,
    )
    assert found.data["ratio"] == {"median": 1.5, "q1": 1.25, "q3": 1.75, "min": 1.0, "max": 2.0}
    assert {"python", "onnxruntime"} <= found.versions.keys()


def test_a_result_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    text = save_result(make_result("x", "python -m perf.x", {}, {}), tmp_path).read_text()
    assert str(ROOT) not in text
    assert str(Path.home()) not in text


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    path = save_result(make_result("x", "python -m perf.x", {}, {}), tmp_path)
    path.write_text(path.read_text().replace('"name"', '"nome"', 1))
    with pytest.raises(msgspec.ValidationError):
        load_result(path)


@pytest.mark.parametrize(
    ("cpu", "slug"),
    [
        ("AMD EPYC 7B13 64-Core Processor", "amd-epyc-7b13-64-core-2-cores"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon-2-cores"),
    ],
)
def test_a_machine_gives_a_file_name(cpu: str, slug: str) -> None:
    assert Machine(cpu, 2, 8.0, "6.1").slug == slug


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_have_a_table(path: Path) -> None:
    result = load_result(path)
    assert any(result.name.startswith(kind) for kind in TABLES)
    assert result.command in markdown(result)
    assert str(ROOT) not in path.read_text()
