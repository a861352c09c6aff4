"""Trace context: ids made of runs, what a traceparent says, and who decides."""

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from algomesh_observability import tracing
from algomesh_observability.sampling import Sampler
from algomesh_observability.tracing import Inbound, TraceContext

ROOT = "0af7651916cd43dd8448eb211c80319c"
RUN = "b7ad6b71692033310123456789abcdef"


def test_a_run_is_found_by_its_id_and_its_sender_by_the_rest_of_it() -> None:
    assert tracing.span_id(RUN) == "b7ad6b7169203331"
    assert tracing.sender_span_id(RUN) == "0123456789abcdef"
    assert tracing.sender_span_id(f"{RUN}-3") == "0123456789abcdef"


def test_every_step_of_a_pipeline_has_a_span_of_its_own() -> None:
    spans = {tracing.span_id(run) for run in (RUN, *(f"{RUN}-{step}" for step in range(100)))}

    assert len(spans) == 101
    assert all(len(span) == 16 and int(span, 16) for span in spans)


def test_a_step_whose_number_would_be_nothing_still_has_a_span() -> None:
    assert int(tracing.span_id("ffffffffffffffff" + "0" * 16 + "-0"), 16) > 0


@pytest.mark.parametrize(
    "run", ["", "r1", "not-hex", "B7AD6B71692033310123456789ABCDEF", "über" * 8, "0" * 32, f"{RUN}-٣"]
)
def test_ids_of_strangers_give_spans_too(run: str) -> None:
    for span in (tracing.span_id(run), tracing.sender_span_id(run)):
        assert len(span) == 16
        assert int(span, 16) > 0
    context = tracing.read("", run, run)
    assert len(context.trace) == 32
    assert int(context.trace, 16) > 0


@pytest.mark.parametrize(
    "said",
    [
        "", "00", "00-x-y-01", f"00-{'z' * 32}-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{ROOT}-{'0' * 16}-01", f"00-{ROOT}-00f067aa0ba902bz-01", f"00-{'é' * 32}-00f067aa0ba902b7-01",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_as_if_nothing_had_been_said(said: str) -> None:
    assert tracing.read(said, ROOT, RUN) == TraceContext(ROOT, "", None)


def test_a_root_run_of_nobody_who_traces_has_no_parent_and_is_undecided() -> None:
    said = tracing.traceparent(ROOT, RUN)

    assert said == f"00-{ROOT}-{RUN[:16]}-00"
    assert tracing.read(said, ROOT, RUN) == TraceContext(ROOT, "", None)


def test_what_a_run_asks_for_is_under_its_span_with_its_decision() -> None:
    for flags, is_sampled in (("00", False), ("01", True)):
        said = tracing.beneath(f"00-{ROOT}-00f067aa0ba902b7-{flags}", RUN, ROOT)

        assert tracing.read(said, ROOT, "another") == TraceContext(ROOT, RUN[:16], is_sampled)


def test_the_current_span_is_the_parent() -> None:
    import opentelemetry.sdk.trace  # noqa: F401  # where it is not imported, nobody has a span

    span = NonRecordingSpan(SpanContext(int(ROOT, 16), 0xB7AD, is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(span):
        said = tracing.traceparent("f" * 32, RUN, within="00-ignored")

    assert said == f"00-{ROOT}-000000000000b7ad-01"


def test_a_request_from_outside_takes_its_first_root_as_its_trace_and_decides_once() -> None:
    asked: list[TraceContext] = []

    def samples(context: TraceContext) -> bool:
        asked.append(context)
        return True

    request = Inbound("00f067aa0ba902b7", samples=samples)
    token = tracing.enter_inbound(request)
    try:
        first, second = tracing.traceparent(ROOT, RUN), tracing.traceparent("f" * 32, "f" * 32)
    finally:
        tracing.leave_inbound(token)

    assert first == second == f"00-{ROOT}-00f067aa0ba902b7-01"
    assert asked == [TraceContext(ROOT, "", None)]


def test_a_request_within_a_trace_stays_in_it() -> None:
    context = tracing.read_header(f"00-{ROOT}-b7ad6b7169203331-01")
    request = Inbound("00f067aa0ba902b7", context)

    assert request.traceparent("f" * 32) == f"00-{ROOT}-00f067aa0ba902b7-01"
    assert request.parent == "b7ad6b7169203331"


@pytest.mark.parametrize(
    "header",
    [
        "", "00", f"00-{ROOT}-b7ad6b7169203331", f"ff-{ROOT}-b7ad6b7169203331-01", f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{ROOT}-{'0' * 16}-01", f"00-{ROOT.upper()}-b7ad6b7169203331-01", f"00-{ROOT}-b7ad6b7169203331-01-more",
        f"00-{ROOT}-b7ad6b716920333g-01", f"00-{ROOT}-b7ad6b7169203331-0x", f"00-+{ROOT[1:]}-b7ad6b7169203331-01",
    ],
)  # fmt: skip
def test_headers_that_are_not_valid_are_ignored(header: str) -> None:
    assert tracing.read_header(header) is None


def test_a_header_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert tracing.read_header(f"01-{ROOT}-b7ad6b7169203331-03-what") == TraceContext(ROOT, "b7ad6b7169203331", True)


def test_the_parent_decides_unless_the_sampler_is_told_not_to_ask_it() -> None:
    ratio = {"OTEL_TRACES_SAMPLER_ARG": "0"}
    by_parent = Sampler.from_environment({**ratio, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"})
    by_itself = Sampler.from_environment({**ratio, "OTEL_TRACES_SAMPLER": "traceidratio"})

    assert by_parent.samples(ROOT, True)
    assert not by_itself.samples(ROOT, True)
    assert not by_parent.samples(ROOT, None)


def test_a_ratio_keeps_that_share_of_the_traces_and_the_same_ones_as_other_sdks() -> None:
    import random

    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    ours, theirs = Sampler(0.1), TraceIdRatioBased(0.1)
    numbers = random.Random(1)
    traces = [f"{numbers.getrandbits(128):032x}" for _ in range(2000)]
    kept = [ours.samples(each) for each in traces]

    assert kept == [
        theirs.should_sample(None, int(each, 16), "").decision is Decision.RECORD_AND_SAMPLE for each in traces
    ]
    assert 150 < sum(kept) < 250


@pytest.mark.parametrize(
    ("name", "argument", "rate"),
    [
        ("", "", 1.0), ("always_on", "", 1.0), ("always_off", "", 0.0), ("parentbased_always_off", "", 0.0),
        ("traceidratio", "0.25", 0.25), ("parentbased_traceidratio", "", 1.0), ("traceidratio", "2", 1.0),
        ("traceidratio", "nan", 1.0), ("jaeger_remote", "", 1.0),
    ],
)  # fmt: skip
def test_samplers_have_their_standard_names(name: str, argument: str, rate: float) -> None:
    sampler = Sampler.from_environment({"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument})

    assert sampler.rate == rate
