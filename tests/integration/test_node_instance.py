"""text/slugify, an instance in JavaScript, beside Python ones on a real server: everything that the protocol asks.

The launcher's part is the test's; the boot record comes as a launcher would hand it over. Node runs in an environment
in which nothing of this project can be imported.
"""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from algomesh import errors, stage
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Message
from algomesh_broker.names import VersionId
from algomesh_broker.server import NatsServer
from tests.conditions import until
from tests.integration.bare_algorithms import clean, exclaim, merge, picky, upper
from tests.integration.foreign_fixtures import MOODY, SLUGIFY, ForeignMesh, make_project

pytestmark = pytest.mark.integration

SLUG = stage("text/slugify")
MOOD = stage("t/moody")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("node") / "slugify")


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path, project: Path) -> AsyncIterator[ForeignMesh]:
    mesh = ForeignMesh(nats_server, tmp_path)
    mesh.project = project
    async with mesh:
        await mesh.hear_leases()
        yield mesh


class Raw:
    """A caller that speaks in messages, so that a test sees each of them."""

    def __init__(self, mesh: ForeignMesh, caller: str = "k~raw") -> None:
        self.mesh, self.caller = mesh, caller
        self.replies: list[messages.Reply] = []

    async def open(self) -> "Raw":
        await self.mesh.admin.subscribe(subjects.replies_to(self.caller, "s1"), self._take)
        return self

    def call(self, version: VersionId, value: Any, *, time_left_ms: int = 20_000, **fields: Any) -> messages.Call:
        given: dict[str, Any] = {
            "run": secrets.token_hex(16),
            "root": "root",
            "root_caller": self.caller,
            "session": "s1",
            "call": "1",
            "time_left_ms": time_left_ms,
            "payload": memoryview(msgspec.json.encode(value)),
        }
        call = messages.Call(**given | fields)
        self.mesh.admin.publish(subjects.call(version, self.caller), codec.encode(call))
        return call

    async def answer(self) -> messages.Result | messages.Failure:
        ends = (messages.Result, messages.Failure)
        await until(lambda: any(isinstance(one, ends) for one in self.replies), 20)
        return next(one for one in self.replies if isinstance(one, messages.Result | messages.Failure))

    def _take(self, message: Message) -> None:
        if message.data:
            self.replies.append(codec.decode_reply(message.data))


def states(batches: list[Message]) -> list[str]:
    return [run.state for batch in batches for run in codec.decode_events(batch.data).runs]


