"""Subjects are built and taken apart in one place, and only from names that were checked."""

import pytest

from algomesh_broker import subjects
from algomesh_broker.errors import BadMessage
from algomesh_broker.names import VersionId
from algomesh_broker.subjects import PlatformRequest, Work

CLEAN = VersionId.parse("text/clean/1.2.0")


def test_every_subject_is_as_the_table_says() -> None:
    assert subjects.call(CLEAN, "k~abc") == "call.text.clean.1-2-0.k~abc"
    assert subjects.hop(CLEAN, "text~lower") == "hop.text.clean.1-2-0.text~lower"
    assert subjects.park(subjects.call(CLEAN, "k~abc")) == "park.call.text.clean.1-2-0.k~abc"
    assert subjects.demand(CLEAN, "k~abc") == "demand.text.clean.1-2-0.k~abc"
    assert subjects.calls_of(CLEAN) == "call.text.clean.1-2-0.*"
    assert subjects.hops_of(CLEAN) == "hop.text.clean.1-2-0.*"
    assert subjects.parked_of(CLEAN) == "park.*.text.clean.1-2-0.*"
    assert subjects.reply("text~clean", "k~abc", "s1", "7") == "reply.text.clean.k~abc.s1.7"
    assert subjects.replies_to("k~abc", "s1") == "reply.*.*.k~abc.s1.*"
    assert subjects.no_responders("k~abc", "s1", "7") == "reply.none.none.k~abc.s1.7"
    assert subjects.control("h-1", "k~abc") == "control.h-1.k~abc"
    assert subjects.controls_of("h-1") == "control.h-1.*"
    assert subjects.run_events(CLEAN) == "event.run.text.clean.1-2-0"
    assert subjects.caller_events("k~abc") == "event.caller.k~abc"
    assert subjects.fleet(CLEAN) == "fleet.text.clean.1-2-0"
    assert subjects.host_beat("h") == "fleet.host.h"
    assert subjects.directory_key("text", "clean") == "$KV.directory.text.clean"


@pytest.mark.parametrize("lane", ["call", "hop"])
@pytest.mark.parametrize("prefix", ["", "park."])
def test_the_subject_of_work_is_taken_apart(lane: str, prefix: str) -> None:
    assert subjects.parse_work(f"{prefix}{lane}.text.clean.1-2-0.k~abc") == Work(lane, CLEAN, "k~abc")


@pytest.mark.parametrize(
    "subject",
    ["", "call", "call.text.clean.1-2-0", "call.text.clean.1-2-0.a.b", "run.text.clean.1-2-0.k~a",
     "call.Text.clean.1-2-0.k~a", "call.text.clean.1-2.k~a", "park.park.call.text.clean.1-2-0.k~a"],
)  # fmt: skip
def test_what_is_no_work_is_refused(subject: str) -> None:
    with pytest.raises(BadMessage):
        subjects.parse_work(subject)


def test_a_request_to_a_program_goes_there_and_back() -> None:
    about = subjects.platform("registry", "publish", "k~abc", "text/clean")
    plain = subjects.platform("launcher", "ps", "k~abc")

    assert (about, plain) == ("platform.registry.publish.text.clean.k~abc", "platform.launcher.ps._._.k~abc")
    assert subjects.parse_platform(about) == PlatformRequest("registry", "publish", "text/clean", "k~abc")
    assert subjects.parse_platform(plain) == PlatformRequest("launcher", "ps", "", "k~abc")


@pytest.mark.parametrize("subject", ["", "platform.registry", "call.a.b.c.d.e", "platform.a.b.c.d.e.f"])
def test_what_is_no_request_is_refused(subject: str) -> None:
    with pytest.raises(BadMessage):
        subjects.parse_platform(subject)
