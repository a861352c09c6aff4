"""A mesh as a user runs it shows what the docs, the dashboards and the alerts say it does."""

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conditions import until
from tests.integration.metrics_load import Load, page
from tests.integration.up_fixtures import Up
from tests.promql import expressions_of, metrics_in

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
HEADINGS = {"Gateway": "gateway", "Registry": "registry", "Launcher": "launcher", "Ledger": "ledger"} | {
    "Pre-warmer": "prewarmer"
}
_ROW = re.compile(r"^\| `(algomesh_\w+)` \| (\w+) \|", re.M)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    folder = tmp_path_factory.mktemp("metrics")
    with Up(folder / "state", ALGOMESH_GPUS="0") as mesh, Load(mesh, folder) as load:
        load.round()
        yield load


def pages(load: Load, accept: str = "text/plain") -> dict[str, str]:
    return {program: page(address, accept) for program, address in load.mesh.said["metrics"].items()}


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    total = 0.0
    for line in text.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")) and all(
            f'{key}="{each}"' in line for key, each in labels.items()
        ):
            total += float(line.rpartition("}")[2].split()[0] if "}" in line else line.split()[1])
    return total


def documented() -> dict[str, dict[str, str]]:
    """Names and kinds by program, and those of all programs."""
    text = (ROOT / "docs" / "observability.md").read_text().partition("<!-- metrics: begin")[2]
    sections = dict(part.split("\n", 1) for part in text.split("\n### ")[1:])
    every = dict(_ROW.findall(sections["Every program"]))
    return {program: every | dict(_ROW.findall(sections[heading])) for heading, program in HEADINGS.items()}


def test_each_program_shows_what_is_documented_of_it(load: Load) -> None:
    shown = {
        program: {
            f"{name}_total" if kind == "counter" and not name.endswith("_total") else name: kind
            for name, kind in re.findall(r"^# TYPE (algomesh_\w+) (\w+)$", text, re.M)
        }
        for program, text in pages(load).items()
    }

    assert shown == documented()


def test_dashboards_and_alerts_ask_for_what_the_programs_show(load: Load) -> None:
    texts = pages(load).values()
    shown = {name for text in texts for name in re.findall(r"^# TYPE (\w+) \w+$", text, re.M)} | {"up"}
    shown |= {f"{name}_total" for name in shown}
    folder = ROOT / "observability"
    asked = metrics_in((folder / "prometheus" / "alerts.yml").read_text())
    for path in (folder / "grafana" / "dashboards").glob("*.json"):
        asked |= {name for each in expressions_of(json.loads(path.read_text())) for name in metrics_in(each)}

    assert asked <= shown


async def test_a_call_is_counted_everywhere_it_went(load: Load) -> None:
    def is_counted() -> bool:
        told = pages(load)
        ledger, launcher = told["ledger"], told["launcher"]
        return (
            value(ledger, "algomesh_calls_total", algorithm="load/shout", code="ok") > 3
            and value(ledger, "algomesh_calls_total", algorithm="load/fails", code="algorithm_error") > 0
            and value(ledger, "algomesh_calls_total", code="load_failed") > 0
            and value(ledger, "algomesh_cold_calls_total", algorithm="load/shout") > 0
            and value(ledger, "algomesh_gpu_seconds_total", algorithm="load/paints") > 0
            and value(ledger, "algomesh_ledger_dropped_total", reason="not_allowed") > 0
            and value(launcher, "algomesh_cold_start_seconds_count", algorithm="load/shout") > 0
            and value(launcher, "algomesh_start_failures_total", code="load_failed") > 0
            and value(launcher, "algomesh_gpu_held_seconds_total", algorithm="load/paints") > 0
            and value(told["gateway"], "algomesh_http_requests_total", status="200") > 0
            and value(told["registry"], "algomesh_auth_seconds_count", token="instance") > 0
            and value(told["prewarmer"], "algomesh_prewarm_starts_total") > 0
        )

    await until(is_counted, 60, every_s=0.2)


async def test_a_latency_leads_to_the_run_behind_it(load: Load) -> None:
    run = load.client.algo("load/shout").pipe("whose?").metadata.run_id

    def is_there() -> bool:
        return run in page(load.mesh.said["metrics"]["ledger"], "application/openmetrics-text;version=1.0.0")

    assert run is not None
    await until(is_there, 10, every_s=0.1)


async def test_calls_that_wait_are_seen_with_their_age(load: Load) -> None:
    def call() -> None:
        _ = load.client.algo("load/slow").pipe("text").result

    callers = [threading.Thread(target=call) for _ in range(12)]
    for caller in callers:
        caller.start()
    try:

        def is_seen() -> bool:
            text = page(load.mesh.said["metrics"]["launcher"])
            return (
                value(text, "algomesh_parked_calls", algorithm="load/slow") > 1
                and value(text, "algomesh_parked_age_seconds", algorithm="load/slow") > 1
                and value(text, "algomesh_runs_in_flight", algorithm="load/slow") == 1
            )

        await until(is_seen, 10, every_s=0.05)
    finally:
        for caller in callers:
            caller.join()


async def test_a_program_that_is_started_again_shows_its_metrics_at_the_same_address(load: Load) -> None:
    address = load.mesh.said["metrics"]["prewarmer"]
    os.kill(load.mesh.pids["prewarmer"], signal.SIGKILL)

    def is_back() -> bool:
        try:
            return value(page(address), "algomesh_connected", server="nats") == 1.0
        except OSError:
            return False

    await until(lambda: not is_back(), 10)
    await until(is_back, 20, every_s=0.1)


def test_the_state_directory_tells_where_they_are(load: Load) -> None:
    run = load.mesh.state / "run"
    told = json.loads((run / "prometheus.json").read_text())
    mesh = json.loads((run / "mesh.json").read_text())

    addresses = {each["labels"]["program"]: each["targets"][0] for each in told}
    assert addresses == load.mesh.said["metrics"]
    assert mesh["metrics"] == {program: f"http://{address}/metrics" for program, address in addresses.items()}
    assert all(address.startswith("127.0.0.1:") for address in addresses.values())
