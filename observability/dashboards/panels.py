"""The parts of a dashboard, as Grafana's JSON has them, with the few settings that this mesh's dashboards differ in.

A panel is made without a place; `board` lays rows of them out on Grafana's grid of 24 columns.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from dashboards.queries import PROMETHEUS, Json, query

COLUMNS: Final = 24
_SCHEMA: Final = 39
_GREEN, _YELLOW, _RED = "green", "yellow", "red"


def number(title: str, expression: str, unit: str, help_: str, *, warn: float | None = None, bad: float = 0) -> Json:
    """One figure with its course behind it; from `warn` on it is yellow, from `bad` on red."""
    steps: list[Json] = [{"color": _GREEN, "value": None}]
    if warn is not None:
        steps += [{"color": _YELLOW, "value": warn}, {"color": _RED, "value": bad}]
    return {
        "type": "stat",
        "title": title,
        "description": help_,
        "datasource": PROMETHEUS,
        "targets": _lettered([query(expression, title)]),
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value",
        },
    }


def lines(title: str, queries: Iterable[Json], unit: str, help_: str, *, is_stacked: bool = False) -> Json:
    """Courses over time; stacked ones are filled."""
    return {
        "type": "timeseries",
        "title": title,
        "description": help_,
        "datasource": PROMETHEUS,
        "targets": _lettered(queries),
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "custom": {
                    "drawStyle": "line",
                    "lineWidth": 1 if is_stacked else 2,
                    "fillOpacity": 35 if is_stacked else 8,
                    "gradientMode": "none" if is_stacked else "opacity",
                    "showPoints": "never",
                    "spanNulls": 60_000,
                    "stacking": {"mode": "normal" if is_stacked else "none", "group": "A"},
                },
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "table", "placement": "right", "calcs": ["mean", "max"], "sortBy": "Mean"}
            | {"sortDesc": True, "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def heatmap(title: str, metric: str, where: str, help_: str) -> Json:
    """How a histogram of seconds is spread, over time."""
    expression = f"sum by (le) (increase({metric}_bucket{where}[$__rate_interval]))"
    return {
        "type": "heatmap",
        "title": title,
        "description": help_,
        "datasource": PROMETHEUS,
        "targets": _lettered([query(expression, "{{le}}", has_exemplars=True) | {"format": "heatmap"}]),
        "options": {
            "calculate": False,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "reverse": False},
            "exemplars": {"color": "rgba(31,96,196,0.7)"},
            "yAxis": {"unit": "s", "axisPlacement": "left"},
            "cellGap": 1,
            "tooltip": {"mode": "single", "yHistogram": True},
            "legend": {"show": True},
        },
    }


def bars(title: str, expression: str, legend: str, unit: str, help_: str) -> Json:
    """One bar for each series, the longest first."""
    return {
        "type": "bargauge",
        "title": title,
        "description": help_,
        "datasource": PROMETHEUS,
        "targets": _lettered([query(f"sort_desc({expression})", legend, is_instant=True)]),
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "color": {"mode": "continuous-BlPu"}},
            "overrides": [],
        },
        "options": {
            "displayMode": "gradient",
            "orientation": "horizontal",
            "showUnfilled": True,
            "valueMode": "text",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def table(title: str, columns: Sequence[tuple[str, str, str]], help_: str, *, hidden: Sequence[str] = ()) -> Json:
    """Instant values side by side, joined by their labels; a column is its heading, its expression and its unit."""
    targets = _lettered(query(expression, is_instant=True) for _, expression, _ in columns)
    names = {f"Value #{target['refId']}": heading for target, (heading, _, _) in zip(targets, columns, strict=True)}
    overrides = [
        {"matcher": {"id": "byName", "options": heading}, "properties": [{"id": "unit", "value": unit}]}
        for heading, _, unit in columns
    ]
    return {
        "type": "table",
        "title": title,
        "description": help_,
        "datasource": PROMETHEUS,
        "targets": targets,
        "fieldConfig": {"defaults": {"custom": {"filterable": True}}, "overrides": overrides},
        "options": {"showHeader": True, "sortBy": [{"displayName": columns[0][0], "desc": True}]},
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {"excludeByName": dict.fromkeys(("Time", *hidden), True), "renameByName": names},
            },
        ],
    }


def variable(name: str, label: str, values: str, *, takes_all: bool = True) -> Json:
    """A choice at the head of the dashboard; `values` is a query such as `label_values(metric, label)`."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"query": values, "refId": name},
        "definition": values,
        "refresh": 2,
        "sort": 1,
        "multi": takes_all,
        "includeAll": takes_all,
        "allValue": ".*" if takes_all else None,
        "current": {"text": "All", "value": "$__all"} if takes_all else {},
    }


def board(uid: str, title: str, help_: str, rows: Sequence[tuple[str, int, Sequence[Json]]], *choices: Json) -> Json:
    """A dashboard: rows of a heading, a height in grid units and panels, which share the width evenly."""
    ids = itertools.count(1)
    panels: list[Json] = []
    top = 0
    for heading, height, row in rows:
        panels.append({"id": next(ids), "type": "row", "title": heading, "collapsed": False, "panels": []})
        panels[-1]["gridPos"] = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        top += 1
        width = COLUMNS // len(row)
        for place, panel in enumerate(row):
            grid = {"h": height, "w": width, "x": place * width, "y": top}
            panels.append({"id": next(ids), **panel, "gridPos": grid})
        top += height
    return {
        "uid": uid,
        "title": title,
        "description": help_,
        "tags": ["algomesh"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "templating": {"list": list(choices)},
        "annotations": {"list": []},
        "links": [
            {"type": "dashboards", "tags": ["algomesh"], "title": "Mesh", "asDropdown": False, "keepTime": True}
            | {"includeVars": False, "targetBlank": False, "icon": "external link", "url": "", "tooltip": ""}
        ],
        "panels": panels,
    }


def _lettered(queries: Iterable[Json]) -> list[Json]:
    return [{"refId": chr(ord("A") + place), **each} for place, each in enumerate(queries)]
