"""Traces of a whole mesh, as `algomesh up` runs it, at a collector that takes real exports.

The sampler keeps nothing that its caller has not asked for, so that what goes out all the same is seen.
"""

import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import algomesh
from tests.conditions import until
from tests.integration.up_fixtures import Up
from tests.otlp import Collector, Span, collecting

pytestmark = [pytest.mark.integration, pytest.mark.alone]

ALGORITHMS = """
import logging, time
import algomesh
from algomesh import algorithm
from opentelemetry import trace

@algorithm("me/one", version="1.0.0")
def one(text: str) -> str:
    return text + "1"

@algorithm("me/two", version="1.0.0")
def two(text: str) -> str:
    with trace.get_tracer("mine").start_as_current_span("my own work"):
        time.sleep(0.02)
    return text + "2"

@algorithm("me/three", version="1.0.0")
class Three:
    def load(self) -> None:
        time.sleep(0.05)

    def apply(self, text: str) -> str:
        return text + "3"

@algorithm("me/four", version="1.0.0")
def four(text: str) -> str:
    if text.startswith("boom"):
        raise ValueError(f"the secret is {text}")
    if text.startswith("log"):
        logging.getLogger("mine").warning("a warning")
        algomesh.current().log.info("an_event", answer=42)
        print("printed")
    return text + "4"

@algorithm("me/asker", version="1.0.0", calls=["me/four"])
def asker(text: str) -> str:
    try:
        return algomesh.current().client.algo("me/four").pipe(text).result
    except algomesh.AlgorithmError:
        return "caught"

@algorithm("me/lame", version="1.0.0")
class Lame:
    def load(self) -> None:
        raise RuntimeError("no legs")

    def apply(self, text: str) -> str:
        return text
"""
CHAIN = algomesh.stage("me/one") | "me/two" | "me/three" | "me/four"
ALL = ["me/one", "me/two", "me/three", "me/four", "me/asker"]
CALL = "POST /mesh/v1/call/{reference}"
PIPE = "POST /mesh/v1/pipe"
PHASES = ["fork", "import", "load", "connect"]


def ran(*names: str) -> list[str]:
    """The spans of these runs."""
    return [span for name in names for span in (f"process {name}/1.0.0", "queue wait", "user code")]


def started(*names: str) -> list[str]:
    """The spans of these starts."""
    return [span for name in names for span in (f"cold start {name}/1.0.0", *PHASES)]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def up(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("traces")
    (folder / "chain.py").write_text(ALGORITHMS)
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "ALGOMESH_PREWARM": "off",  # a stage that is up before its call comes has no cold start to show
    }
    with Up(folder / "state", **variables) as running:
        result = running.run("publish", str(folder / "chain.py"))
        assert result.returncode == 0, result.stderr
        yield running


@pytest_asyncio.fixture
async def http(up: Up) -> AsyncIterator[aiohttp.ClientSession]:
    bearer = {"Authorization": f"Bearer {up.said['key']}"}
    async with aiohttp.ClientSession(up.said["gateway"], headers=bearer) as session:
        yield session


def fresh(*, is_sampled: bool) -> tuple[str, dict[str, str]]:
    """A new trace, and the header that says so; its parent is abcd… ."""
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-abcdabcdabcdabcd-{'01' if is_sampled else '00'}"}


