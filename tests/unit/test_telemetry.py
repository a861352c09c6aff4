"""The switch: when spans are made, what is imported, what instances are told, what is counted."""

import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from algomesh_observability import exporting, otel_environment, telemetry
from algomesh_observability.exporting import Outlet
from algomesh_observability.spans import SpanRecord, messaging

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


def record(name: str = "work", error: str = "") -> SpanRecord:
    return SpanRecord(
        trace="0af7651916cd43dd8448eb211c80319c", span="b7ad6b7169203331", name=name, start_ns=1, end_ns=2, error=error
    )


class Kept(SpanExporter):
    """Keeps what it is given; `gate` holds it up, `result` is what it says."""

    def __init__(self, result: SpanExportResult = SpanExportResult.SUCCESS) -> None:
        self.spans: list[ReadableSpan] = []
        self.gate = threading.Event()
        self.gate.set()
        self.result = result

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.gate.wait()
        self.spans += spans
        return self.result


def test_off_by_default_and_then_nothing_is_imported() -> None:
    code = (
        "import sys\n"
        "from algomesh_observability import telemetry\n"
        "telemetry.configure('gateway', environment={}); telemetry.preload()\n"
        "assert telemetry.active is None\n"
        "assert not [name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'google.protobuf'))]\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(path for path in sys.path if path)}

    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


@pytest.mark.parametrize(
    "environment",
    [
        {}, {**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, {**ENDPOINT, "OTEL_TRACES_EXPORTER": "console"},
    ],
)  # fmt: skip
def test_the_standard_variables_can_say_no(environment: dict[str, str]) -> None:
    assert not otel_environment.is_wanted(environment)
    assert otel_environment.for_instances(environment) == {}


def test_a_protocol_that_is_not_spoken_is_said_and_not_tried() -> None:
    environment = {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}

    assert "4318" in otel_environment.why_not(environment)
    assert telemetry.configure("gateway", environment=environment) is None


def test_a_variable_that_the_exporter_cannot_read_turns_it_off_and_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise ValueError("what is this?")

    monkeypatch.setattr(exporting, "OTLPSpanExporter", refuse)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")

    telemetry.preload()

    assert telemetry.configure("gateway") is None


def test_instances_get_where_and_how_often_but_nothing_that_opens_a_collector() -> None:
    environment = {**ENDPOINT, "OTEL_TRACES_SAMPLER": "traceidratio", "ALGOMESH_POSTGRES": "secret", "OTEL_X": "x"}

    assert otel_environment.for_instances(environment) == {**ENDPOINT, "OTEL_TRACES_SAMPLER": "traceidratio"}


@pytest.mark.parametrize(
    "secret",
    [
        {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abc"},
        {"OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": "/key.pem"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:abc@collector"},
    ],
)
def test_where_a_collector_wants_a_secret_instances_send_to_another_or_not_at_all(secret: dict[str, str]) -> None:
    environment = {**ENDPOINT, **secret}
    near = {"ALGOMESH_INSTANCE_OTLP_ENDPOINT": "http://localhost:4318"}

    given = otel_environment.for_instances({**environment, **near})

    assert otel_environment.for_instances(environment) == {}
    assert given["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://localhost:4318"
    assert "abc" not in str(given)


def test_resource_attributes_are_read_as_they_are_written() -> None:
    text = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=a%20b, broken ,team=x=y,=z"}

    assert otel_environment.resource_attributes(text) == {"deployment.environment": "a b", "team": "x=y"}


def test_spans_go_out_with_their_status_when_it_ends() -> None:
    kept = Kept()
    outlet = Outlet({"service.name": "test"}, say=lambda *_: None, exporter=kept, delay_ms=60_000)

    outlet.add(record())
    outlet.add(record(error="run_timeout"))
    outlet.close(2.0)

    fine, failed = sorted(kept.spans, key=lambda span: span.status.is_ok is False)
    assert fine.status.is_unset
    assert not failed.status.is_ok
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "run_timeout"
    assert outlet.exported == 2


def test_a_full_queue_drops_and_counts_and_keeps_nobody_waiting() -> None:
    kept = Kept()
    kept.gate.clear()
    outlet = Outlet({"service.name": "test"}, say=lambda *_: None, exporter=kept, queue_size=10, delay_ms=60_000)

    for _ in range(100):
        outlet.add(record())
    kept.gate.set()
    outlet.close(2.0)

    assert outlet.exported + outlet.dropped == 100
    assert outlet.dropped >= 80  # what was being sent has left the queue


def test_a_collector_that_is_away_is_told_of_once() -> None:
    said: list[str] = []
    kept = Kept(SpanExportResult.FAILURE)
    outlet = Outlet(
        {"service.name": "test"}, say=lambda event, _: said.append(event), exporter=kept, queue_size=1, delay_ms=60_000
    )

    for count in range(1, 4):
        outlet.add(record())
        while outlet.dropped < count:  # each is a batch of its own
            threading.Event().wait(0.001)
    outlet.close(2.0)

    assert said == ["spans_not_sent"]


def test_ending_takes_no_longer_than_it_may() -> None:
    kept = Kept()
    kept.gate.clear()
    outlet = Outlet({"service.name": "test"}, say=lambda *_: None, exporter=kept, delay_ms=60_000)
    outlet.add(record())

    ending = threading.Thread(target=outlet.close, args=(0.05,))
    ending.start()
    ending.join(1.0)

    assert not ending.is_alive()
    kept.gate.set()


def test_a_hop_has_the_template_of_hops() -> None:
    attributes = messaging("process", "hop.me.shout.1-0-0.me~clean", "me/shout/1.0.0", run="r-1", root="r")

    assert attributes["messaging.system"] == "nats"
    assert attributes["messaging.destination.template"] == "hop.{owner}.{name}.{version}.{forwarder}"
    assert attributes["messaging.operation.type"] == "process"
