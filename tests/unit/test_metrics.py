"""Counters, gauges and histograms, and how many of them there may be."""

import math
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from algomesh_observability import metrics
from algomesh_observability.metrics import IDLE_S, OTHER, Limit, Registry, Spreading
from algomesh_observability.metrics_page import render

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
TRACE = "0123456789abcdef" * 2


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def small(versions: int = 2, clock: Clock | None = None) -> Registry:
    return Registry({"version": Limit(versions, clock or Clock())})


def samples(registry: Registry, name: str) -> dict[tuple[str, ...], float]:
    return next(dict(family.samples) for family in registry.collect() if family.name == name)


def test_a_version_is_shown_as_algorithm_and_version() -> None:
    registry = Registry()
    calls = registry.counter("calls_total", "Calls.", ("version", "code"))

    calls.add(1, "text/clean/1.0.0", "ok")
    calls.add(2, "text/clean/1.0.0", "ok")

    (family,) = registry.collect()
    assert family.labels == ("algorithm", "version", "code")
    assert family.samples == [(("text/clean", "1.0.0", "ok"), 3.0)]


def test_versions_beyond_the_limit_count_as_other() -> None:
    registry = small(versions=2)
    calls = registry.counter("calls_total", "Calls.", ("version",))

    for number in range(5):
        calls.add(1, f"a/b/1.0.{number}")

    assert samples(registry, "calls_total") == {("a/b", "1.0.0"): 1, ("a/b", "1.0.1"): 1, (OTHER, OTHER): 3}


def test_the_limit_is_one_for_all_instruments() -> None:
    registry = small(versions=1)
    calls, errors = registry.counter("calls_total", "Calls.", ("version",)), registry.gauge("up", "Up.", ("version",))

    calls.add(1, "a/b/1.0.0")
    errors.follow(lambda: {("a/b/1.0.0",): 1.0, ("a/c/1.0.0",): 2.0, ("a/d/1.0.0",): 3.0})

    assert samples(registry, "up") == {("a/b", "1.0.0"): 1.0, (OTHER, OTHER): 5.0}


def test_a_version_that_nobody_uses_makes_room_for_a_new_one() -> None:
    clock = Clock()
    registry = small(versions=2, clock=clock)
    calls = registry.counter("calls_total", "Calls.", ("version",))
    calls.add(1, "a/b/1.0.0")
    calls.add(1, "a/b/1.1.0")

    clock.now = IDLE_S
    calls.add(1, "a/b/1.1.0")
    clock.now = IDLE_S + 1
    calls.add(1, "a/b/2.0.0")

    assert samples(registry, "calls_total") == {("a/b", "1.1.0"): 2, ("a/b", "2.0.0"): 1}


def test_an_instrument_has_a_bounded_number_of_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_SERIES", 3)
    registry = Registry()
    calls = registry.counter("calls_total", "Calls.", ("code",))

    for number in range(10):
        calls.add(1, f"code_{number}")

    assert samples(registry, "calls_total")[OTHER,] == 7.0
    assert len(samples(registry, "calls_total")) == 4


def test_values_fall_into_the_first_bucket_whose_bound_they_do_not_exceed() -> None:
    registry = Registry()
    took = registry.histogram("took_seconds", "Took.", bounds=(0.1, 1.0))

    for value in (0.05, 0.1, 0.5, 2.0):
        took.observe(value)

    (family,) = registry.collect()
    assert family.spreads == [((), Spreading([2, 1, 1], [None, None, None], 2.65))]


def test_a_gauge_is_the_sum_of_those_who_know_it_for_as_long_as_they_do() -> None:
    registry = Registry()
    up = registry.gauge("up", "Up.", ("state",))
    up.follow(lambda: {("idle",): 1.0})
    leave = up.follow(lambda: {("idle",): 2.0, ("working",): 1.0})

    assert samples(registry, "up") == {("idle",): 3.0, ("working",): 1.0}

    leave()
    assert samples(registry, "up") == {("idle",): 1.0}


