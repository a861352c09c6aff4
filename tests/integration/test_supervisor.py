"""The supervisor: order, restarts, and that nothing is left, whatever the children do and however it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import asyncpg
import nats
import pytest
import structlog

from algomesh.instance import descendants
from algomesh_broker.server import NatsConfig, NatsServer
from algomesh_services.local.errors import ChildFailed, DatabaseVersion, LocalError
from algomesh_services.local.postgres import Postgres
from algomesh_services.local.supervisor import Child, Supervisor
from tests.conditions import is_alive, processes_with, until

pytestmark = pytest.mark.integration

PYTHON = (sys.executable, "-I", "-S", "-c")
SLEEP = "import time; time.sleep(60)"


def ready_when(path: Path) -> Callable[[int], Awaitable[None]]:
    async def ready(pid: int) -> None:
        await until(path.exists)

    return ready


def servers_in(folder: Path) -> tuple[NatsServer, Postgres]:
    return (
        NatsServer(NatsConfig(store_dir=folder / "store", runtime_dir=folder / "run", log=folder / "nats.log")),
        Postgres(folder / "postgres", is_durable_at_birth=False),
    )


async def test_programs_start_in_order_each_when_the_one_before_is_ready(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    slow = f"import time; time.sleep(0.2); open({str(first)!r}, 'w'); time.sleep(60)"
    after = f"import os, time; open({str(second)!r}, 'w').write(str(os.path.exists({str(first)!r}))); time.sleep(60)"
    programs = [
        Child("slow", [*PYTHON, slow], ready=ready_when(first)),
        Child("after", [*PYTHON, after], ready=ready_when(second)),
    ]

    async with Supervisor(programs) as supervisor:
        assert list(supervisor.pids) == ["slow", "after"]
        await until(lambda: second.read_text() == "True")


async def test_they_stop_in_reverse_order(tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    code = (
        "import signal, sys\n"  # A handler would lose a signal that comes just before its process sleeps.
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "open(sys.argv[2], 'w')\n"
        "signal.sigwait([signal.SIGTERM])\n"
        f"open({str(stopped)!r}, 'a').write(sys.argv[1])\n"
    )
    programs = [
        Child(name, [*PYTHON, code, name, str(tmp_path / name)], ready=ready_when(tmp_path / name)) for name in "abc"
    ]

    async with Supervisor(programs):
        pass

    assert stopped.read_text() == "cba"


@pytest.mark.alone  # two seconds
async def test_both_servers_come_back_within_a_second_at_the_same_address(tmp_path: Path) -> None:
    server, postgres = servers_in(tmp_path)
    async with Supervisor([server, postgres]) as supervisor:
        url, dsn, before = server.url, postgres.dsn, supervisor.pids
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()

        await until(lambda: set(supervisor.restarts.values()) == {1})

        assert time.monotonic() - killed < 2.0  # alone, both take well under a second
        assert (server.url, postgres.dsn) == (url, dsn)
        assert not set(supervisor.pids.values()) & set(before.values())
        await (await nats.connect(url)).close()
        await (await asyncpg.connect(dsn)).close()
    assert not processes_with(str(tmp_path))


async def test_one_that_dies_again_and_again_is_reported_with_its_last_words_and_still_started(tmp_path: Path) -> None:
    may_live = tmp_path / "may-live"
    may_live.touch()
    code = f"import os, time\nprint('no luck', flush=True)\nif os.path.exists({str(may_live)!r}): time.sleep(60)"
    child = Child("unlucky", [*PYTHON, code], log=tmp_path / "log", ready=None)
    with structlog.testing.capture_logs() as events:
        async with Supervisor([child], complain_after=2) as supervisor:
            may_live.unlink()
            os.kill(supervisor.pids["unlucky"], signal.SIGKILL)
            await until(lambda: any(event["event"] == "child_failing" for event in events))
            may_live.touch()
            await until(lambda: supervisor.restarts["unlucky"] >= 2)
            await until(lambda: "unlucky" in supervisor.pids)

    complaint = next(event for event in events if event["event"] == "child_failing")
    assert complaint["program"] == "unlucky"
    assert complaint["last_words"][-1] == "no luck"
    assert complaint["log_level"] == "error"


async def test_a_program_that_does_not_start_stops_those_before_it_and_is_named(tmp_path: Path) -> None:
    first = Child("first", [*PYTHON, SLEEP])
    broken = Child(
        "broken",
        [*PYTHON, "raise SystemExit('the moon is wrong')"],
        ready=ready_when(tmp_path / "never"),
        log=tmp_path / "log",
    )

    with pytest.raises(ChildFailed, match=r"broken ended with status 1 .*the moon is wrong") as caught:
        await Supervisor([first, broken]).start()

    assert caught.value.name == "broken"
    assert not first.is_running


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=r"ghost could not be started: .*nowhere"):
        await Supervisor([Child("ghost", [str(tmp_path / "nowhere")])]).start()


async def test_a_program_that_is_never_ready_is_named_and_stopped(tmp_path: Path) -> None:
    child = Child("slow", [*PYTHON, SLEEP], ready=ready_when(tmp_path / "never"), ready_within_s=0.3)

    with pytest.raises(ChildFailed, match=r"slow was not ready within 0.3 s"):
        await Supervisor([child]).start()

    assert not child.is_running


async def test_a_port_in_use_keeps_its_code(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = NatsConfig(store_dir=tmp_path / "store", runtime_dir=tmp_path, port=port, log=tmp_path / "nats.log")

        with pytest.raises(LocalError, match=str(port)) as caught:
            await Supervisor([NatsServer(config)]).start()

    assert caught.value.code == "port_in_use"


async def test_an_error_of_the_database_comes_through_as_it_is(tmp_path: Path) -> None:
    _, postgres = servers_in(tmp_path)
    postgres.data.mkdir(parents=True)
    (postgres.data / "PG_VERSION").write_text("9\n")

    with pytest.raises(DatabaseVersion):
        await Supervisor([postgres]).start()


@pytest.mark.alone  # half a second more than they are given
async def test_children_that_ignore_every_signal_are_gone_in_time(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(n, signal.SIG_IGN)\n"
        "open(sys.argv[1], 'w')\n"
        "time.sleep(60)\n"
    )
    programs = [
        Child(name, [*PYTHON, code, str(tmp_path / name)], ready=ready_when(tmp_path / name), grace_s=10)
        for name in "abcd"
    ]
    supervisor = Supervisor(programs, stop_within_s=2.0)
    await supervisor.start()
    pids = supervisor.pids.values()

    began = time.monotonic()
    await supervisor.stop()

    assert time.monotonic() - began < 2.5
    assert not any(map(is_alive, pids))


UP = """
import asyncio, json, pathlib, signal, sys
import structlog
from algomesh_broker.server import NatsConfig, NatsServer
from algomesh_services.local.postgres import Postgres
from algomesh_services.local.supervisor import Child, Supervisor

