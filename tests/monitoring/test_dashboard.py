"""The committed dashboard is what the code makes, and every query of it finds something in a real run."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from monitoring.dashboard import COLUMNS, PATH, dashboard, text
from monitoring.panels import ROWS, Panel
from tests.monitoring.prometheus_server import MONITORING, Prometheus

PANELS = [panel for row in ROWS.values() for panel in row]
# Nothing of the kind happens in the run: here zero is right, and it must be there.
STAY_ZERO = {"Servers down", "Padding", "Texts without a vector", "Messages dropped"}
# Rows go back as soon as they are read, and texts leave in the next batch: whether one is there when it is looked at is
# chance.
MAY_BE_ZERO = {"Rows lent, by front end", "Queue", "Queue used", "Texts that wait", "Tokens that wait"}
ORIGINAL = {
    "Requests by status",
    "Requests that failed (5xx)",
    "Request time",
    "Texts in a batch, mean",
    "Texts that wait",
    "Batches that run",
    "Wait for a batch",
    "Compute of a batch",
    "Batch sizes",
}


def filled_in(expr: str) -> str:
    """As Grafana does for all servers and a scrape each second."""
    return expr.replace("$__rate_interval", "4s").replace("$instance", ".*")


def boxes() -> list[dict[str, int]]:
    return [panel["gridPos"] for panel in dashboard()["panels"]]


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in (("x", "w"), ("y", "h"))
    )


def test_the_committed_file_is_what_the_code_makes() -> None:
    assert PATH.read_text() == text(), "run: python -m monitoring.dashboard"


def test_panels_have_names_of_their_own_and_room() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    assert not [pair for pair in itertools.combinations(boxes(), 2) if overlap(*pair)]
    assert all(box["x"] + box["w"] <= COLUMNS for box in boxes())


def test_the_originals_nine_panels_are_there() -> None:
    assert {panel.title for panel in PANELS} >= ORIGINAL


def test_grafana_knows_the_scrape_interval_and_finds_the_data_source() -> None:
    scrape = re.findall(r"scrape_interval: (\w+)", (MONITORING / "prometheus.yml").read_text())
    source = MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    assert re.findall(r"timeInterval: (\w+)", source.read_text()) == scrape
    assert [variable["name"] for variable in dashboard()["templating"]["list"]] == ["datasource", "instance"]
    assert set(re.findall(r"\$\w+|\$\{\w+\}", json.dumps(dashboard()))) == {
        "$instance",
        "$__rate_interval",
        "$__all",
        "${datasource}",
    }


@pytest.mark.system
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_every_query_finds_something(prometheus: Prometheus, panel: Panel) -> None:
    for query in panel.queries:
        found = prometheus.over_the_run(filled_in(query.expr))
        assert found, query.expr
        highest = max(value for values in found.values() for value in values)
        if panel.title in STAY_ZERO:
            assert highest == 0, query.expr
        elif panel.title not in MAY_BE_ZERO:
            assert highest > 0, query.expr
        # A legend of labels that the series do not have would be empty.
        names = set(re.findall(r"{{(\w+)}}", query.legend))
        assert all(names <= {name for name, _ in labels} for labels in found), query


@pytest.mark.system
def test_the_variable_and_the_annotation_find_something(prometheus: Prometheus) -> None:
    found: list[dict[str, Any]] = prometheus.get("series", **{"match[]": 'up{job="embedlane"}'})
    assert [series["job"] for series in found] == ["embedlane"]
    starts = prometheus.over_the_run(filled_in(dashboard()["annotations"]["list"][0]["target"]["expr"]))
    assert len({value for values in starts.values() for value in values}) == 2, "the engine was started twice"
