"""Asking programs that are away, silent, late, or answer with something else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from algomesh import errors
from algomesh.requests import ask
from algomesh_broker import codec, messages, platform, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.identity import Identity
from algomesh_broker.server import NatsServer

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    async with await Connection.open(nats_server.url, Identity.of_key("a key")) as opened:
        yield opened


async def answer_with(connection: Connection, data: bytes) -> None:
    """A launcher that answers every `ps` with these bytes."""

    def on_request(message: Message) -> None:
        request, asked = subjects.parse_platform(message.subject), codec.decode_ask(message.data)
        subject = subjects.reply("platform~launcher", request.caller, asked.session, asked.call)
        connection.publish(subject, data)

    await connection.subscribe(subjects.platform_requests("launcher"), on_request)


async def ps(connection: Connection, timeout_s: float = 5.0) -> platform.InstanceRows:
    return await ask(connection, "launcher", "ps", "", platform.Ps(), platform.InstanceRows, timeout_s)


async def test_a_program_that_is_not_there_is_named_with_how_to_start_it(connection: Connection) -> None:
    with pytest.raises(errors.Unreachable, match=r"launcher is not running.*algomesh serve launcher"):
        await ps(connection, 0.3)


async def test_a_program_that_comes_back_in_time_is_asked_again(connection: Connection) -> None:
    asking = asyncio.create_task(ps(connection))
    await connection.flush()
    answer = messages.Answer(body=platform.pack(platform.InstanceRows(instances=[])))

    await answer_with(connection, codec.encode(answer))

    assert (await asking).instances == []


async def test_a_silent_program_does_not_keep_us_beyond_our_time(connection: Connection) -> None:
    await connection.subscribe(subjects.platform_requests("launcher"), lambda _: None)

    with pytest.raises(errors.Unreachable, match="did not answer within"):
        await ps(connection, 0.2)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (messages.Answer(code="overloaded", message="later"), errors.Overloaded),
        (messages.Answer(code="requirements_missing", message="no torch"), errors.BadProject),
        (messages.Answer(code="unheard_of", message="hm"), errors.MeshError),
        (messages.Answer(body=b"not msgpack"), errors.MeshError),
    ],
)
async def test_what_a_program_refuses_with_becomes_an_error_of_the_sdk(
    connection: Connection, answer: messages.Answer, kind: type[errors.MeshError]
) -> None:
    await answer_with(connection, codec.encode(answer))

    with pytest.raises(kind) as refused:
        await ps(connection)

    assert type(refused.value) is kind


async def test_nothing_is_left_subscribed_afterwards(connection: Connection) -> None:
    before = len(connection.on_forbidden)
    with contextlib.suppress(errors.Unreachable):
        await ps(connection, 0.1)
    await connection.flush()

    assert len(connection.on_forbidden) == before
    assert connection._subscriptions == {}
