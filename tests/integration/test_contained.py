"""The main process of a container, run here without one: it tells by leases how its instance is."""

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from textwrap import dedent

import pytest
import pytest_asyncio

from algomesh_broker import codec, messages, subjects
from algomesh_broker.boot import LOAD_FAILED_CODE, Boot
from algomesh_broker.connection import Connection, Message
from algomesh_broker.credentials import ensure_secrets, store_identity
from algomesh_broker.identity import Identity
from algomesh_broker.names import VersionId
from algomesh_broker.platform import Options
from algomesh_broker.server import NatsServer
from algomesh_broker.streams import JetStreamAdmin
from tests.conditions import until

pytestmark = pytest.mark.integration

VERSION = VersionId.parse("demo/slow/1.0.0")
CODE = """
import re, time
from algomesh import algorithm
@algorithm("demo/slow", version="1.0.0", timeout=1)
def main(x):
    if x == "hang":
        re.match("(a+)+$", "a" * 60 + "b")  # for years, and never lets go of the GIL
    time.sleep(x)
    return x
"""
SILENT_FOR_1_S = (
    "import sys; from algomesh.instance import contained as c; c.LAUNCHER_SILENT_S = 1.0; sys.exit(c.main())"
)


class There:
    """Hears leases, beats for the launcher, and runs the main process."""

    def __init__(self, url: str, folder: Path, connection: Connection) -> None:
        self.url, self.folder, self.connection = url, folder, connection
        self.leases: list[messages.InstanceLease] = []
        self.beating: asyncio.Task[None] | None = None
        self.process: asyncio.subprocess.Process | None = None

    @property
    def phases(self) -> list[str]:
        return list(dict.fromkeys(lease.phase for lease in self.leases))

    async def start(self, code: str = CODE, *arguments: str) -> asyncio.subprocess.Process:
        (self.folder / "algo_slow.py").write_text(dedent(code))
        boot = Boot(
            instance="l1-1", launcher="l1", owner="demo", name="slow", version="1.0.0", folder=str(self.folder),
            entry="algo_slow:main", nats_url=self.url, token="", options=Options(timeout_s=1.0), launched_ns=1,
        )  # fmt: skip
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", *(arguments or ("-m", "algomesh.instance.contained")),
            stdin=asyncio.subprocess.PIPE, cwd=self.folder,
        )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(boot.as_line())
        self.process.stdin.close()
        return self.process

    async def call_until(self, condition: Callable[[], bool]) -> None:
        """Call, again and again, since the one that is ready may not have subscribed yet."""
        for number in itertools.count():
            if condition():
                return
            run, hang = f"r{number}", memoryview(b'"hang"')
            call = messages.Call(run=run, root=run, session="s", call="1", time_left_ms=60_000, payload=hang)
            self.connection.publish(subjects.call(VERSION, "k~t"), codec.encode(call))
            await asyncio.sleep(0.1)

    async def beat(self) -> None:
        while True:
            self.connection.publish(subjects.host_beat("l1"), codec.encode(messages.HostBeat(launcher="l1")))
            await asyncio.sleep(0.2)

    def hear(self, message: Message) -> None:
        self.leases.append(codec.decode_lease(message.data))


@pytest_asyncio.fixture
async def there(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[There]:
    secrets = tmp_path / "secrets"
    await asyncio.to_thread(ensure_secrets, secrets)
    admin = await JetStreamAdmin.open(nats_server.url, store_identity(secrets, "launcher"))
    await admin.ensure_parked()
    await admin.ensure_version(VERSION)
    await admin.close()
    async with await Connection.open(nats_server.url, Identity("k~t", "_INBOX.t")) as connection:
        there = There(nats_server.url, tmp_path, connection)
        await connection.subscribe(subjects.ALL_LEASES, there.hear)
        there.beating = asyncio.create_task(there.beat())
        try:
            yield there
        finally:
            there.beating.cancel()
            if there.process is not None and there.process.returncode is None:
                there.process.kill()
                await there.process.wait()


async def until_ready(there: There) -> None:
    await until(lambda: "ready" in there.phases, 20)


async def test_it_tells_every_second_and_drains_when_it_is_asked_to(there: There) -> None:
    process = await there.start()
    await until_ready(there)
    told = len(there.leases)
    await until(lambda: len(there.leases) >= told + 2, 5)

    process.terminate()

    assert await asyncio.wait_for(process.wait(), 10) == 0
    await until(lambda: there.leases[-1].phase == "ended")
    assert there.leases[-1].failure == ""


async def test_it_goes_on_telling_while_user_code_holds_the_gil(there: There) -> None:
    await there.start()
    await until_ready(there)

    await there.call_until(lambda: any(lease.active for lease in there.leases))

    await until(lambda: there.leases[-1].overdue_ms > 0, 10)
    assert there.leases[-1].phase == "ready"


async def test_it_ends_as_its_instance_ends(there: There) -> None:
    crashed = await there.start(CODE.replace("re.match(", "import os; os.kill(os.getpid(), 11); re.match("))
    await until_ready(there)
    await there.call_until(lambda: crashed.returncode is not None)

    assert crashed.returncode == 128 + signal.SIGSEGV


async def test_a_start_that_fails_has_the_code_for_that(there: There) -> None:
    process = await there.start("raise RuntimeError('not today')")

    code = await asyncio.wait_for(process.wait(), 20)

    assert 70 < code <= LOAD_FAILED_CODE + 1
    assert "ready" not in there.phases


async def test_without_its_launcher_it_goes(there: There) -> None:
    process = await there.start(CODE, "-c", SILENT_FOR_1_S)
    await until_ready(there)

    assert there.beating is not None
    there.beating.cancel()

    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_when_its_launcher_says_goodbye_it_goes(there: There) -> None:
    process = await there.start()
    await until_ready(there)

    goodbye = messages.HostBeat(launcher="l1", alive=False)
    there.connection.publish(subjects.host_beat("l1"), codec.encode(goodbye))

    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_without_a_boot_record_it_says_so(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "algomesh.instance.contained",
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip

    _, printed = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 64
    assert b"stdin has no boot record" in printed
