"""Spans of runs and of calls: which of them go out, where they lie, and what they say."""

from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace

from algomesh import call_spans, errors
from algomesh.chain import chain_of_call
from algomesh.content import Content
from algomesh.context import RunContext, enter, leave
from algomesh.instance import run_spans
from algomesh.instance.job import Job
from algomesh.instance.run_spans import RunSpans
from algomesh.order import Order
from algomesh.pending import PARKED, Pending
from algomesh.transport import Origin
from algomesh_broker.messages import Call, RunState
from algomesh_broker.names import VersionId
from algomesh_observability import telemetry, tracing
from algomesh_observability.sampling import Sampler
from algomesh_observability.spans import SpanRecord
from algomesh_observability.telemetry import Telemetry
from algomesh_observability.tracing import Inbound

VERSION = VersionId.parse("me/shout/1.0.0")
TRACE = "0af7651916cd43dd8448eb211c80319c"
RUN = "b7ad6b71692033310123456789abcdef"
PARENT = "00f067aa0ba902b7"
UNDECIDED = f"00-{RUN}-{RUN[:16]}-00"


def under(flags: str) -> str:
    return f"00-{TRACE}-{PARENT}-{flags}"


class On:
    """Telemetry whose sampler keeps `rate` of the roots, and what went out."""

    def __init__(self, rate: float = 0.0) -> None:
        self.spans: list[SpanRecord] = []
        outlet: Any = SimpleNamespace(add=self.spans.append)
        self.telemetry = Telemetry(outlet, Sampler(rate))
        self.runs = RunSpans(self.telemetry, VERSION)

    def ended(self, job: Job, state: RunState = "succeeded", error: str = "") -> dict[str, SpanRecord]:
        self.runs.ended(job, state, 0.01, error)
        return {span.name: span for span in self.spans}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> On:
    made = On()
    monkeypatch.setattr(telemetry, "active", made.telemetry)
    return made


def job(traceparent: str, **more: Any) -> Job:
    call = Call(RUN, RUN, root_caller="k~me", time_left_ms=1000, traceparent=traceparent)
    made = Job.of(call, "call.me.shout.1-0-0.k~me", "k~me", now=10.0)
    made.started, made.started_at = 10.02, 1_000.0
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_a_sampled_run_tells_of_its_wait_and_its_code() -> None:
    spans = On().ended(job(under("01")))

    run, wait, code = spans["process me/shout/1.0.0"], spans["queue wait"], spans["user code"]
    assert (run.trace, run.span, run.parent) == (TRACE, RUN[:16], PARENT)
    assert {wait.parent, code.parent} == {run.span}
    assert len({run.span, wait.span, code.span}) == 3
    assert wait.end_ns - wait.start_ns == pytest.approx(20e6, rel=0.01)
    assert code.end_ns - code.start_ns == pytest.approx(10e6, rel=0.01)
    assert run.attributes["messaging.consumer.group.name"] == "workers"
    assert run.attributes["messaging.message.id"] == RUN


def test_a_run_that_is_not_sampled_and_went_well_says_nothing() -> None:
    assert not On().ended(job(under("00")))
    assert not On().ended(job(UNDECIDED))
    assert not On().ended(job(under("00")), "cancelled", "cancelled")


@pytest.mark.parametrize(
    ("more", "state", "error"),
    [({}, "failed", "algorithm_error"), ({}, "expired", "deadline_exceeded"), ({"cold_ms": 40.0}, "succeeded", "")],
)
def test_errors_and_cold_starts_go_out_in_any_case(more: dict[str, float], state: RunState, error: str) -> None:
    spans = On().ended(job(under("00"), **more), state, error)

    assert spans["process me/shout/1.0.0"].error == error
    assert spans["user code"].error == error


def test_a_run_whose_child_had_news_goes_out() -> None:
    asking = job(under("00"))
    asking.context.has_news = True

    assert "user code" in On().ended(asking)


def test_where_nobody_decided_the_root_is_decided_here() -> None:
    spans = On(rate=1.0).ended(job(UNDECIDED))

    assert spans["process me/shout/1.0.0"].trace == RUN
    assert spans["process me/shout/1.0.0"].parent == ""