async def test_it_is_a_stage_between_two_python_ones(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js", concurrency=4)
    await mesh.serve_all("clean", "exclaim")

    result, tally = await mesh.travel(clean | SLUG | exclaim, "  Grüße,   WELT ")

    assert result == "gruesse-welt!"
    assert tally.algorithm == "t/exclaim"


async def test_it_is_the_first_stage_and_the_last(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js", concurrency=4)
    await mesh.serve_all("upper")

    first, _ = await mesh.travel(SLUG | upper, "Ça va?")
    last, tally = await mesh.travel(upper | SLUG, "ça va?")

    assert (first, last) == ("CA-VA", "ca-va")
    assert tally.algorithm == "text/slugify"
    assert tally.version == "1.0.0"


async def test_it_is_a_branch_whose_answer_another_joins(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js", concurrency=4)
    await mesh.serve_all("clean", "upper")

    result, _ = await mesh.travel(clean | (SLUG & upper), "Ça   va?")

    assert result == ["ca-va", "ÇA VA?"]


async def test_what_fans_out_after_it_the_sender_joins(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js", concurrency=4)
    await mesh.serve_all("clean", "upper", "exclaim", "merge")

    joined, _ = await mesh.travel(clean | SLUG | (upper & exclaim), "Ça   va?")
    merged, tally = await mesh.travel(clean | SLUG | (upper & exclaim) | merge | SLUG, "Ça   va?")
    streamed = [part async for part in mesh.stream(clean | SLUG | (upper & exclaim), "Ça   va?")]

    assert joined == ["CA-VA", "ca-va!"]
    assert merged == "ca-va-plus-ca-va"
    assert tally.algorithm == "text/slugify"
    assert streamed == [["CA-VA", "ca-va!"]]


async def test_a_fan_out_after_it_in_anothers_branch_is_a_typed_error(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js", concurrency=4)
    await mesh.serve_all("clean", "upper", "exclaim")

    with pytest.raises(errors.AlgorithmError, match="cannot join what fans out after it") as raised:
        await mesh.travel(clean | ((SLUG | (upper & exclaim)) & upper), "Ça   va?")

    assert raised.value.stage == "text/slugify/1.0.0"


async def test_a_failure_of_the_next_step_names_it(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js", concurrency=4)
    await mesh.serve_all("picky")

    with pytest.raises(errors.AlgorithmError) as raised:
        await mesh.travel(SLUG | picky, "Bad!")

    assert raised.value.stage == "t/picky/1.0.0"


async def test_a_next_step_that_is_cold_is_parked_for_and_found_when_it_comes(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js", concurrency=4)
    demands = await mesh.heard(subjects.ALL_DEMAND)
    await mesh.make_consumer(upper.version_id)

    travelling = asyncio.create_task(mesh.travel(SLUG | upper, "Ça va?"))
    await until(lambda: demands, 10)
    await mesh.serve("upper")

    assert (await travelling)[0] == "CA-VA"
    assert demands[0].subject == "demand.t.upper.1-0-0.text~slugify"


async def test_a_call_that_came_before_the_instance_is_taken_by_it(mesh: ForeignMesh) -> None:
    await mesh.make_consumer(SLUGIFY)
    demands = await mesh.heard(subjects.ALL_DEMAND)
    calling = asyncio.create_task(mesh.travel(SLUG, "Ça va?"))
    await until(lambda: demands, 10)

    mesh.start_node(SLUGIFY, "slugify.js")

    result, tally = await calling
    assert result == "ca-va"
    assert tally.cold_s > 0


async def test_leases_tell_each_phase_and_the_end(mesh: ForeignMesh) -> None:
    instance = await mesh.serve_node(SLUGIFY, "slugify.js")
    await mesh.travel(SLUG, "one")
    await until(lambda: mesh.leases[-1].phase == "ready" and mesh.leases[-1].total == 1, 10)

    instance.send_signal(signal.SIGTERM)

    assert await asyncio.to_thread(instance.wait, 10) == 0
    await until(lambda: mesh.leases[-1].phase == "ended")
    phases = list(dict.fromkeys(lease.phase for lease in mesh.leases))
    assert phases == ["loading", "ready", "draining", "ended"]
    assert {lease.instance for lease in mesh.leases} == {"bare-1"}


async def test_a_long_run_says_that_it_runs_and_where(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js")
    raw = await Raw(mesh).open()

    raw.call(MOODY, {"sleep_ms": 1300, "give": "slept"})

    result = await raw.answer()
    running = [one for one in raw.replies if isinstance(one, messages.Running)]
    assert isinstance(result, messages.Result)
    assert [one.instance for one in running] == ["bare-1", "bare-1"]
    assert result.compute_ms >= 1300


async def test_a_short_run_says_nothing_but_its_answer(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js")
    raw = await Raw(mesh).open()

    raw.call(MOODY, {"give": [1, 2]})

    result = await raw.answer()
    assert isinstance(result, messages.Result)
    assert (result.content_type, bytes(result.payload), result.version) == ("json", b"[1,2]", "1.0.0")
    assert raw.replies == [result]


async def test_time_that_is_over_ends_the_run_with_a_typed_error(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js")
    events = await mesh.heard(subjects.ALL_EVENTS)
    raw = await Raw(mesh).open()

    raw.call(MOODY, {"sleep_ms": 60_000}, time_left_ms=150)

    failure = await raw.answer()
    assert isinstance(failure, messages.Failure)
    assert failure.code == "deadline_exceeded"
    assert failure.stage == "t/moody/1.0.0"
    await until(lambda: "expired" in states(events))
    await until(lambda: mesh.leases[-1].active == 0, 10)  # its code was stopped, too


async def test_a_run_over_its_versions_timeout_fails_with_timeout(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js", timeout_s=0.1)

    with pytest.raises(errors.RunTimeout):
        await mesh.travel(MOOD, {"sleep_ms": 60_000})


async def test_code_that_does_not_stop_is_told_of_in_the_lease(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js", timeout_s=0.1)

    with pytest.raises(errors.RunTimeout):
        await mesh.travel(MOOD, {"ignore_ms": 60_000})

    await until(lambda: mesh.leases[-1].overdue_ms > 0, 10)


async def test_a_cancelled_run_is_stopped(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js")
    events = await mesh.heard(subjects.ALL_EVENTS)
    calling = asyncio.create_task(mesh.travel(MOOD, {"sleep_ms": 60_000}))
    await until(lambda: "running" in states(events), 10)
    await until(lambda: any(lease.active for lease in mesh.leases), 10)

    calling.cancel()

    await until(lambda: "cancelled" in states(events), 10)
    await until(lambda: mesh.leases[-1].active == 0, 10)


async def test_a_cancel_of_somebody_else_changes_nothing(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js")
    raw = await Raw(mesh).open()
    call = raw.call(MOODY, {"sleep_ms": 600, "give": "done"})
    await until(lambda: raw.replies, 10)

    cancel = codec.encode(messages.Cancel(run=call.run, attempt=9))
    mesh.admin.publish(subjects.control("bare-1", "k~other"), cancel)

    assert isinstance(await raw.answer(), messages.Result)


async def test_a_run_whose_caller_has_gone_is_stopped(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js")
    events = await mesh.heard(subjects.ALL_EVENTS)

    Raw(mesh).call(MOODY, {"sleep_ms": 60_000})  # nobody listens for its answer

    await until(lambda: "cancelled" in states(events), 10)


@pytest.mark.parametrize(
    ("wish", "kind", "error_type", "said"),
    [
        ({"fail": "no such thing"}, errors.AlgorithmError, "TypeError", "TypeError: no such thing"),
        ({"refuse": "not today"}, errors.BadInput, "Moody", "not today"),
        ({"nothing": True}, errors.BadOutput, "bad_output", "undefined"),
        ({"letters": 20_000_000}, errors.PayloadTooLarge, "payload_too_large", "20000000 bytes"),
    ],
)
async def test_what_goes_wrong_has_a_type(
    mesh: ForeignMesh, wish: dict[str, Any], kind: type[errors.MeshError], error_type: str, said: str
) -> None:
    await mesh.serve_node(MOODY, "moody.js")

    with pytest.raises(kind, match=said) as raised:
        await mesh.travel(MOOD, wish)

    assert raised.value.error_type == error_type
    assert raised.value.stage == "t/moody/1.0.0"


async def test_input_of_a_kind_it_cannot_read_is_refused(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js")

    with pytest.raises(errors.BadInput, match="takes text"):
        await mesh.travel(SLUG, [1, 2])
    raw = await Raw(mesh).open()
    raw.call(SLUGIFY, None, content_type="text", payload=memoryview(b"\xff"))
    failure = await raw.answer()

    assert isinstance(failure, messages.Failure)
    assert failure.code == "bad_input"


async def test_bytes_come_and_go(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js")

    result, _ = await mesh.travel(MOOD, {"bytes": [0, 1, 255]})

    assert result == b"\x00\x01\xff"


async def test_an_input_that_travels_by_claim_is_fetched(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js")

    result, _ = await mesh.travel(SLUG, "!" * 1_500_000 + " the end")

    assert result == "the-end"


async def test_who_is_full_leaves_calls_to_others_and_none_is_lost(mesh: ForeignMesh) -> None:
    await mesh.serve_node(MOODY, "moody.js", concurrency=1)
    mesh.start_node(MOODY, "moody.js", concurrency=1)

    results = await asyncio.gather(*(mesh.travel(MOOD, {"sleep_ms": 20, "give": n}) for n in range(60)))

    assert [result for result, _ in results] == list(range(60))
    assert {tally.instance for _, tally in results} == {"bare-1", "bare-2"}


async def test_sigterm_loses_no_call(mesh: ForeignMesh) -> None:
    leaving = await mesh.serve_node(MOODY, "moody.js", concurrency=4)
    mesh.start_node(MOODY, "moody.js", concurrency=4)
    await until(lambda: {lease.instance for lease in mesh.leases if lease.phase == "ready"} == {"bare-1", "bare-2"}, 20)
    calls = [asyncio.create_task(mesh.call_version(MOODY, {"sleep_ms": 30, "give": n}, attempts=1)) for n in range(80)]
    await until(lambda: sum(call.done() for call in calls) > 10, 20)

    leaving.send_signal(signal.SIGTERM)

    assert await asyncio.gather(*calls) == list(range(80))
    assert await asyncio.to_thread(leaving.wait, 10) == 0


async def test_the_same_run_again_is_not_run_twice(mesh: ForeignMesh, tmp_path: Path) -> None:
    await mesh.serve_node(MOODY, "moody.js", concurrency=2)
    raw, file = await Raw(mesh).open(), tmp_path / "runs"
    wish = {"file": str(file), "sleep_ms": 300, "give": "once"}

    raw.call(MOODY, wish, run="r1", attempt=1)
    raw.call(MOODY, wish, run="r1", attempt=2)

    result = await raw.answer()
    assert result.attempt == 2
    assert file.read_text() == "r1\n"


async def test_a_route_token_that_nobody_signed_opens_nothing(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js")
    raw = await Raw(mesh).open()
    token = msgspec.msgpack.encode([msgspec.msgpack.encode(["k~raw", 9e9, b""]), bytes(64)])

    call = raw.call(SLUGIFY, "x", grant=token, at=0)
    hop = codec.encode(msgspec.structs.replace(call, run="hopped", reply_to="k~raw"))
    mesh.admin.publish(subjects.hop(SLUGIFY, "t~clean"), hop)

    failure = await raw.answer()
    assert isinstance(failure, messages.Failure)
    assert failure.code == "permission_denied"
    await until(lambda: "a hop of t~clean was refused" in mesh.log("bare-1"))
    assert all(reply.run == call.run for reply in raw.replies)


async def test_a_hop_from_where_the_route_does_not_lead_is_refused(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js")
    raw = await Raw(mesh).open()
    grant = mesh.grant(mesh.route(clean | SLUG), "k~raw").token
    call = messages.Call("r1", "r1", session="s1", call="1", time_left_ms=5_000, grant=grant, at=1, reply_to="k~raw")

    mesh.admin.publish(subjects.hop(SLUGIFY, "t~upper"), codec.encode(call))
    await until(lambda: "t~upper does not hand over to step 1" in mesh.log("bare-1"))
    mesh.admin.publish(
        subjects.hop(SLUGIFY, "t~clean"), codec.encode(msgspec.structs.replace(call, reply_to="k~other"))
    )
    await until(lambda: "k~other does not wait for step 1" in mesh.log("bare-1"))

    assert raw.replies == []


async def test_garbage_is_ignored_and_the_next_call_answered(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js")

    for data in (b"", b"\xc1", b"\x90", b"\x91" * 5000, b"{}"):
        mesh.admin.publish(subjects.call(SLUGIFY, "k~raw"), data)
        mesh.admin.publish(subjects.control("bare-1", "k~raw"), data)
        mesh.admin.publish("_INBOX.bare-1.pull", data)

    assert (await mesh.travel(SLUG, "Still here"))[0] == "still-here"


async def test_runs_are_recorded_and_told_to_the_pre_warmer(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js")
    events = await mesh.heard(subjects.run_events(SLUGIFY))
    sights = await mesh.heard(subjects.sights(SLUGIFY))

    await mesh.serve_all("upper")
    await mesh.travel(SLUG | upper, "one two")

    await until(lambda: "succeeded" in states(events))
    run = codec.decode_events(events[-1].data).runs[-1]
    assert (run.algorithm, run.version, run.caller, run.instance) == ("text/slugify", "1.0.0", "k~a", "bare-1")
    assert 0 < run.queued_at <= run.started_at <= run.ended_at
    sight = codec.decode_sights(sights[-1].data).runs[-1]
    assert sight.stages == ["t/upper/1.0.0"]
    assert sight.ended_at > 0


async def test_a_server_that_was_away_is_taken_up_again(mesh: ForeignMesh) -> None:
    await mesh.serve_node(SLUGIFY, "slugify.js")

    await mesh.restart_server(SLUGIFY)
    result, _ = await mesh.travel(SLUG, "Back again", timeout_s=20)

    assert result == "back-again"
