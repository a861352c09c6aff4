"""What dashboards and alerts ask Prometheus: their expressions, and the metrics in them."""

import re
from collections.abc import Iterator
from typing import Any

_METRIC = re.compile(r"\b(algomesh_\w+|process_\w+|up)\b(?=\s*[{\[()=<>/*+\s,]|$)")
_PARTS = re.compile(r"(_seconds)_(?:bucket|sum|count)$")
_STRINGS = re.compile(r'"[^"]*"')


def expressions_of(board: dict[str, Any]) -> Iterator[str]:
    """Every expression of a dashboard, its variables' among them."""
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in board["templating"]["list"]:
        yield variable["definition"].removeprefix("label_values(").rpartition(",")[0]


def metrics_in(expression: str) -> set[str]:
    """The metrics that an expression names, a histogram by its own name."""
    found = _METRIC.findall(_STRINGS.sub('""', expression))
    return {_PARTS.sub(r"\1", name) for name in found}


def filled(expression: str, **variables: str) -> str:
    """The expression as Grafana would send it, with these values for `$name`."""
    for name, value in {"__rate_interval": "1m", "__range": "10m", **variables}.items():
        expression = expression.replace(f"${name}", value)
    return expression
