"""The loop that every program answers requests with, over a real nats-server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from algomesh_broker import codec, messages, platform, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import PayloadTooLarge, Unreachable
from algomesh_broker.identity import Identity, caller_of_program
from algomesh_broker.platform import Done
from algomesh_broker.request_server import Refusal, RequestServer
from algomesh_broker.server import NatsServer
from algomesh_broker.subjects import PlatformRequest
from tests.conditions import until
from tests.integration.registry_fixtures import Refused, ask, eventually

pytestmark = pytest.mark.integration

PROGRAM = "ledger"
CALLER = "k~me"


class Away(Exception):
    pass


class Verbs:
    """Handlers that say what they were asked, and wait where they are told to."""

    def __init__(self) -> None:
        self.asked: list[PlatformRequest] = []
        self.failures: dict[str, Exception] = {}
        self.go_on = asyncio.Event()
        self.table = {"count": self._count, "wait": self._wait, "fail": self._fail}

    async def _count(self, request: PlatformRequest, body: bytes) -> Done:
        self.asked.append(request)
        return Done(count=platform.unpack(Done, body).count + 1)

    async def _wait(self, request: PlatformRequest, _: bytes) -> Done:
        self.asked.append(request)
        await self.go_on.wait()
        return Done()

    async def _fail(self, request: PlatformRequest, _: bytes) -> Done:
        raise self.failures[request.algorithm]


class Mesh:
    """Servers and one caller."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self._url, self._stack = url, stack
        self.verbs = Verbs()

    async def connect(self, caller: str) -> Connection:
        identity = Identity(caller, subjects.inbox(caller)).with_own_inbox()
        return await self._stack.enter_async_context(await Connection.open(self._url, identity))

    async def serve(self, verbs: Verbs | None = None, *, at_once: int = 8, **options: Any) -> RequestServer:
        connection = await self.connect(caller_of_program(PROGRAM))
        server = RequestServer(connection, PROGRAM, (verbs or self.verbs).table, at_once=at_once, **options)
        self._stack.push_async_callback(server.close)
        await server.serve()
        return server

    async def ask(self, verb: str, algorithm: str = "", *, count: int = 1) -> int:
        caller = await self.connect(CALLER)
        return (await ask(caller, verb, Done(count=count), Done, algorithm=algorithm, program=PROGRAM)).count


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        yield Mesh(nats_server.url, stack)


async def test_a_handler_gets_what_the_subject_says_and_its_struct_is_the_answer(mesh: Mesh) -> None:
    await mesh.serve()

    assert await mesh.ask("count", "text/clean", count=41) == 42
    assert mesh.verbs.asked == [PlatformRequest(PROGRAM, "count", "text/clean", CALLER)]


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (Refusal("key_exists", "take another"), "key_exists", "take another"),
        (PayloadTooLarge(2**21, 2**20), "payload_too_large", "2.0 MiB"),
        (Away("host 10.0.0.1 is down"), "unavailable", "the ledger's database does not answer"),
        (ZeroDivisionError("secret words"), "internal_error", "the ledger failed at this request; its log says why"),
    ],
)
async def test_what_a_handler_raises_is_answered_by_its_code(
    mesh: Mesh, failure: Exception, code: str, words: str
) -> None:
    await mesh.serve(database_away=(Away,))
    mesh.verbs.failures["a/b"] = failure

    with pytest.raises(Refused) as refused:
        await mesh.ask("fail", "a/b")

    assert refused.value.code == code
    assert words in refused.value.message
    assert "10.0.0.1" not in refused.value.message
    assert "secret" not in refused.value.message


async def test_a_verb_and_a_body_that_make_no_sense_are_refused(mesh: Mesh) -> None:
    await mesh.serve()
    caller = await mesh.connect(CALLER)

    with pytest.raises(Refused, match="unknown_verb: the ledger does not know 'dance'"):
        await ask(caller, "dance", Done(), Done, program=PROGRAM)
    with pytest.raises(Refused, match="bad_message"):
        await ask(caller, "count", messages.Ask(session="not", call="a body"), Done, program=PROGRAM)


async def test_a_program_may_have_codes_of_its_own(mesh: Mesh) -> None:
    await mesh.serve(unknown_verb_code="bad_message", failed_code="mesh_error")
    mesh.verbs.failures["a/b"] = ZeroDivisionError()

    with pytest.raises(Refused, match="bad_message"):
        await mesh.ask("dance")
    with pytest.raises(Refused, match="mesh_error"):
        await mesh.ask("fail", "a/b")


async def test_what_cannot_be_read_is_not_answered_and_stops_nothing(mesh: Mesh) -> None:
    await mesh.serve()
    caller = await mesh.connect(CALLER)
    heard: list[Message] = []
    await caller.subscribe("reply.>", heard.append)
    subject = subjects.platform(PROGRAM, "count", CALLER)

    caller.publish(subject, b"\xc1")
    for session, call in (("a.b", "1"), ("s", "*"), ("", "1"), ("s", "")):
        caller.publish(subject, codec.encode(messages.Ask(session=session, call=call, body=platform.pack(Done()))))

    assert await mesh.ask("count", count=6) == 7  # asked later, so what came before was seen
    assert len(heard) == 1


async def test_more_than_it_takes_at_once_is_refused_at_once_and_served_later(mesh: Mesh) -> None:
    await mesh.serve(at_once=2)
    waiting = [asyncio.create_task(mesh.ask("wait")) for _ in range(2)]
    await until(lambda: len(mesh.verbs.asked) == 2)

    with pytest.raises(Refused, match="overloaded"):
        await mesh.ask("count")
    mesh.verbs.go_on.set()
    await asyncio.gather(*waiting)

    assert await mesh.ask("count") == 2


async def test_closing_finishes_what_is_under_way_and_takes_no_more(mesh: Mesh) -> None:
    server = await mesh.serve()
    caller = await mesh.connect(CALLER)
    asking = asyncio.create_task(mesh.ask("wait"))
    await until(lambda: mesh.verbs.asked)

    async def is_deaf() -> bool:
        """Whether nobody takes requests any more: the server itself says so."""
        try:
            await caller.request(subjects.platform(PROGRAM, "count", CALLER), b"unreadable", 0.2)
        except Unreachable as error:
            return "nobody answers" in str(error)
        return False

    closing = asyncio.create_task(server.close(10.0))
    await eventually(is_deaf)
    mesh.verbs.go_on.set()
    await closing

    assert await asking == 1


async def test_closing_gives_up_what_outlasts_its_grace(mesh: Mesh) -> None:
    server = await mesh.serve()
    asking = asyncio.create_task(mesh.ask("wait"))
    await until(lambda: mesh.verbs.asked)

    async with asyncio.timeout(5):
        await server.close()

    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == f"{PROGRAM}-wait"] == []


@pytest.mark.parametrize(("is_shared", "times"), [(True, 1), (False, 2)])
async def test_several_programs_share_requests_or_take_them_all(mesh: Mesh, *, is_shared: bool, times: int) -> None:
    verbs = [Verbs(), Verbs()]
    for each in verbs:
        await mesh.serve(each, is_shared=is_shared)

    for _ in range(10):
        await mesh.ask("count")

    await until(lambda: sum(len(each.asked) for each in verbs) == 10 * times)
