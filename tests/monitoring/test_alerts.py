"""Configuration and alerts: what promtool and a real Prometheus make of them, and that each is explained."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from perf.stack import KEY, ROOT
from tests.monitoring.prometheus_server import MONITORING, Prometheus, binary, configure

RULES = (MONITORING / "alerts.yml").read_text()
TESTS = (MONITORING / "alerts_test.yml").read_text()
ALERTS = re.findall(r"- alert: (\w+)", RULES)
# What the run does to the server.
TROUBLES = {
    "EmbedlaneDown",
    "EmbedlaneEngineDown",
    "EmbedlaneErrors",
    "EmbedlaneBreakerOpen",
    "EmbedlaneRedisAway",
    "EmbedlaneTextsRefused",
}


def promtool(*arguments: str | Path, folder: Path = MONITORING) -> str:
    done = subprocess.run([binary("promtool"), *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_configuration(tmp_path: Path) -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "config", "prometheus.yml")
    promtool("check", "config", configure(tmp_path, 8000, KEY), folder=tmp_path)


def test_every_alert_fires_when_it_should_and_not_otherwise() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
    silent = set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", TESTS))
    fires = set(re.findall(r"alertname: (\w+)\n +exp_alerts:\n +- exp_labels", TESTS))
    assert silent == fires == set(ALERTS)


def test_every_alert_is_explained() -> None:
    anchors = re.findall(r"runbook_url: (.+)", RULES)
    assert anchors == [f"docs/operations.md#{name.lower()}" for name in ALERTS]
    assert re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE) == ALERTS


def test_without_a_prometheus_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match=r"no promtool on this machine: .*apt-get install prometheus\.$"):
        binary("promtool")


@pytest.mark.system
def test_every_alert_finds_what_it_looks_at(prometheus: Prometheus) -> None:
    rules = prometheus.get("rules")["groups"][0]["rules"]
    assert [rule["name"] for rule in rules] == ALERTS
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", "")
        # `bool` has a comparison give 0 in place of nothing.
        told = re.sub(r" (==|<|>) ", r" \1 bool ", rule["query"])
        assert " bool " in told
        assert prometheus.over_the_run(told), told


@pytest.mark.system
def test_the_troubles_of_the_run_are_noticed_and_others_are_not(prometheus: Prometheus) -> None:
    # Now: the last comes after the server's end.
    found = prometheus.get("query", query="count by (alertname) (count_over_time(ALERTS[10m]))")["result"]
    # A process that has just started does grow: only hours of it make the alert fire.
    assert {series["metric"]["alertname"] for series in found} - {"EmbedlaneMemoryGrows"} == TROUBLES
    firing = prometheus.get("query", query='count_over_time(ALERTS{alertstate="firing"}[10m])')["result"]
    assert not firing, "none of this lasted"