# Forks, leaves its session, ignores SIGTERM, and its parent does not wait for it.
WILD = '''
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        open(sys.argv[1] + "/wild", "w").write(str(os.getpid()))
    time.sleep(60)
time.sleep(60)
'''

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    folder = pathlib.Path(sys.argv[1])
    async def wild(pid):
        while not (folder / "wild").exists() or not (folder / "wild").read_text():
            await asyncio.sleep(0.01)
    programs = [
        NatsServer(NatsConfig(store_dir=folder / "store", runtime_dir=folder / "run", log=folder / "nats.log")),
        Postgres(folder / "postgres", is_durable_at_birth=False),
        Child("wild", [sys.executable, "-I", "-S", "-c", WILD, str(folder)], ready=wild),
    ]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    async with Supervisor(programs) as supervisor:
        print(json.dumps(supervisor.pids), flush=True)
        await stop.wait()

if "uvloop" in sys.argv:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


class Up:
    """A mesh's supervisor in a process of its own; whatever is left of it at the end of the block is killed."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        with (folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", UP, str(folder), *options], stdout=subprocess.PIPE, stderr=log
            )
        self.pids: dict[str, int] = {}
        self.wild = 0

    async def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line, (self.folder / "up.log").read_text()
        self.pids = json.loads(line)
        self.wild = int((self.folder / "wild").read_text())

    async def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return await asyncio.to_thread(self.process.wait, 6)

    def processes(self) -> list[int]:
        """Everything that belongs to it, by its folder; PostgreSQL's own processes rename themselves."""
        found = {*processes_with(str(self.folder)), *self.pids.values(), self.wild}
        return [pid for pid in found if pid and is_alive(pid)]

    async def __aenter__(self) -> Self:
        try:
            await self.wait_ready()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_ctrl_c_leaves_nothing_also_of_what_forked_and_left_its_session(tmp_path: Path, loop: str) -> None:
    async with Up(tmp_path, loop) as up:
        assert {up.wild, *up.pids.values()} <= set(up.processes())

        status = await up.interrupt()

        assert status == 0
        assert up.processes() == []


async def test_an_orphan_of_a_child_that_died_is_killed(tmp_path: Path) -> None:
    async with Up(tmp_path) as up:
        (tmp_path / "wild").unlink()
        os.kill(up.pids["wild"], signal.SIGKILL)

        await until(lambda: not is_alive(up.wild))

        await until((tmp_path / "wild").exists)  # the child itself is back
        await up.interrupt()
        assert up.processes() == []


@pytest.mark.alone  # two seconds
async def test_a_killed_supervisor_takes_its_children_along(tmp_path: Path) -> None:
    async with Up(tmp_path) as up:
        children = [*up.pids.values()]
        backends = [pid for child in children for pid in descendants.children(child) if child == up.pids["postgres"]]
        assert backends

        up.process.kill()
        up.process.wait()

        # What a child leaves to itself is that child's to end, as a zygote does: here the wild one stays.
        await until(lambda: not any(map(is_alive, [*children, *backends])), 2)


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    first = Child("first", [*PYTHON, SLEEP])
    never = Child("never", [*PYTHON, SLEEP], ready=ready_when(tmp_path / "never"))
    starting = asyncio.create_task(Supervisor([first, never]).start())
    await until(lambda: never.is_running)

    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting

    assert not first.is_running
    assert not never.is_running


async def test_additions_to_the_environment_reach_the_child_and_its_output_the_log(tmp_path: Path) -> None:
    code = "import os, time; print(os.environ['ALGOMESH_TEST'], 'HOME' in os.environ, flush=True); time.sleep(60)"
    child = Child("c", [*PYTHON, code], environment={"ALGOMESH_TEST": "yes"}, log=tmp_path / "log")

    async with Supervisor([child]):
        await until(lambda: (tmp_path / "log").read_text() == "yes True\n")

    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