async def pipe(http: aiohttp.ClientSession, pipeline: algomesh.Pipeline, text: str, headers: dict[str, str]) -> str:
    form = aiohttp.FormData()
    form.add_field("pipeline", pipeline.to_json().decode(), content_type="application/json")
    form.add_field("input", text, content_type="text/plain")
    async with http.post("/mesh/v1/pipe", data=form, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.text()


async def call(http: aiohttp.ClientSession, name: str, text: str, headers: dict[str, str]) -> tuple[int, str]:
    headers = {"Content-Type": "text/plain", **headers}
    async with http.post(f"/mesh/v1/call/{name}", data=text, headers=headers) as answer:
        return answer.status, await answer.text()


async def cool(up: Up, *names: str) -> None:
    """Have no instance of these."""
    for name in names:
        up.run("stop", name)
    await until(lambda: not [row for row in up.json("ps") if row["algorithm"] in names], 10)


async def warm(http: aiohttp.ClientSession, *names: str) -> None:
    for name in names:
        assert (await call(http, name, "warm", {}))[0] == 200


async def settled(collector: Collector, trace_id: str, *names: str) -> list[Span]:
    """The spans of a trace, once those of these names are there, as often as they are named."""
    wanted = Counter(names)
    try:
        await until(lambda: not wanted - Counter(span.name for span in collector.of(trace_id)), 10)
    except AssertionError:
        found = Counter(span.name for span in collector.of(trace_id))
        raise AssertionError(f"no {wanted - found} among {found}") from None
    return collector.of(trace_id)


def only(spans: list[Span], name: str, parent: Span | None = None) -> Span:
    found = [span for span in spans if span.name == name and (parent is None or span.parent == parent.id)]
    assert len(found) == 1, f"{len(found)} × {name}: {sorted((span.name, span.parent) for span in spans)}"
    return found[0]


def children(spans: list[Span], parent: Span) -> list[str]:
    return [span.name for span in sorted(spans, key=lambda span: span.start) if span.parent == parent.id]


async def test_one_waterfall_tells_all_of_a_cold_chain_of_four(
    up: Up, http: aiohttp.ClientSession, collector: Collector
) -> None:
    await cool(up, *ALL)
    trace_id, headers = fresh(is_sampled=True)

    assert await pipe(http, CHAIN, "x", headers) == "x1234"

    four = ("me/one", "me/two", "me/three", "me/four")
    wanted = [PIPE, "send me/one/1.0.0", "my own work", *ran(*four), *started(*four)]
    spans = await settled(collector, trace_id, *wanted)
    request = only(spans, PIPE)
    assert (request.parent, request.kind, request.service) == ("abcdabcdabcdabcd", "server", "algomesh-gateway")
    assert request.attributes["http.request.method"] == "POST"
    assert request.attributes["http.route"] == "/mesh/v1/pipe"
    assert request.attributes["http.response.status_code"] == 200
    send = only(spans, "send me/one/1.0.0", request)
    assert (send.kind, send.service) == ("producer", "algomesh-gateway")
    assert send.attributes["messaging.system"] == "nats"
    assert send.attributes["messaging.operation.type"] == "send"
    assert str(send.attributes["messaging.destination.name"]).startswith("call.me.one.1-0-0.k~")
    assert send.attributes["messaging.destination.template"] == "call.{owner}.{name}.{version}.{caller}"
    assert send.attributes["algomesh.stages"] == "me/one/1.0.0 | me/two/1.0.0 | me/three/1.0.0 | me/four/1.0.0"
    run = str(send.attributes["algomesh.run"])
    assert send.id == run[16:]

    for at, name in enumerate(four):
        process = only(spans, f"process {name}/1.0.0", send)
        assert (process.kind, process.service) == ("consumer", name)
        assert process.attributes["messaging.operation.type"] == "process"
        assert process.attributes["messaging.message.id"] == f"{run}-{at}"
        assert process.attributes["algomesh.parked"] is True
        template = "call.{owner}.{name}.{version}.{caller}" if at == 0 else "hop.{owner}.{name}.{version}.{forwarder}"
        assert process.attributes["messaging.destination.template"] == template
        cold = only(spans, f"cold start {name}/1.0.0", process)
        assert cold.service == "algomesh-launcher"
        assert cold.attributes["algomesh.run"] == f"{run}-{at}"
        assert "parked call" in str(cold.attributes["algomesh.reason"])
        phases = [phase for phase in children(spans, cold) if phase != "prepare"]
        assert phases == ["fork", "import", "load", "connect"]
        wait, work = only(spans, "queue wait", process), only(spans, "user code", process)
        assert wait.start == process.start
        assert wait.end == work.start
        assert wait.end >= cold.start
        assert process.end >= work.end
    assert any("algomesh.cold_start_ms" in span.attributes for span in spans)
    assert only(spans, "load", only(spans, "cold start me/three/1.0.0")).took_ms >= 50
    own = only(spans, "my own work", only(spans, "process me/two/1.0.0"))
    assert (own.service, own.kind) == ("me/two", "internal")
    assert only(spans, "user code", only(spans, "process me/two/1.0.0")).took_ms >= 20
    assert not [span for span in spans if span.is_error]
    assert {span.name for span in spans} <= {*wanted, "prepare"}
    assert {span.parent for span in spans} - {span.id for span in spans} == {"abcdabcdabcdabcd"}


async def test_warm_calls_that_nobody_sampled_send_nothing(
    up: Up, http: aiohttp.ClientSession, collector: Collector
) -> None:
    await warm(http, *ALL)
    traces = set()
    for _ in range(20):
        trace_id, headers = fresh(is_sampled=False)
        traces.add(trace_id)
        assert await pipe(http, CHAIN, "x", headers) == "x1234"
        assert (await call(http, "me/asker", "x", {}))[1] == "x4"
    marked, headers = fresh(is_sampled=True)
    await pipe(http, CHAIN, "x", headers)
    # Later than all of them, through the same programs.
    await settled(collector, marked, PIPE, "send me/one/1.0.0", *ran("me/one", "me/two", "me/three", "me/four"))

    assert not [span for span in collector.spans if span.trace in traces]


async def test_an_error_goes_out_though_nobody_sampled_it_from_where_it_was_to_who_asked(
    up: Up, http: aiohttp.ClientSession, collector: Collector
) -> None:
    await warm(http, *ALL)
    trace_id, headers = fresh(is_sampled=False)

    status, text = await call(http, "me/four", "boom 8f2e", headers)

    assert status >= 400, text
    spans = await settled(collector, trace_id, CALL, "send me/four/1.0.0", *ran("me/four"))
    request = only(spans, CALL)
    send = only(spans, "send me/four/1.0.0", request)
    process = only(spans, "process me/four/1.0.0", send)
    assert process.is_error
    assert process.attributes["error.type"] == send.attributes["error.type"] == "algorithm_error"
    assert only(spans, "user code", process).is_error
    assert "8f2e" not in str(spans), "what an exception says may be secret"
    assert up.said["key"] not in str(spans)


async def test_a_run_that_caught_the_error_of_its_child_is_told_of_too(
    up: Up, http: aiohttp.ClientSession, collector: Collector
) -> None:
    await warm(http, *ALL)
    trace_id, headers = fresh(is_sampled=False)

    assert (await call(http, "me/asker", "boom", headers))[1] == "caught"

    spans = await settled(collector, trace_id, "send me/four/1.0.0", *ran("me/asker", "me/four"))
    asker = only(spans, "process me/asker/1.0.0")
    send = only(spans, "send me/four/1.0.0", asker)
    four = only(spans, "process me/four/1.0.0", send)
    assert (send.service, four.service) == ("me/asker", "me/four")
    assert (asker.is_error, send.is_error, four.is_error) == (False, True, True)
    assert len(spans) == 7, "whoever called the asker has met no error"


async def test_branches_and_what_joins_them_are_in_one_trace(
    up: Up, http: aiohttp.ClientSession, collector: Collector
) -> None:
    await warm(http, *ALL)
    trace_id, headers = fresh(is_sampled=True)

    await pipe(http, algomesh.stage("me/one") | (algomesh.stage("me/two") & "me/three"), "x", headers)

    spans = await settled(collector, trace_id, PIPE, *ran("me/one", "me/two", "me/three"))
    one = only(spans, "process me/one/1.0.0", only(spans, "send me/one/1.0.0"))
    for branch in ("me/two/1.0.0", "me/three/1.0.0"):
        send = only(spans, f"send {branch}", one)
        assert send.service == "me/one"
        assert only(spans, f"process {branch}", send).end <= one.end + 50_000_000


async def test_a_cold_start_goes_out_though_nobody_sampled_it(
    up: Up, http: aiohttp.ClientSession, collector: Collector
) -> None:
    await warm(http, *ALL)
    await cool(up, "me/four")
    trace_id, headers = fresh(is_sampled=False)

    assert (await call(http, "me/asker", "x", headers))[1] == "x4"

    spans = await settled(collector, trace_id, *ran("me/asker", "me/four"), *started("me/four"))
    asker = only(spans, "process me/asker/1.0.0")
    cold = only(spans, "cold start me/four/1.0.0")
    assert cold.parent == only(spans, "process me/four/1.0.0", only(spans, "send me/four/1.0.0", asker)).id
    assert asker.took_ms >= cold.took_ms / 2


async def test_a_start_that_fails_says_in_which_phase(
    up: Up, http: aiohttp.ClientSession, collector: Collector
) -> None:
    trace_id, headers = fresh(is_sampled=False)

    assert (await call(http, "me/lame", "x", headers))[0] >= 400

    spans = await settled(
        collector, trace_id, CALL, "process me/lame/1.0.0", "cold start me/lame/1.0.0", "import", "load"
    )
    send = only(spans, "send me/lame/1.0.0", only(spans, CALL))
    waited = only(spans, "process me/lame/1.0.0", send)
    cold = only(spans, "cold start me/lame/1.0.0", waited)
    assert cold.attributes["error.type"] == "load_failed"
    assert only(spans, "load", cold).is_error
    assert not only(spans, "import", cold).is_error
    assert "no legs" not in str(spans)


async def test_a_client_with_spans_of_its_own_has_the_mesh_beneath_them(
    up: Up, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer", lambda name, *_: provider.get_tracer(name))

    with algomesh.client(up.said["key"], up.said["nats"]) as client:
        client.algo("me/four").pipe("x")
        with provider.get_tracer("mine").start_as_current_span("my request") as mine:
            assert client.algo("me/four").pipe("x").result == "x4"

    trace_id = f"{mine.get_span_context().trace_id:032x}"
    spans = await settled(collector, trace_id, *ran("me/four"))
    send = next(span for span in kept.get_finished_spans() if span.name.startswith("send") and span.parent is not None)
    assert send.parent is not None
    assert send.parent.span_id == mine.get_span_context().span_id
    assert send.context is not None
    assert only(spans, "process me/four/1.0.0").parent == f"{send.context.span_id:016x}"


async def test_log_lines_of_a_run_name_its_trace(up: Up, http: aiohttp.ClientSession, collector: Collector) -> None:
    trace_id, headers = fresh(is_sampled=True)

    await call(http, "me/four", "log", headers)

    lines = up.run("logs", "me/four").stdout
    printed = [line for line in lines.splitlines() if line.endswith("printed")]
    assert len(printed) == 1
    assert sum(trace_id in line for line in lines.splitlines()) == 2
    served = (up.state / "logs" / "gateway.log").read_text()
    assert trace_id in served


async def test_a_collector_that_is_away_slows_nobody_and_is_told_of_once(
    up: Up, http: aiohttp.ClientSession, collector: Collector
) -> None:
    await warm(http, *ALL)
    collector.refuse = True
    try:
        took = []
        for _ in range(30):
            _, headers = fresh(is_sampled=True)
            began = time.perf_counter()
            assert await pipe(http, CHAIN, "x", headers) == "x1234"
            took.append(time.perf_counter() - began)
    finally:
        collector.refuse = False
    assert sorted(took)[15] < 0.5
    gateway = (up.state / "logs" / "gateway.log").read_text()
    assert gateway.count("spans_not_sent") <= 1
    assert "opentelemetry" not in gateway
    assert "Traceback" not in gateway
    trace_id, headers = fresh(is_sampled=True)
    await pipe(http, CHAIN, "x", headers)
    await until(lambda: len(collector.of(trace_id)) > 0, 15)  # and comes back by itself
