"""Instances that say by leases how they are: versions in another language, and instances that nobody launched."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from algomesh_broker import codec, messages, platform, subjects
from algomesh_broker.credentials import read_seed
from algomesh_broker.identity import sign_instance_token
from algomesh_broker.names import VersionId
from algomesh_broker.server import NatsServer
from tests.conditions import is_alive, until
from tests.integration.launcher_mesh import Mesh, pack_archive, until_so
from tests.integration.test_launcher import ECHO, error, gone, value

pytestmark = pytest.mark.integration

PROGRAM = (Path(__file__).parent / "foreign_program.py").read_text()
ECHO_TO = "demo/foreign/1.0.0"


@pytest_asyncio.fixture
async def mesh(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with Mesh(nats_server.url, tmp_path) as mesh:
        await mesh.begin()
        yield mesh


async def publish(mesh: Mesh, how: str = "", command: list[str] | None = None, **options: Any) -> VersionId:
    archive = pack_archive({"program.py": PROGRAM})
    command = command or [sys.executable, "program.py", *filter(None, [how])]
    return await mesh.shelf.publish(ECHO_TO, "", archive=archive, command=command, max_instances=1, **options)


def printed(mesh: Mesh) -> str:
    return "".join(path.read_text() for path in mesh.settings.logs.glob("demo~foreign/1.0.0/*.log"))


async def test_a_program_in_another_language_is_started_by_its_first_call(mesh: Mesh) -> None:
    version = await publish(mesh)

    answer = value(await mesh.caller(version, "hello"))
    again = value(await mesh.caller(version, "again"))

    (row,) = await mesh.ps()
    assert (answer, again) == (f"hello from {row.instance}", f"again from {row.instance}")
    assert (row.algorithm, row.state, row.reason) == ("demo/foreign", "ready", "1 parked call")
    assert is_alive(row.pid)
    assert row.memory_bytes > 0
    (ready,) = mesh.caller.of(messages.Ready)
    assert ready.instance == row.instance


async def test_it_starts_in_its_folder_with_one_line_on_stdin_and_no_secret_in_its_environment(mesh: Mesh) -> None:
    os.environ["ALGOMESH_TEST_SECRET"] = "s3cret"
    try:
        version = await publish(mesh)
        await mesh.caller(version, "hello")
    finally:
        del os.environ["ALGOMESH_TEST_SECRET"]

    (row,) = await mesh.ps()
    text = printed(mesh)
    folder = str(mesh.settings.versions)
    environment = Path(f"/proc/{row.pid}/environ").read_text()
    assert text.startswith(f"lines 1 cwd {folder}/")
    assert "s3cret" not in environment
    assert "PYTHONPATH" not in environment
    assert "ai_" not in environment + Path(f"/proc/{row.pid}/cmdline").read_text()


async def test_it_drains_when_it_is_retired(mesh: Mesh) -> None:
    version = await publish(mesh, idle_s=0.3)

    await mesh.caller(version, "hello")

    await gone(mesh)
    (death,) = mesh.caller.of(messages.Death)
    assert (death.reason, death.detail) == ("retired", "idle")


async def test_one_that_falls_silent_is_killed_and_its_death_told(mesh: Mesh) -> None:
    version = await publish(mesh, "mute")
    await mesh.caller(version, "hello")
    (row,) = await mesh.ps()
    began = time.monotonic()

    await until(lambda: mesh.caller.of(messages.Death), 10)

    (death,) = mesh.caller.of(messages.Death)
    assert death.reason == "crash"
    assert death.detail.startswith("lost its lease: nothing was heard of it for 3.")
    assert 1.5 < time.monotonic() - began < 5
    await until(lambda: not is_alive(row.pid))


async def test_why_its_start_failed_is_told_in_its_own_words(mesh: Mesh) -> None:
    version = await publish(mesh, "broken")

    code, message = error(await mesh.caller(version, "hello"))

    assert (code, message) == ("load_failed", "demo/foreign/1.0.0: the weights are not there")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("no-such-program", "its command 'no-such-program' cannot be run: it is not in the PATH"),
        ("./no-such-file", "its command './no-such-file' cannot be run: it is not in the version's folder"),
        ("./program.py", "its command './program.py' cannot be run: Permission denied"),
    ],
)
async def test_a_command_that_is_not_there_is_named(mesh: Mesh, program: str, why: str) -> None:
    version = await publish(mesh, command=[program, "x"])

    code, message = error(await mesh.caller(version, "hello"))

    assert code == "load_failed"
    assert why in message


async def test_a_run_that_is_long_past_its_limit_ends_its_instance(mesh: Mesh) -> None:
    version = await publish(mesh, "late")

    mesh.caller.start(version, "hello")

    await until(lambda: mesh.caller.of(messages.Death), 15)
    (death,) = mesh.caller.of(messages.Death)
    assert death.reason == "timeout"


# Instances that nobody launched


@pytest.fixture
def outside(mesh: Mesh, tmp_path: Path) -> Iterator["Outside"]:
    running = Outside(mesh, tmp_path)
    yield running
    running.kill()


class Outside:
    """Runs the program as a user would, with a token from the registry."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.mesh, self.folder = mesh, folder
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, version: VersionId, instance: str = "xabcdefgh-1", by: str = "k~me", **claims: Any) -> None:
        seed = read_seed(self.mesh.settings.secrets, "registry")
        boot = {
            "instance": instance, "owner": version.owner, "name": version.name, "version": str(version.version),
            "nats_url": self.mesh.settings.nats_url,
            "token": sign_instance_token(version, claims.get("named", instance), claims.get("seed", seed), by=by),
        }  # fmt: skip
        program = self.folder / "program.py"
        program.write_text(PROGRAM)
        process = subprocess.Popen([sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(json.dumps(boot).encode() + b"\n")
        self.started.append(process)

    def wait_ready(self) -> None:
        """Return once the first of them has said that it is ready."""
        stdout = self.started[0].stdout
        assert stdout is not None
        while stdout.readline() != b"ready\n":
            pass

    def kill(self, number: int = signal.SIGKILL) -> None:
        for process in self.started:
            process.send_signal(number)
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


async def test_an_instance_that_nobody_launched_serves_and_shows(mesh: Mesh, outside: Outside) -> None:
    version = await mesh.shelf.publish("demo/echo/1.0.0", ECHO, min_instances=0)

    outside.start(version)
    await until(lambda: mesh.caller.of(messages.Ready), 10)
    answers = [value(await mesh.caller(version, number)) for number in range(3)]

    (row,) = await mesh.ps()
    assert answers == [f"{number} from xabcdefgh-1" for number in range(3)]
    assert (row.instance, row.state, row.pid, row.reason) == ("xabcdefgh-1", "ready", 0, "attached by k~me")
    await until(lambda: any(beat.launcher == "xabcdefgh" for _, beat in mesh.caller.beats))


async def test_while_it_is_ready_nothing_is_launched_for_its_version_and_after_it_is(
    mesh: Mesh, outside: Outside
) -> None:
    version = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
    outside.start(version)
    await until(lambda: mesh.caller.of(messages.Ready), 10)

    for each in outside.started:
        each.send_signal(signal.SIGSTOP)
    waiting = mesh.caller.start(version, "late")
    parked = subjects.park(subjects.call(version, "k~tester"))
    mesh.connection.publish(parked, codec.encode(mesh.caller.call("77")), headers={"Nats-TTL": "60s"})
    mesh.connection.publish(subjects.demand(version, "k~tester"), codec.encode(messages.Demand(run="r77")))
    await until(lambda: mesh.caller.of(messages.Starting), 5)
    assert [row.instance for row in await mesh.ps()] == ["xabcdefgh-1"]

    outside.kill()
    await until(lambda: mesh.caller.of(messages.Death), 10)
    (death,) = mesh.caller.of(messages.Death)
    assert (death.instance, death.reason) == ("xabcdefgh-1", "crash")
    assert death.detail.startswith("lost its lease")
    await until(lambda: len(mesh.caller.of(messages.Ready)) == 2, 10)
    waiting.cancel()


async def test_one_that_ends_itself_is_gone_at_once(mesh: Mesh, outside: Outside) -> None:
    version = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
    outside.start(version)
    await until(lambda: mesh.caller.of(messages.Ready), 10)

    outside.kill(signal.SIGTERM)

    await until(lambda: mesh.caller.of(messages.Death), 2)
    (death,) = mesh.caller.of(messages.Death)
    assert (death.instance, death.reason) == ("xabcdefgh-1", "exit")
    assert await mesh.ps() == []


async def test_it_is_never_retired_by_a_launcher(mesh: Mesh, outside: Outside) -> None:
    version = await mesh.shelf.publish("demo/echo/1.0.0", ECHO, idle_s=0.1)
    outside.start(version)
    await until(lambda: mesh.caller.of(messages.Ready), 10)

    await asyncio.sleep(1)
    await mesh.ask("stop", platform.Stop(), platform.Done, "demo/echo")

    assert [row.instance for row in await mesh.ps()] == ["xabcdefgh-1"]


@pytest.mark.parametrize("lie", ["another's token", "a token of nobody"])
async def test_a_lease_without_a_good_token_of_its_own_is_ignored(mesh: Mesh, outside: Outside, lie: str) -> None:
    version = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
    if lie == "another's token":
        outside.start(version, named="xother678-1")
    else:
        outside.start(version, seed=read_seed(mesh.settings.secrets, "ledger"))

    assert value(await mesh.caller(version, 1)) in (1, "1 from xabcdefgh-1")
    await asyncio.sleep(0.5)

    assert "xabcdefgh-1" not in [row.instance for row in await mesh.ps()]
    assert "xabcdefgh-1" not in [ready.instance for ready in mesh.caller.of(messages.Ready)]


async def test_of_two_launchers_the_one_with_the_lower_id_speaks(mesh: Mesh, outside: Outside) -> None:
    def beat(launcher: str, *, is_alive: bool = True) -> None:
        said = messages.HostBeat(launcher=launcher, alive=is_alive)
        mesh.connection.publish(subjects.host_beat(launcher), codec.encode(said))

    version = await mesh.shelf.publish("demo/echo/1.0.0", ECHO)
    beat("0")
    outside.start(version)
    await until(lambda: any(beat.launcher == "xabcdefgh" for _, beat in mesh.caller.beats))
    beat("0")
    await asyncio.to_thread(outside.wait_ready)

    rows = await mesh.ps()
    assert rows == []
    assert mesh.caller.of(messages.Ready) == []

    beat("0", is_alive=False)
    await until_so(lambda: shows(mesh, "xabcdefgh-1"))


async def shows(mesh: Mesh, instance: str) -> bool:
    return instance in [row.instance for row in await mesh.ps()]
