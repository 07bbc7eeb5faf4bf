"""Grafana's dashboard, as code.

python -m monitoring.dashboard      writes monitoring/grafana/dashboards/embedlane.json

Rows and panels in `monitoring.panels`; here is how they become Grafana's JSON (schema 39, Grafana 10.4 and newer).
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from monitoring.panels import ROWS, SERVER, Kind, Panel

Json = dict[str, Any]

PATH: Final = Path(__file__).parent / "grafana" / "dashboards" / "embedlane.json"
# Grafana's grid; on a phone it puts all panels below each other.
COLUMNS: Final = 24
HEIGHTS: Final = {Kind.LINES: 8, Kind.AREAS: 8, Kind.HEATMAP: 8, Kind.NUMBER: 4, Kind.NAME: 4}
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> Json:
    """The whole dashboard."""
    return {
        "uid": "embedlane",
        "title": "Embedlane",
        "tags": ["embedlane"],
        "schemaVersion": 39,
        "editable": False,
        # The cross-hair is at the same moment in all panels.
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source_variable(), _instance_variable()]},
        "annotations": {"list": [_engine_starts()]},
        "panels": list(_panels()),
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


def main() -> int:
    """Write the file."""
    PATH.write_text(text())
    return 0


def _panels() -> Iterator[Json]:
    numbers = itertools.count(1)
    y = 0
    for title, panels in ROWS.items():
        grid = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {"id": next(numbers), "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}
        y, x, height = y + 1, 0, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                y, x = y + height, 0
            height = HEIGHTS[panel.kind]
            grid = {"x": x, "y": y, "w": panel.width, "h": height}
            yield {"id": next(numbers), "gridPos": grid, **_panel(panel)}
            x += panel.width
        y += height


def _panel(panel: Panel) -> Json:
    kind = {Kind.LINES: "timeseries", Kind.AREAS: "timeseries", Kind.HEATMAP: "heatmap"}.get(panel.kind, "stat")
    return {
        "type": kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [_target(panel, number) for number in range(len(panel.queries))],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(panel: Panel, number: int) -> Json:
    query = panel.queries[number]
    is_heatmap = panel.kind is Kind.HEATMAP
    return {
        "refId": chr(ord("A") + number),
        "datasource": SOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "format": "heatmap" if is_heatmap else "time_series",
        "instant": panel.kind is Kind.NAME,
        "range": panel.kind is not Kind.NAME,
        "editorMode": "code",
    }


def _defaults(panel: Panel) -> Json:
    defaults: Json = {"unit": panel.unit}
    if panel.kind is not Kind.NAME and panel.unit != "percentunit":
        defaults["min"] = 0
    if panel.unit == "percentunit":
        defaults |= {"min": 0, "max": 1}
    if panel.values:
        options = {str(value): {"text": name, "index": value} for value, name in enumerate(panel.values)}
        defaults["mappings"] = [{"type": "value", "options": options}]
    if panel.warn is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.warn}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.kind in {Kind.LINES, Kind.AREAS}:
        is_area = panel.kind is Kind.AREAS
        defaults["custom"] = {
            "fillOpacity": 30 if is_area else 0,
            "stacking": {"mode": "normal" if is_area else "none", "group": "A"},
            "showPoints": "never",
        }
    return defaults


def _options(panel: Panel) -> Json:
    if panel.kind is Kind.HEATMAP:
        return {
            "calculate": False,
            "color": {"mode": "scheme", "scheme": "Oranges", "exponent": 0.5, "steps": 64, "reverse": False},
            "yAxis": {"axisPlacement": "left", "unit": panel.unit},
            "legend": {"show": False},
            "tooltip": {"mode": "single", "yHistogram": False},
        }
    if panel.kind in {Kind.NUMBER, Kind.NAME}:
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "name" if panel.kind is Kind.NAME else "auto",
            "colorMode": "none" if panel.kind is Kind.NAME or panel.warn is None else "value",
            "graphMode": "none" if panel.kind is Kind.NAME else "area",
        }
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _source_variable() -> Json:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}


def _instance_variable() -> Json:
    return {
        "name": "instance",
        "label": "Server",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": 'label_values(up{job="embedlane"}, instance)', "refId": "instance"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _engine_starts() -> Json:
    return {
        "name": "Engine starts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "blue",
        "target": {
            "expr": f"embedlane_engine_start_time_seconds{{{SERVER}}} * 1000",
            "refId": "Anno",
            "interval": "60s",
        },
        "useValueForTime": True,
        "titleFormat": "Engine started",
    }


if __name__ == "__main__":
    sys.exit(main())
