"""Whole comparisons of tiny real servers, and the arithmetic of their ratios."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from ipc.errors import StartError
from perf.compare import Comparison, compare, inverse, main, parse_options, result_of, times, verdict
from perf.peers.systems import parse_system
from perf.report import markdown
from tests.perf.tiny import KNOWN, UNKNOWN, Embed, rightly, tiny_server

SHORT = ("--rounds", "2", "--seconds", "0.2", "--warm-up", "0.1", "--connections", "4", "--no-save")
DELAY = 0.02


def run(*urls: str, more: tuple[str, ...] = ()) -> Comparison:
    options = parse_options([*(f"url:{url}" for url in urls), *SHORT, "--key", "a-key-of-the-tests", *more])
    return compare([parse_system(name, options.key, options.model) for name in options.systems], options)


def of_two(embed: Embed, delay: float = 0.0, more: tuple[str, ...] = ()) -> Comparison:
    """A right server that answers at once, and this one."""
    with tiny_server() as (right, _), tiny_server(embed, delay) as (other, _):
        return run(right, other, more=more)


def other(comparison: Comparison) -> str:
    return list(comparison.systems)[1]


def test_a_ratio_is_the_base_before_and_after_over_what_is_between() -> None:
    assert times([2.0, 4.0, 6.0], [1.0, 10.0]) == [3.0, 0.5]
    assert times([2.0, 0.0, 6.0], [1.0, 10.0]) == [None, None]
    assert times([2.0, 4.0], [0.0]) == times([None, 4.0], [1.0]) == [None]


def test_a_ratio_needs_a_base_turn_on_either_side() -> None:
    with pytest.raises(ValueError, match="zip"):
        times([2.0, 4.0], [1.0, 1.0])


def test_the_inverse_leaves_out_what_is_missing() -> None:
    assert inverse([4.0, None, 0.5]) == [0.25, None, 2.0]


def test_the_faster_server_is_found_to_be_so() -> None:
    comparison = of_two(rightly, DELAY)
    base, slow = comparison.systems.values()
    assert comparison.void == []
    assert (base.times, base.errors, slow.errors) == (None, {}, {})
    assert slow.times is not None
    assert slow.times.min > 1
    assert slow.p50_ms is not None
    assert slow.p50_ms.min >= DELAY * 1000
    assert slow.lowest_cosine == pytest.approx(1.0)
    # Each has its turn, and the base one more; those of other people's processes have no CPU time to show.
    assert (len(base.phases), len(slow.phases)) == (3, 2)
    assert slow.cpu_us is slow.cpu_times is None


def test_several_texts_a_request_count_as_texts() -> None:
    comparison = of_two(rightly, more=("--texts", "4"))
    phase = comparison.systems[other(comparison)].phases[0]
    assert comparison.void == []
    assert phase.texts_rate == pytest.approx(4 * phase.report.achieved_rate)


def test_wrong_vectors_make_the_run_void() -> None:
    comparison = of_two(lambda _, __: UNKNOWN)
    assert any(other(comparison) in reason and "cosine" in reason for reason in comparison.void)
    assert "VOID" in verdict(comparison)


def test_a_wrong_number_of_vectors_makes_the_run_void() -> None:
    comparison = of_two(lambda _, text: [] if text.startswith("A") else rightly(0, text), more=("--texts", "32"))
    assert any(other(comparison) in reason for reason in comparison.void)


def test_an_answer_of_another_form_under_load_makes_the_run_void() -> None:
    def embed(number: int, text: str) -> list[float]:
        return rightly(number, text)[: -1 if number % 7 == 6 and text not in KNOWN else None]

    comparison = of_two(embed)
    assert comparison.systems[other(comparison)].errors["wrong"] > 0
    assert any("of the wrong form" in reason for reason in comparison.void)


def test_errors_are_counted_and_are_no_answers() -> None:
    comparison = of_two(lambda number, text: rightly(0, text) if number % 2 else [], 0.002)
    found = comparison.systems[other(comparison)]
    assert found.errors["429"] > 0
    assert found.errors["429"] < sum(phase.report.requests for phase in found.phases)
    assert "429" in verdict(comparison)


def test_a_server_that_refuses_everything_has_no_ratio() -> None:
    comparison = of_two(lambda _, __: [])
    found = comparison.systems[other(comparison)]
    assert found.times is found.p50_ms is None
    assert any("without a right answer" in reason for reason in comparison.void)
    options = parse_options([*comparison.systems, *SHORT])
    assert "**Void:**" in markdown(result_of(comparison, options))


def test_the_servers_take_turns_and_get_the_same_key() -> None:
    with ExitStack() as ends:
        servers = [ends.enter_context(tiny_server()) for _ in range(3)]
        comparison = run(*(url for url, _ in servers))
        assert all(b"Bearer a-key-of-the-tests" in head for _, seen in servers for head in seen)
    assert [len(found.phases) for found in comparison.systems.values()] == [3, 2, 2]


def test_a_result_has_the_command_and_a_table_and_not_the_key() -> None:
    with tiny_server() as (one, _), tiny_server() as (two, _):
        comparison = run(one, two)
    options = parse_options([f"url:{one}", f"url:{two}", *SHORT, "--key", "a-key-of-the-tests"])
    result = result_of(comparison, options)
    assert result.name.startswith("compare-url-http-127-0-0-1-")
    assert result.command.startswith(f"python -m perf.compare url:{one} url:{two} --rounds 2 --seconds 0.2 ")
    table = markdown(result)
    assert one in table
    assert "a-key-of-the-tests" not in table + str(result)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["url:http://a:1"], "two systems or more"),
        (["url:http://a:1", "url:http://a:1"], "each once"),
        (["nothing", "here"], "is no system"),
        (["here", "commit:no-such-branch"], "is not in this repository"),
        (["here", "url:https://a"], "no address"),
        (["here", "infinity:rust"], "is no system"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_sentence(
    names: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["compare", *names, *SHORT])
    assert main() == StartError.EXIT_CODE
    assert reason in capsys.readouterr().err


def test_the_original_takes_one_text_a_request() -> None:
    systems = [parse_system("here"), parse_system("original")]
    with pytest.raises(StartError, match="takes 1 text a request"):
        compare(systems, parse_options(["here", "original", "--texts", "2"]))


def test_exit_status_tells_a_good_run_from_a_void_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_server() as (right, _), tiny_server(lambda _, __: UNKNOWN) as (wrong, _), tiny_server() as (also, _):
        for second, status in ((also, 0), (wrong, 1)):
            monkeypatch.setattr("sys.argv", ["compare", f"url:{right}", f"url:{second}", *SHORT])
            assert main() == status
