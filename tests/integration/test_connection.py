"""The connection: what it promises when servers go, lie or refuse, and what a user's program hears of it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import PayloadTooLarge, Unauthenticated, Unreachable
from algomesh_broker.identity import Identity
from algomesh_broker.server import NatsConfig, NatsServer
from tests.conditions import until
from tests.integration.up_fixtures import environment

pytestmark = pytest.mark.integration

CALLER = Identity("k~a", "_INBOX.a")
Session = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# A user's program whose server goes away and comes back, with a bug in a callback of its own.
PROGRAM = """
import asyncio, sys
from algomesh_broker.connection import Connection
from algomesh_broker.identity import Identity

async def main():
    connection = await Connection.open(sys.argv[1], Identity("k~a", "_INBOX.a"))
    reconnected = asyncio.Event()
    connection.on_reconnect.append(reconnected.set)
    connection.join("broken", lambda message: 1 / 0)
    connection.publish("broken")
    await connection.flush()
    print("connected", flush=True)
    await reconnected.wait()
    await connection.close()

asyncio.run(main())
"""
CONFIGURE = """
import structlog
structlog.configure(
    processors=[structlog.processors.add_log_level, structlog.processors.KeyValueRenderer(key_order=["event"])],
    logger_factory=structlog.PrintLoggerFactory(),
)
"""


async def test_a_killed_server_loses_no_subscription_and_nothing_that_was_published_meanwhile(tmp_path: Path) -> None:
    heard: list[bytes] = []
    async with _server(tmp_path) as server, await Connection.open(server.url, CALLER) as connection:
        await connection.subscribe("news", lambda message: heard.append(bytes(message.data)))
        reconnected = asyncio.Event()
        connection.on_reconnect.append(reconnected.set)

        _kill(server)
        await until(lambda: not connection.is_connected)
        connection.publish("news", b"kept")
        await server.start()
        await reconnected.wait()
        connection.publish("news", b"new")

        await until(lambda: heard == [b"kept", b"new"])


async def test_what_waits_for_a_server_that_goes_fails_at_once(tmp_path: Path) -> None:
    async with _server(tmp_path) as server, await Connection.open(server.url, CALLER) as connection:
        await connection.subscribe("question", lambda message: None)
        asking = asyncio.create_task(connection.request("question", timeout_s=60))
        await connection.flush()

        _kill(server)

        with pytest.raises(Unreachable, match="was lost"):
            await asking
        with pytest.raises(Unreachable, match="is away"):
            await connection.flush()


async def test_requests_are_answered_or_say_that_nobody_is_there(nats_server: NatsServer) -> None:
    async with await Connection.open(nats_server.url, CALLER) as connection:

        def answer(message: Message) -> None:
            connection.publish(message.reply, bytes(message.data).upper())

        await connection.subscribe("shout", answer)

        answers = await asyncio.gather(*(connection.request("shout", b"%c" % letter) for letter in b"abc"))
        assert [message.data for message in answers] == [b"A", b"B", b"C"]
        with pytest.raises(Unreachable, match="nobody answers"):
            await connection.request("nobody")
        with pytest.raises(PayloadTooLarge):
            connection.publish("shout", bytes(connection.max_payload + 1))


async def test_what_is_no_nats_server_is_said_so() -> None:
    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with _listening(speak_http) as url:
        with pytest.raises(Unreachable, match="is this a NATS port"):
            await Connection.open(url, CALLER, timeout_s=0.3)


async def test_a_quick_no_is_believed_and_a_late_one_tried_again() -> None:
    came = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        await _read_hello(reader, writer)
        if came == 1:
            await asyncio.sleep(1.0)  # as long as nats-server waits for a registry that is not there
        writer.write(b"-ERR 'Authorization Violation'\r\n")

    async with _listening(refuse) as url:
        with pytest.raises(Unauthenticated):
            await Connection.open(url, CALLER, timeout_s=10)

    assert came == 2


@pytest.mark.parametrize("asks_who_we_are", [True, False])
async def test_a_caller_that_comes_back_lets_the_registry_pass(asks_who_we_are: bool) -> None:
    took_s: list[float] = []
    loop = asyncio.get_running_loop()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        began = loop.time()
        await _read_hello(reader, writer, auth_required=asks_who_we_are)
        took_s.append(loop.time() - began)
        writer.write(b"PONG\r\n")
        if len(took_s) > 1:
            await reader.read()

    async with _listening(accept) as url, await Connection.open(url, CALLER) as connection:
        await until(lambda: len(took_s) == 2 and connection.is_connected)

    first_s, again_s = took_s
    assert first_s < 0.1
    assert (again_s >= 0.1) is asks_who_we_are


async def test_a_ping_that_went_under_with_its_server_is_not_sent_to_the_next_one() -> None:
    sessions: list[bytes] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_hello(reader, writer, auth_required=False)
        writer.write(b"PONG\r\n")
        sessions.append(await reader.readuntil(b"PUB the.end"))

    async with _listening(accept) as url, await Connection.open(url, CALLER) as connection:
        subscription = connection.join("news", lambda message: None)
        link = connection._link
        assert link is not None
        await asyncio.sleep(0)  # the subscription has been sent

        link.close()  # noticed at the next turn, before what this turn writes is sent
        left = subscription.leave()
        await until(lambda: left.done() and connection.is_connected)
        connection.publish("the.end")

        await until(lambda: sessions)
    assert b"PING" not in sessions[0]


async def test_a_program_without_logging_hears_warnings_on_stderr_and_nothing_else(tmp_path: Path) -> None:
    said, errors = await _run_while_the_server_goes(tmp_path, PROGRAM)

    assert said == "connected\n"
    assert errors.startswith("algomesh.connection: callback_failed subject='broken'\nTraceback")
    assert errors.endswith("ZeroDivisionError: division by zero\n")


async def test_a_program_that_configured_structlog_hears_events_its_own_way(tmp_path: Path) -> None:
    said, errors = await _run_while_the_server_goes(tmp_path, CONFIGURE + PROGRAM)

    assert "event='callback_failed' subject='broken' exc_info=True level='error'" in said
    assert "event='reconnect_failed'" in said
    assert "event='reconnected'" in said
    assert errors == ""


def test_importing_the_sdk_does_not_import_structlog() -> None:
    code = "import sys, algomesh, algomesh.nats_transport; print({'structlog', 'rich'} & set(sys.modules))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout == "set()\n"


def _kill(server: NatsServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


def _server(folder: Path) -> NatsServer:
    return NatsServer(NatsConfig(store_dir=folder / "store", runtime_dir=folder / "run", is_synced=False))


async def _run_while_the_server_goes(tmp_path: Path, program: str) -> tuple[str, str]:
    async with _server(tmp_path) as server:
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, server.url,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        assert running.stdout is not None
        said = b""
        while not said.endswith(b"connected\n"):
            line = await running.stdout.readline()
            assert line, "the program ended"
            said += line
        _kill(server)
        await server.wait()
        await server.start()
        more, errors = await running.communicate()
    assert running.returncode == 0, errors.decode()
    return (said + more).decode(), errors.decode()


async def _read_hello(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, auth_required: bool = True
) -> None:
    writer.write(b"INFO %b\r\n" % json.dumps({"max_payload": 1000, "auth_required": auth_required}).encode())
    await reader.readuntil(b"PING\r\n")


@contextlib.asynccontextmanager
async def _listening(session: Session) -> AsyncIterator[str]:
    """A server that speaks as told to; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await session(reader, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the test has ended
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
