"""What dashboards, alerts and docs say of metrics is so."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from algomesh_observability.metrics import REGISTRY
from algomesh_observability.metrics_program import program_metrics
from tests.promql import expressions_of, metrics_in

ROOT = Path(__file__).parents[2]
DOCS, RUNBOOK = ROOT / "docs" / "observability.md", ROOT / "docs" / "runbook.md"
BOARDS = sorted((ROOT / "observability" / "grafana" / "dashboards").glob("*.json"))
ALERTS = ROOT / "observability" / "prometheus" / "alerts.yml"
PROGRAMS = ("gateway", "registry", "launcher", "ledger", "prewarmer")
# Of Prometheus and its client.
FOREIGN = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
_ROW = re.compile(r"\| `(algomesh_\w+)` \| (\w+) \| ([^|]*)\| (.*) \|")


class Documented(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def documented() -> Iterator[Documented]:
    text = DOCS.read_text().partition("<!-- metrics: begin")[2].partition("<!-- metrics: end")[0]
    for name, kind, labels, help_ in _ROW.findall(text):
        yield Documented(name, kind, tuple(re.findall(r"`(\w+)`", labels)), help_)


def test_every_metric_is_documented_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALGOMESH_STATE", str(tmp_path))
    for program in PROGRAMS:
        importlib.import_module(f"algomesh_services.{program}.metrics")

    there = {
        Documented(family.name, family.kind, family.labels, family.help)
        for family in [*REGISTRY.collect(), *program_metrics()()]
    }
    told = {each for each in documented() if not each.name.startswith("algomesh_spans_")}

    assert told == there


def test_names_follow_the_conventions() -> None:
    for each in documented():
        assert (each.kind == "counter") == each.name.endswith("_total"), each.name
        assert each.kind != "histogram" or each.name.endswith("_seconds"), each.name
        assert each.help.endswith("."), each.name


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_names_metrics_that_exist(path: Path) -> None:
    known = {each.name for each in documented()} | FOREIGN

    named = {name for expression in expressions_of(json.loads(path.read_text())) for name in metrics_in(expression)}

    assert named
    assert named <= known


def test_alerts_name_metrics_that_exist_and_places_in_the_runbook() -> None:
    known = {each.name for each in documented()} | FOREIGN
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.M)}
    text = ALERTS.read_text()
    alerts = re.findall(r"- alert: (\w+)", text)
    places = re.findall(r"runbook: docs/runbook\.md#(\S+)", text)

    assert metrics_in(text) <= known
    assert len(alerts) == len(places) == len(set(alerts)) > 0
    assert set(places) == anchors
    assert all(f"| {alert} |" in DOCS.read_text() for alert in alerts)


def test_the_dashboards_are_what_the_script_makes() -> None:
    made: dict[Path, str] = importlib.import_module("dashboards.__main__").rendered()

    assert {path.name: path.read_text() for path in BOARDS} == {path.name: text for path, text in made.items()}


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_every_panel_has_a_unit_a_description_and_a_place_of_its_own(path: Path) -> None:
    board: dict[str, Any] = json.loads(path.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            assert panel["type"] in ("heatmap", "table") or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
