"""Spans of cold starts: in whose trace they are, which phases they have, and what becomes of a start that fails."""

import mmap
from types import SimpleNamespace
from typing import Any

import pytest

from algomesh.instance.watch import Phase, WatchReader, WatchWriter
from algomesh_broker import codec
from algomesh_broker.messages import Demand
from algomesh_broker.names import VersionId
from algomesh_observability import tracing
from algomesh_observability.spans import SpanRecord
from algomesh_services.launcher.instance import Instance, StartFailed
from algomesh_services.launcher.start_spans import StartSpans

VERSION = VersionId.parse("me/shout/1.0.0")
TRACE = "0af7651916cd43dd8448eb211c80319c"
RUN = "b7ad6b71692033310123456789abcdef"
MS = 1_000_000


class Launched:
    """A launcher's spans, and an instance that began at 1 s."""

    def __init__(self, key: str = "") -> None:
        self.spans: list[SpanRecord] = []
        self.now_ns = 1_000 * MS
        self.starts = StartSpans(self.spans.append, lambda: self.now_ns)
        page = mmap.mmap(-1, 4096)
        self.watch = WatchWriter(page)
        process: Any = SimpleNamespace(watch=WatchReader(page))
        options: Any = None
        self.instance = Instance(
            id="l-1", version=VERSION, options=options, place=options, reason="1 parked call", key=key,
            launched_at=1.0, since=0.0, process=process, prepared_at=1.0,
        )  # fmt: skip

    def demand(self, run: str = RUN, flags: str = "00") -> None:
        said = Demand(run=run, root=RUN, traceparent=f"00-{TRACE}-{tracing.span_id(run)}-{flags}")
        self.starts.hear(VERSION, codec.encode(said))

    def go_through(self, *phases: Phase) -> None:
        for at, phase in enumerate(phases, 1):
            self.watch.enter(phase, (1_000 + 10 * at) * MS)

    def named(self, name: str) -> SpanRecord:
        return next(span for span in self.spans if span.name == name)


ALL = (Phase.IMPORTING, Phase.LOADING, Phase.CONNECTING, Phase.READY)


@pytest.mark.parametrize("run", [RUN, f"{RUN}-2"])
def test_a_start_lies_beneath_the_run_that_waited_for_it(run: str) -> None:
    launched = Launched()
    launched.demand(run)

    trace = launched.starts.begun(launched.instance)
    launched.go_through(*ALL)
    launched.now_ns = 1_050 * MS
    launched.starts.ended(launched.instance)

    cold = launched.named("cold start me/shout/1.0.0")
    assert trace == cold.trace == TRACE
    assert cold.parent == tracing.span_id(run)
    assert cold.attributes["algomesh.run"] == run
    assert [span.name for span in launched.spans[1:]] == ["fork", "import", "load", "connect"]
    assert all(span.parent == cold.span and span.trace == TRACE for span in launched.spans[1:])
    assert all(9 * MS < span.end_ns - span.start_ns < 11 * MS for span in launched.spans[1:])
    assert not any(span.error for span in launched.spans)


def test_a_start_is_told_of_once() -> None:
    launched = Launched()
    launched.starts.begun(launched.instance)
    launched.go_through(*ALL)

    launched.starts.ended(launched.instance)
    count = len(launched.spans)
    launched.starts.ended(launched.instance)

    assert len(launched.spans) == count == 5


def test_a_start_that_nobody_waits_for_is_a_trace_of_its_own() -> None:
    launched = Launched(key="hold")

    assert launched.starts.begun(launched.instance) == ""
    launched.go_through(*ALL)
    launched.starts.ended(launched.instance)

    assert launched.spans[0].parent == ""
    assert len({span.trace for span in launched.spans}) == 1


def test_a_start_begun_ahead_belongs_to_whoever_came_to_wait_for_it() -> None:
    launched = Launched(key="hold")
    launched.starts.begun(launched.instance)
    launched.demand()

    launched.go_through(*ALL)
    launched.starts.ended(launched.instance)

    assert launched.spans[0].trace == TRACE


def test_two_starts_have_two_causes() -> None:
    launched = Launched()
    launched.demand()

    assert launched.starts.begun(launched.instance) == TRACE
    assert launched.starts.begun(launched.instance) == ""


def test_an_old_demand_causes_nothing() -> None:
    launched = Launched()
    launched.demand()
    launched.now_ns += 3_600_000 * MS

    assert launched.starts.begun(launched.instance) == ""


def test_a_start_that_fails_ends_in_the_phase_that_failed() -> None:
    launched = Launched()
    launched.demand()
    launched.starts.begun(launched.instance)
    launched.go_through(Phase.IMPORTING, Phase.LOADING)
    launched.now_ns = 1_100 * MS

    launched.starts.ended(launched.instance, StartFailed(blame="version", code="load_failed", message="a secret"))

    assert [span.name for span in launched.spans[1:]] == ["fork", "import", "load"]
    assert launched.spans[0].error == launched.named("load").error == "load_failed"
    assert not launched.named("import").error
    assert "secret" not in str(launched.spans)


def test_a_start_that_did_not_even_get_a_process_was_preparing() -> None:
    launched = Launched()
    launched.starts.begun(launched.instance)
    launched.instance.process = None

    launched.starts.ended(launched.instance, StartFailed(blame="machine", code="load_failed", message=""))

    assert [span.name for span in launched.spans[1:]] == ["prepare"]


def test_fetching_its_archive_is_told_of_where_it_took_time() -> None:
    launched = Launched()
    launched.starts.begun(launched.instance)
    launched.instance.prepared_at = 1.005
    launched.go_through(*ALL)

    launched.starts.ended(launched.instance)

    assert launched.spans[1].name == "prepare"
    assert launched.named("fork").start_ns - launched.named("prepare").end_ns < MS


def test_an_instance_that_tells_only_that_it_is_ready_has_started() -> None:
    launched = Launched()
    launched.starts.begun(launched.instance)
    launched.watch.enter(Phase.READY, 1_040 * MS)

    launched.starts.ended(launched.instance)

    assert [span.name for span in launched.spans[1:]] == ["start"]
    assert not launched.spans[0].error


def test_a_demand_that_cannot_be_read_causes_nothing() -> None:
    launched = Launched()

    launched.starts.hear(VERSION, b"\xc1")

    assert launched.starts.begun(launched.instance) == ""
