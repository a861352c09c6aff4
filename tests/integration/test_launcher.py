"""The launcher with a real nats-server, real zygotes and the real runtime inside its instances."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from algomesh_broker import messages, platform
from algomesh_broker.names import VersionId
from algomesh_broker.server import NatsServer
from algomesh_services.launcher.budget import Capacity
from tests.conditions import is_alive, until
from tests.integration.launcher_mesh import GIB, Mesh, until_so

pytestmark = pytest.mark.integration

ECHO = """
@algorithm("demo/echo", version="1.0.0")
def main(x):
    return x
"""


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(nats_server.url, tmp_path) as mesh:
        await mesh.begin()
        yield mesh


def value(reply: messages.Reply) -> Any:
    assert isinstance(reply, messages.Result), reply
    text = bytes(reply.payload).decode()
    return text if reply.content_type == "text" else json.loads(text)


def error(reply: messages.Reply) -> tuple[str, str]:
    assert isinstance(reply, messages.Failure), reply
    return reply.code, reply.message


async def gone(mesh: Mesh) -> None:
    async def nobody() -> bool:
        return not await mesh.ps()

    await until_so(nobody)


async def test_the_first_call_starts_an_instance_and_the_second_finds_it(mesh: Mesh) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
    assert await mesh.ps() == []

    assert value(await mesh.caller(echo, "hello")) == "hello"
    assert value(await mesh.caller(echo, [1, 2])) == [1, 2]

    (row,) = await mesh.ps()
    assert (row.algorithm, row.version, row.state, row.load) == ("demo/echo", "1.0.0", "ready", 0)
    assert row.instance == f"{mesh.settings.launcher}-1"
    assert row.reason == "1 parked call"
    assert is_alive(row.pid)
    assert row.memory_bytes > 0
    (ready,) = mesh.caller.of(messages.Ready)
    assert ready.instance == row.instance
    assert ready.start_ms == row.start_ms
    assert mesh.caller.of(messages.Starting)[0].waiting == 1


async def test_a_demand_that_was_lost_is_found_by_the_net(mesh: Mesh) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)

    async with asyncio.timeout(10):
        reply = await mesh.caller.start(echo, 1, demand=False)

    assert value(reply) == 1


async def test_a_version_that_was_stopped_starts_again_with_the_next_call(mesh: Mesh) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
    await mesh.caller(echo)

    done = await mesh.ask("stop", platform.Stop(), platform.Done, "demo/echo")

    assert done.count == 1
    assert await mesh.ps() == []
    (death,) = mesh.caller.of(messages.Death)
    assert (death.reason, death.detail) == ("retired", "stopped by request")
    assert value(await mesh.caller(echo, 2)) == 2
    assert (await mesh.ps())[0].instance.endswith("-2")


async def test_an_idle_instance_is_retired_and_its_consumer_stays_until_nobody_wants_it(mesh: Mesh) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO, idle_s=0.5)
    await mesh.caller(echo)

    await gone(mesh)

    assert [death.reason for death in mesh.caller.of(messages.Death)] == ["retired"]


async def test_calls_that_wait_get_more_instances_up_to_the_maximum(mesh: Mesh) -> None:
    code = """
    import time
    @algorithm("demo/slow", version="1.0.0")
    def main(x):
        time.sleep(0.3)
        return x
    """
    slow = await mesh.shelf.publish("demo/slow/1.0.0", code, max_instances=3)

    replies = await asyncio.gather(*(mesh.caller(slow, number) for number in range(12)))

    assert [value(reply) for reply in replies] == list(range(12))
    assert len(await mesh.ps()) == 3


async def test_nobody_waits_behind_an_instance_that_hangs(mesh: Mesh) -> None:
    code = """
    import time
    @algorithm("demo/hang", version="1.0.0")
    def main(x):
        while x == "hang":
            time.sleep(0.01)
        return x
    """
    hang = await mesh.shelf.publish("demo/hang/1.0.0", code, max_instances=2)
    assert value(await mesh.caller(hang, "warm")) == "warm"
    hung = mesh.caller.start(hang, "hang")

    replies = await asyncio.gather(*(mesh.caller(hang, number) for number in range(20)))

    assert [value(reply) for reply in replies] == list(range(20))
    assert not hung.done()


async def test_a_death_is_told_within_milliseconds_with_its_reason(mesh: Mesh) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
    await mesh.caller(echo)
    (row,) = await mesh.ps()
    killed_at = time.monotonic()

    os.kill(row.pid, signal.SIGKILL)
    await until(lambda: mesh.caller.of(messages.Death), 5)

    at, subject, death = mesh.caller.fleet[-1]
    assert isinstance(death, messages.Death)
    assert (subject, death.instance, death.reason) == (echo.tokens, row.instance, "crash")
    assert "SIGKILL" in death.detail
    assert at - killed_at < 0.25
    assert value(await mesh.caller(echo, 3)) == 3


async def test_a_load_that_raises_is_told_at_once_and_does_not_start_a_storm(mesh: Mesh) -> None:
    code = """
    @algorithm("demo/broken", version="1.0.0")
    class main:
        def load(self):
            raise RuntimeError("no weights here")
        def apply(self, x):
            return x
    """
    broken = await mesh.shelf.publish("demo/broken/1.0.0", code)

    code_, message = error(await mesh.caller(broken))
    again = await asyncio.gather(*(mesh.caller(broken) for _ in range(20)))

    assert code_ == "load_failed"
    assert "demo/broken/1.0.0" in message
    assert "RuntimeError: no weights here" in message
    assert "algomesh logs demo/broken/1.0.0" in message
    assert {error(reply) for reply in again} == {(code_, message)}
    assert len(mesh.caller.of(messages.Death)) == 1
    assert mesh.caller.of(messages.Death)[0].reason == "load_failed"


async def test_a_named_pipeline_is_never_started_and_who_waits_for_it_is_told_why(mesh: Mesh) -> None:
    judge = mesh.shelf.publish_pipeline("demo/judge/1.0.0", b'{"kind":"stage","reference":"demo/echo"}')

    first = error(await mesh.caller(judge))
    again = await asyncio.gather(*(mesh.caller(judge) for _ in range(5)))

    assert first[0] == "bad_reference"
    assert "demo/judge/1.0.0 is a named pipeline, and has no instances" in first[1]
    assert {error(reply) for reply in again} == {first}
    assert await mesh.ps() == []
    assert mesh.caller.of(messages.Death) == []


async def test_a_new_version_is_tried_though_the_old_one_failed(mesh: Mesh) -> None:
    await mesh.shelf.publish("demo/fix/1.0.0", "import nothing_like_this\n")
    old = VersionId.parse("demo/fix/1.0.0")
    assert "nothing_like_this" in error(await mesh.caller(old))[1]

    new = await mesh.shelf.publish(
        "demo/fix/1.0.1", '@algorithm("demo/fix", version="1.0.1")\ndef main(x):\n    return x\n'
    )

    assert value(await mesh.caller(new, "works")) == "works"


async def test_an_exit_while_loading_is_a_failed_start(mesh: Mesh) -> None:
    exits = await mesh.shelf.publish("demo/exits/1.0.0", "import os\nos._exit(9)\n")

    code, message = error(await mesh.caller(exits))

    assert code == "load_failed"
    assert "exited with code 9 before it was ready" in message


async def test_a_version_nobody_has_is_refused_in_the_registrys_words(mesh: Mesh) -> None:
    code, message = error(await mesh.caller(VersionId.parse("demo/nothing/1.0.0")))

    assert (code, message) == ("unknown_version", "demo/nothing has no 1.0.0")


async def test_an_archive_that_is_not_what_its_digest_says_is_not_run(mesh: Mesh) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
    (digest,) = mesh.shelf.archives
    mesh.shelf.archives[digest] += b"and more"

    code, message = error(await mesh.caller(echo))

    assert code == "load_failed"
    assert "its archive came as" in message
    assert list(mesh.settings.versions.iterdir()) == []


async def test_a_long_load_is_not_taken_for_dead_but_a_start_has_an_end(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    code = """
    import time
    @algorithm("demo/loads", version="1.0.0")
    class main:
        def load(self):
            time.sleep(1.5)
        def apply(self, x):
            return x
    """
    async with Mesh(nats_server.url, tmp_path, start_timeout_s=3.0) as mesh:
        await mesh.begin()
        loads = await mesh.shelf.publish("demo/loads/1.0.0", code, idle_s=0.2)
        never = await mesh.shelf.publish("demo/never/1.0.0", "import time\ntime.sleep(60)\n")

        assert value(await mesh.caller(loads, 1)) == 1
        assert not mesh.caller.of(messages.Death)
        assert "loading" in {said.phase for said in mesh.caller.of(messages.Starting)}
        code_, message = error(await mesh.caller(never))

    assert code_ == "load_failed"
    assert "was not ready within 3 s" in message


async def test_idle_instances_make_room_and_running_ones_do_not(nats_server: NatsServer, tmp_path: Path) -> None:
    code = """
    import time
    @algorithm("demo/NAME", version="1.0.0")
    def main(x):
        time.sleep(x)
        return x
    """
    capacity = Capacity(max_instances=1, memory_bytes=64 * GIB)
    async with Mesh(nats_server.url, tmp_path, capacity=capacity) as mesh:
        await mesh.begin()
        first = await mesh.shelf.publish("demo/first/1.0.0", code.replace("NAME", "first"))
        second = await mesh.shelf.publish("demo/second/1.0.0", code.replace("NAME", "second"))
        assert value(await mesh.caller(first, 0)) == 0

        assert value(await mesh.caller(second, 0)) == 0  # the idle first one went
        assert [row.algorithm for row in await mesh.ps()] == ["demo/second"]
        running = mesh.caller.start(second, 2)
        await until_so(lambda: _load(mesh))
        code_, message = error(await mesh.caller(first, 0))

        assert code_ == "no_capacity"
        assert "demo/first/1.0.0" in message
        assert value(await running) == 2


async def _load(mesh: Mesh) -> bool:
    return any(row.load for row in await mesh.ps())


async def test_a_gpu_that_is_not_there_is_noted(mesh: Mesh) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO, gpu=0.25)
    await mesh.caller(echo)

    assert (await mesh.ps())[0].note == "gpu 0.25 asked for, none here: runs on the CPU"


async def test_minimum_instances_start_at_publish_and_stay(mesh: Mesh) -> None:
    await mesh.shelf.publish("demo/echo/1.0.0", ECHO, min_instances=1, idle_s=0.1)

    async def is_ready() -> bool:
        return [row.state for row in await mesh.ps()] == ["ready"]

    await until_so(is_ready)
    (row,) = await mesh.ps()
    assert row.reason == "kept warm: min_instances 1"

    os.kill(row.pid, signal.SIGKILL)
    await until(lambda: mesh.caller.of(messages.Death), 5)
    await until_so(is_ready)


async def test_a_minimum_that_was_stopped_stays_away_until_the_next_call(mesh: Mesh) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO, min_instances=1)

    async def is_ready() -> bool:
        return [row.state for row in await mesh.ps()] == ["ready"]

    await until_so(is_ready)
    await mesh.ask("stop", platform.Stop(version="1.0.0"), platform.Done, "demo/echo")
    told = len(mesh.caller.beats)
    await until(lambda: len(mesh.caller.beats) > told + 1, 5)  # housekeeping has passed several times

    assert await mesh.ps() == []
    assert value(await mesh.caller(echo, 1)) == 1


async def test_only_the_newest_of_a_major_number_keeps_its_minimum(mesh: Mesh) -> None:
    for number in ("1.0.0", "1.1.0", "2.0.0"):
        await mesh.shelf.publish(f"demo/echo/{number}", ECHO.replace("1.0.0", number), min_instances=1, idle_s=0.1)

    async def is_settled() -> bool:
        return sorted((row.version, row.state) for row in await mesh.ps()) == [("1.1.0", "ready"), ("2.0.0", "ready")]

    await until_so(is_settled)


async def test_content_that_was_replaced_is_never_served_again(mesh: Mesh) -> None:
    code = '@algorithm("demo/says", version="1.0.0")\ndef main(x):\n    return "{}"\n'
    says = await mesh.shelf.publish("demo/says/1.0.0", code.format("old"))
    assert value(await mesh.caller(says)) == "old"

    await mesh.shelf.publish("demo/says/1.0.0", code.format("new"))
    await until(lambda: mesh.caller.of(messages.Death), 5)

    assert mesh.caller.of(messages.Death)[0].detail == "replaced"
    assert value(await mesh.caller(says)) == "new"


async def test_what_instances_print_can_be_read(mesh: Mesh) -> None:
    code = """
    print("imported")
    @algorithm("demo/prints", version="1.0.0")
    def main(x):
        print("got", x)
        return x
    """
    prints = await mesh.shelf.publish("demo/prints/1.0.0", code)
    await asyncio.gather(mesh.caller(prints, 1))
    await asyncio.gather(mesh.caller(prints, 2))

    every = await mesh.ask("logs", platform.Logs(), platform.LogLines, "demo/prints")
    of_run = await mesh.ask("logs", platform.Logs(run="r2"), platform.LogLines, "demo/prints")
    last = await mesh.ask("logs", platform.Logs(lines=1), platform.LogLines, "demo/prints")

    own_words = [line.line for line in every.lines if not line.line.startswith("event=")]  # else the runtime's
    assert own_words == ["imported", "got 1", "got 2"]
    assert [(line.run, line.line, line.version) for line in of_run.lines] == [("r2", "got 2", "1.0.0")]
    assert [line.line for line in last.lines] == ["got 2"]
    assert abs(every.lines[0].at - time.time()) < 60


async def test_a_request_that_makes_no_sense_is_refused(mesh: Mesh) -> None:
    for verb, body, algorithm in (
        ("dance", platform.Ps(), ""),
        ("logs", platform.Logs(), ""),
        ("stop", platform.Stop(version="x"), "demo/echo"),
    ):
        with pytest.raises(AssertionError, match="bad_"):
            await mesh.ask(verb, body, platform.Done, algorithm)


async def test_stopping_drains_and_says_goodbye_last(mesh: Mesh) -> None:
    code = """
    import time
    @algorithm("demo/slow", version="1.0.0")
    def main(x):
        time.sleep(0.5)
        return x
    """
    slow = await mesh.shelf.publish("demo/slow/1.0.0", code)
    running = mesh.caller.start(slow, 1)
    await until_so(lambda: _load(mesh))
    (row,) = await mesh.ps()

    await mesh.end()

    assert value(await running) == 1
    assert not is_alive(row.pid)
    await until(lambda: not mesh.caller.beats[-1][1].alive, 5)
    deaths = [at for at, _, said in mesh.caller.fleet if isinstance(said, messages.Death)]
    assert deaths
    assert deaths[-1] <= mesh.caller.beats[-1][0]


async def test_after_a_restart_of_the_server_calls_are_parked_and_served_again(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with Mesh(nats_server.url, tmp_path) as mesh:
        await mesh.begin()
        echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
        slow = await mesh.shelf.publish("demo/other/1.0.0", ECHO.replace("echo", "other"))
        assert value(await mesh.caller(echo, 1)) == 1
        known = len(mesh.caller.beats)

        await nats_server.kill()
        await nats_server.start()
        await until(lambda: len(mesh.caller.beats) > known, 10)

        assert value(await mesh.caller(echo, 2)) == 2
        assert value(await mesh.caller(slow, 3)) == 3
        assert not mesh.caller.of(messages.Death)


async def test_a_fresh_launcher_uses_what_is_unpacked(mesh: Mesh) -> None:
    echo = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
    await mesh.caller(echo, 1)
    assert mesh.shelf.asked["archive"] == 1
    await mesh.end()

    await mesh.begin()

    assert value(await mesh.caller(echo, 2)) == 2
    assert mesh.shelf.asked["archive"] == 1
