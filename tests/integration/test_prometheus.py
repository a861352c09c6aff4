"""A real Prometheus, in a container, with the configuration that comes with the mesh, scrapes a mesh under load."""

import functools
import json
import math
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from algomesh_services.local.ports import check_port
from tests.integration.metrics_load import Load, page
from tests.integration.up_fixtures import Up
from tests.promql import expressions_of, filled

pytestmark = [pytest.mark.integration, pytest.mark.engine]

# The one that deploy/compose has, or whatever of it is here.
IMAGES = (os.environ.get("PROMETHEUS_IMAGE") or "prom/prometheus:v3.13.4", "prom/prometheus:latest")
OBSERVABILITY = Path(__file__).parents[2] / "observability"
WITHIN_S = 100.0


def docker(*arguments: str, stdin: str | None = None, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(scope="module")
def needs_prometheus() -> None:
    if not find_image():
        pytest.skip(f"needs a Docker engine with {IMAGES[0]}")


@functools.cache
def find_image() -> str:
    """The first of the images that the engine has; empty without one."""
    try:
        return next((image for image in IMAGES if docker("image", "inspect", image).returncode == 0), "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


def promtool(*arguments: str, folder: Path, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    name = f"algomesh-metrics-{uuid.uuid4().hex[:8]}"
    mount = ("-v", f"{folder}:/etc/prometheus:ro", "--entrypoint", "promtool")
    return docker("run", "--rm", "-i", "--name", name, *mount, find_image(), *arguments, stdin=stdin)


class Prometheus:
    """One in a container on the host's network, with our configuration, told of `targets`."""

    def __init__(self, folder: Path, targets: Path) -> None:
        self.name = f"algomesh-metrics-{uuid.uuid4().hex[:8]}"
        self.url = f"http://127.0.0.1:{check_port('127.0.0.1', 0)}"
        self._folder = folder / "prometheus"
        shutil.copytree(OBSERVABILITY / "prometheus", self._folder)
        (self._folder / "targets").mkdir(exist_ok=True)
        shutil.copy(targets, self._folder / "targets" / "mesh.json")
        # Half a minute of a test has to be enough for a rate.
        config = self._folder / "prometheus.yml"
        config.write_text(
            config.read_text().replace("scrape_interval: 5s\n  scrape_timeout: 4s", "scrape_interval: 1s")
        )
        for path in (self._folder, self._folder / "targets"):
            path.chmod(0o755)
        for path in self._folder.rglob("*.*"):
            path.chmod(0o644)

    def __enter__(self) -> "Prometheus":
        started = docker(
            "run", "-d", "--rm", "--name", self.name, "--network", "host",
            "-v", f"{self._folder}:/etc/prometheus:ro", "--tmpfs", "/data", find_image(),
            "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/data",
            "--enable-feature=exemplar-storage", f"--web.listen-address={self.url.removeprefix('http://')}",
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        return self

    def __exit__(self, *exc: object) -> None:
        docker("rm", "-f", self.name)

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer; None while it does not answer."""
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=20
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        except OSError:
            return None

    def has_data(self, expression: str) -> bool:
        """Whether a query gives a figure at some moment of the last minutes."""
        now = time.time()
        found = self.ask("query_range", query=expression, start=str(now - 180), end=str(now), step="2")
        series = found["result"] if found else []
        return any(math.isfinite(float(figure)) for each in series for _, figure in each["values"])


@pytest.fixture(scope="module")
def load(needs_prometheus: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    folder = tmp_path_factory.mktemp("prometheus")
    with Up(folder / "state", ALGOMESH_GPUS="0") as mesh, Load(mesh, folder) as load:
        load.round()
        yield load


@pytest.fixture(scope="module")
def prometheus(load: Load, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    told = load.mesh.state / "run" / "prometheus.json"
    with Prometheus(tmp_path_factory.mktemp("config"), told) as prometheus:
        yield prometheus


@pytest.mark.timeout(240)
def test_every_query_of_every_dashboard_returns_data_after_a_load(load: Load, prometheus: Prometheus) -> None:
    variables = {"algorithm": ".*", "version": ".*", "caller": ".*"}
    missing = {
        filled(expression, **variables)
        for path in sorted((OBSERVABILITY / "grafana" / "dashboards").glob("*.json"))
        for expression in expressions_of(json.loads(path.read_text()))
    }
    assert len(missing) > 50

    deadline = time.monotonic() + WITHIN_S
    while missing and time.monotonic() < deadline:
        load.round()
        missing = {expression for expression in missing if not prometheus.has_data(expression)}

    assert not missing


def test_all_programs_are_scraped(prometheus: Prometheus) -> None:
    deadline = time.monotonic() + 30
    while True:
        found = prometheus.ask("query", query='up{job="algomesh"} == 1')
        up = {each["metric"]["program"] for each in found["result"]} if found else set()
        if up == {"gateway", "registry", "launcher", "ledger", "prewarmer"}:
            return
        assert time.monotonic() < deadline, up
        time.sleep(0.2)


def test_exemplars_are_kept(load: Load, prometheus: Prometheus) -> None:
    deadline = time.monotonic() + 30
    while True:
        now = time.time()
        found = prometheus.ask(
            "query_exemplars", query="algomesh_call_seconds_bucket", start=str(now - 300), end=str(now)
        )
        ids = {exemplar["labels"]["trace_id"] for each in found or () for exemplar in each["exemplars"]}
        if ids:
            assert all(len(each) == 32 for each in ids)
            return
        assert time.monotonic() < deadline
        _ = load.client.algo("load/shout").pipe("one more").result
        time.sleep(0.2)


def test_the_alert_rules_are_loaded_and_can_be_evaluated(prometheus: Prometheus) -> None:
    deadline = time.monotonic() + 60
    while True:
        found = prometheus.ask("rules", type="alert")
        rules = [rule for group in found["groups"] for rule in group["rules"]] if found else []
        if rules and all(rule["health"] == "ok" for rule in rules):
            break
        assert time.monotonic() < deadline, [rule.get("lastError") for rule in rules]
        time.sleep(0.5)

    assert {rule["annotations"]["runbook"].partition("#")[0] for rule in rules} == {"docs/runbook.md"}
    assert len(rules) == 10


def test_promtool_finds_no_fault_in_the_configuration_and_the_rules(needs_prometheus: None) -> None:
    checked = promtool("check", "config", "/etc/prometheus/prometheus.yml", folder=OBSERVABILITY / "prometheus")

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_promtool_finds_no_fault_in_what_the_programs_show(load: Load) -> None:
    for program, address in load.mesh.said["metrics"].items():
        checked = promtool("check", "metrics", folder=OBSERVABILITY / "prometheus", stdin=page(address))
        faults = [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("algomesh_")]

        assert not faults, program