def test_time_with_the_stream_counts_as_wait() -> None:
    spans = On().ended(job(under("01"), is_parked=True, waited_ms=500.0))

    wait = spans["queue wait"]
    assert wait.end_ns - wait.start_ns == pytest.approx(500e6, rel=0.01)
    assert spans["process me/shout/1.0.0"].start_ns == wait.start_ns


def test_what_was_refused_before_it_began_has_no_code_to_tell_of() -> None:
    spans = On().ended(job(under("00"), started=0.0), "refused", "overloaded")

    assert list(spans) == ["process me/shout/1.0.0"]


def test_the_current_span_in_user_code_is_its_runs(on: On) -> None:
    assert on.telemetry is telemetry.active
    copy_context().run(_look_at_the_current_span)


def _look_at_the_current_span() -> None:
    run_spans.attach()
    span = trace.get_current_span()
    assert not span.get_span_context().is_valid

    token = enter(job(under("01")))
    inside = span.get_span_context()
    leave(token)

    assert f"{inside.trace_id:032x}" == TRACE
    assert f"{inside.span_id:016x}" == RUN[:16]
    assert inside.trace_flags.sampled
    assert not span.get_span_context().is_valid


def order(traceparent: str) -> Order:
    return Order(VERSION, Content("text", "", b"x"), 20.0, RUN, RUN, "", "k~me", traceparent=traceparent)


def pending(sent: Order, **more: Any) -> Pending:
    call = Call(sent.run, sent.root, root_caller="k~me", traceparent=sent.traceparent)
    future: Any = None
    made = Pending(VERSION, call, "call.me.shout.1-0-0.k~me", 20.0, chain_of_call(VERSION, 3), future)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_a_call_is_beneath_its_senders_span(on: On) -> None:
    sent = order(under("01"))
    span = call_spans.begin(sent)
    assert span is not None

    span.end(pending(sent), None, 10.0)

    assert span.traceparent == f"00-{TRACE}-{RUN[16:]}-01"
    (made,) = on.spans
    assert (made.span, made.parent, made.kind, made.name) == (RUN[16:], PARENT, "producer", "send me/shout/1.0.0")


def test_a_call_that_was_not_sampled_and_went_well_says_nothing(on: On) -> None:
    sent = order(under("00"))
    span = call_spans.begin(sent)
    assert span is not None

    span.end(pending(sent), None, 10.0)

    assert not on.spans


def test_a_failed_call_goes_out_and_tells_who_asked(on: On) -> None:
    sent, request = order(under("00")), Inbound(PARENT)
    context = RunContext(None, Origin(RUN, RUN, "k~me", 0, 1, 1.0))
    run, outer = enter(context), tracing.enter_inbound(request)
    span = call_spans.begin(sent)
    assert span is not None

    span.end(pending(sent), errors.AlgorithmError("a secret"), 10.0)
    tracing.leave_inbound(outer)
    leave(run)

    assert [made.error for made in on.spans] == ["algorithm_error"]
    assert context.has_news
    assert request.has_news
    assert "secret" not in str(on.spans)


def test_a_run_that_no_instance_took_is_told_of_by_its_sender(on: On) -> None:
    sent = order(under("00"))
    span = call_spans.begin(sent)
    assert span is not None

    span.end(pending(sent, state=PARKED, was_parked=True, parked_at=8.0), errors.DeadlineExceeded("late"), 10.0)

    _, waited = on.spans
    assert (waited.span, waited.parent) == (tracing.span_id(RUN), RUN[16:])
    assert waited.end_ns - waited.start_ns == pytest.approx(2e9)


def test_a_cancelled_call_is_no_error(on: On) -> None:
    import asyncio

    sent = order(under("00"))
    span = call_spans.begin(sent)
    assert span is not None

    span.end(pending(sent), asyncio.CancelledError(), 10.0)

    assert not on.spans


def test_a_program_without_a_provider_makes_no_spans() -> None:
    assert call_spans.begin(order(UNDECIDED)) is None