def test_what_cannot_be_read_is_left_out_and_the_rest_is_shown() -> None:
    registry = Registry()
    registry.gauge("broken", "Broken.").follow(lambda: {(): 1 / 0})
    registry.counter("calls_total", "Calls.").add(1)

    assert [family.name for family in registry.collect()] == ["calls_total"]


def test_two_metrics_of_one_name_are_refused() -> None:
    registry = Registry()
    registry.counter("calls_total", "Calls.")

    with pytest.raises(ValueError, match="there is a metric calls_total"):
        registry.gauge("calls_total", "Calls.")


def test_labels_are_counted() -> None:
    calls = Registry().counter("calls_total", "Calls.", ("version", "code"))

    with pytest.raises(ValueError, match="has 2 labels, not 1"):
        calls.add(1, "a/b/1.0.0")


def test_the_page_is_what_prometheus_reads() -> None:
    registry = Registry()
    registry.counter("calls_total", "Calls.", ("code",)).add(2, 'a"b')
    registry.histogram("took_seconds", "Took.", ("version",), (0.1, 1.0)).observe(0.5, "a/b/1.0.0")

    page = render(registry.collect(), "text/plain")

    lines = page.body.decode().splitlines()
    assert page.content_type.startswith("text/plain; version=0.0.4")
    assert r'calls_total{code="a\"b"} 2.0' in lines
    assert 'took_seconds_bucket{algorithm="a/b",version="1.0.0",le="0.1"} 0' in lines
    assert 'took_seconds_bucket{algorithm="a/b",version="1.0.0",le="+Inf"} 1' in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)


def test_exemplars_are_shown_in_openmetrics_with_the_trace_they_lead_to() -> None:
    registry = Registry()
    took = registry.histogram("took_seconds", "Took.", bounds=(0.1, 1.0))
    took.observe(0.5, trace_id=TRACE)
    took.observe(0.05, trace_id="no trace of ours")

    page = render(registry.collect(), OPENMETRICS)

    lines = page.body.decode().splitlines()
    assert page.content_type.startswith("application/openmetrics-text")
    assert lines[-1] == "# EOF"
    shown = [line for line in lines if "trace_id" in line]
    assert len(shown) == 1
    assert shown[0].startswith(f'took_seconds_bucket{{le="1.0"}} 2 # {{trace_id="{TRACE}"}} 0.5 ')


@pytest.mark.parametrize(("accept", "read"), [("text/plain", read_text), (OPENMETRICS, read_openmetrics)])
def test_prometheus_own_client_reads_the_page_as_it_was_meant(accept: str, read: Any) -> None:
    registry = Registry()
    calls = registry.counter("calls_total", 'Calls, "quoted" and \\ more.', ("version", "code"))
    calls.add(2.5, "a/b/1.0.0", 'a"b\\c\nd')
    registry.gauge("up", "Up.").follow(lambda: {(): math.inf})
    registry.counter("never_total", "Never.", ("code",))
    took = registry.histogram("took_seconds", "Took.", ("version",), (1e-05, 0.1))
    took.observe(0.05, "a/b/1.0.0", trace_id=TRACE)
    took.observe(7.0, "a/b/1.0.0")

    families = {family.name: family for family in read(render(registry.collect(), accept).body.decode())}

    version = {"algorithm": "a/b", "version": "1.0.0"}
    (sample,) = families["calls"].samples
    assert (sample.name, sample.labels, sample.value) == ("calls_total", version | {"code": 'a"b\\c\nd'}, 2.5)
    assert families["up"].samples[0].value == math.inf
    assert families["never"].samples == []
    assert [(each.name, each.labels.get("le"), each.value) for each in families["took_seconds"].samples] == [
        ("took_seconds_bucket", "1e-05", 0.0),
        ("took_seconds_bucket", "0.1", 1.0),
        ("took_seconds_bucket", "+Inf", 2.0),
        ("took_seconds_count", None, 2.0),
        ("took_seconds_sum", None, 7.05),
    ]
    assert {each.name for each in families.values()} >= {"process_open_fds", "python_info"}
