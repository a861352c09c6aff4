"""How the ledger counts runs."""

from typing import Any

import pytest

from algomesh_broker.messages import RunEvent
from algomesh_observability.metrics import LATENCY_S, Family, Registry
from algomesh_services.ledger.lag import Lag, read_delivery
from algomesh_services.ledger.recent import Recent
from algomesh_services.ledger.run_counts import RunCounts

LOW, HIGH = "a" * 16 + "0" * 16, "a" * 16 + "f" * 16


def event(run: str = "r", **fields: Any) -> RunEvent:
    known: dict[str, Any] = {
        "run": run, "attempt": 1, "root": LOW, "parent": "", "algorithm": "text/clean", "version": "1.0.0",
        "caller": "k~me", "root_caller": "k~me", "state": "succeeded",
        "queued_at": 100.0, "started_at": 100.25, "ended_at": 101.0, "compute_ms": 500.0,
    }  # fmt: skip
    return RunEvent(**known | fields)


def counts(**environment: str) -> tuple[RunCounts, Registry]:
    registry = Registry()
    return RunCounts(registry, environment=environment), registry


def family(registry: Registry, name: str) -> Family:
    return next(each for each in registry.collect() if each.name == name)


def test_calls_are_counted_by_version_caller_and_end() -> None:
    runs, registry = counts()

    runs.count([
        event(), event(), event(caller="k~you"), event(version="1.1.0"),
        event(state="failed", error="timeout"), event(state="expired", error="", started_at=0.0),
    ])  # fmt: skip

    assert dict(family(registry, "algomesh_calls_total").samples) == {
        ("text/clean", "1.0.0", "k~me", "ok"): 2,
        ("text/clean", "1.0.0", "k~you", "ok"): 1,
        ("text/clean", "1.1.0", "k~me", "ok"): 1,
        ("text/clean", "1.0.0", "k~me", "timeout"): 1,
        ("text/clean", "1.0.0", "k~me", "expired"): 1,
    }


def test_a_calls_time_is_its_wait_and_its_run() -> None:
    runs, registry = counts()

    runs.count([event(cold_ms=2000.0)])

    took, queued = (family(registry, f"algomesh_{name}_seconds").spreads[0][1] for name in ("call", "queue"))
    assert took.total == pytest.approx(3.0)
    assert queued.total == pytest.approx(2.25)
    assert took.counts[LATENCY_S.index(5.0)] == 1
    assert dict(family(registry, "algomesh_cold_calls_total").samples) == {("text/clean", "1.0.0", "k~me"): 1}


def test_a_call_that_never_ran_has_an_end_and_no_time() -> None:
    runs, registry = counts()

    runs.count([event(state="refused", error="no_capacity", queued_at=0.0, started_at=0.0)])

    assert sum(family(registry, "algomesh_call_seconds").spreads[0][1].counts) == 0
    assert family(registry, "algomesh_calls_total").samples[0][0][3] == "no_capacity"


def test_what_is_no_code_is_other_and_codes_are_few() -> None:
    runs, registry = counts()

    runs.count([event(state="failed", error=error) for error in ("Boom! It is broken", "x" * 60)])
    runs.count([event(state="failed", error=f"code_{chr(97 + n % 26)}{chr(97 + n // 26)}") for n in range(100)])

    codes = {labels[3] for labels, _ in family(registry, "algomesh_calls_total").samples}
    assert "other" in codes
    assert len(codes) <= 51


def test_gpu_seconds_are_time_of_user_code_times_the_share_once_that_is_known() -> None:
    runs, registry = counts()
    runs.count([event(), event(caller="k~you"), event(algorithm="text/none")])
    assert family(registry, "algomesh_gpu_seconds_total").samples == []

    runs.share_of = {"text/clean/1.0.0": 0.5, "text/none/1.0.0": 0.0}.get

    assert dict(family(registry, "algomesh_gpu_seconds_total").samples) == {
        ("text/clean", "1.0.0", "k~me"): 0.25,
        ("text/clean", "1.0.0", "k~you"): 0.25,
    }


@pytest.mark.parametrize(
    ("told", "has_exemplar"),
    [({"root": LOW}, True), ({"root": HIGH}, False), ({"root": HIGH, "cold_ms": 1.0}, True)],
)
def test_exemplars_are_of_calls_whose_traces_are_kept(told: dict[str, Any], has_exemplar: bool) -> None:
    runs, registry = counts(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318",
        OTEL_TRACES_SAMPLER="parentbased_traceidratio",
        OTEL_TRACES_SAMPLER_ARG="0.01",
    )

    runs.count([event(**told)])

    exemplars = family(registry, "algomesh_call_seconds").spreads[0][1].exemplars
    assert any(exemplars) is has_exemplar


def test_a_failed_call_is_an_exemplar_whatever_is_sampled() -> None:
    runs, registry = counts(OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318", OTEL_TRACES_SAMPLER="always_off")

    runs.count([event(root=HIGH), event(root=LOW, state="failed", error="timeout")])

    exemplars = filter(None, family(registry, "algomesh_call_seconds").spreads[0][1].exemplars)
    assert [exemplar[0] for exemplar in exemplars] == [LOW]


def test_each_attempt_counts_once_at_its_first_end() -> None:
    recent = Recent()
    told = [event("a", state="running"), event("b"), event("c", state="lost", error="instance_lost")]

    first = recent.add(told)
    again = recent.add([event("a"), event("b"), event("b", attempt=2), event("c")])

    assert [one.run for one in first] == ["b", "c"]
    assert [(one.run, one.attempt) for one in again] == [("a", 1), ("b", 2)]


def test_a_delivery_says_when_it_came_and_how_many_wait_behind_it() -> None:
    assert read_delivery("$JS.ACK.events.ledger.1.7.7.1700000000500000000.42") == (1700000000.5, 42)
    assert read_delivery("$JS.ACK.hub.acc.events.ledger.1.7.7.1700000000500000000.42.rnd") == (1700000000.5, 42)
    assert read_delivery("somewhere.else") is None


class _Message:
    def __init__(self, at: int, pending: int) -> None:
        self.reply = f"$JS.ACK.events.ledger.1.7.7.{at}000000000.{pending}"


def test_the_lag_is_the_age_of_what_is_in_hand() -> None:
    lag = Lag()
    assert (lag.lag_s(1000.0), lag.waiting) == (0.0, 0)

    lag.took([_Message(990, 12), _Message(995, 10)])  # type: ignore[list-item]

    assert (lag.lag_s(1000.0), lag.waiting) == (10.0, 12)
    assert lag.wrote(1001.0) == 11.0
    assert (lag.lag_s(1001.0), lag.waiting) == (0.0, 10)
