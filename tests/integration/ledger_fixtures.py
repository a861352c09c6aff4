"""A ledger in this process, with a nats-server that lets everybody in and a database of the test's own."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from algomesh_broker import codec, credentials, messages, subjects
from algomesh_broker.connection import Connection
from algomesh_broker.identity import Identity
from algomesh_broker.messages import Events, RunEvent
from algomesh_broker.names import VersionId
from algomesh_broker.platform import RunRow, RunRows, Runs
from algomesh_broker.server import NatsServer
from algomesh_services.ledger.service import serve
from algomesh_services.ledger.settings import Settings
from tests.integration.registry_fixtures import ask
from tests.serving import running

VERSION = VersionId.parse("text/clean/1.0.0")
_numbers = itertools.count(1)


def run_event(run: str = "", **fields: Any) -> RunEvent:
    known: dict[str, Any] = {
        "run": run or f"run{next(_numbers)}", "attempt": 1, "root": "root", "parent": "",
        "algorithm": VERSION.algorithm, "version": str(VERSION.version), "caller": "k~me", "root_caller": "k~me",
        "instance": "host-1", "state": "succeeded", "started_at": time.time(),
    }  # fmt: skip
    return RunEvent(**known | fields)


@dataclass
class Ledgers:
    """Starts ledgers; tells them of runs; looks at what they keep."""

    server: NatsServer
    settings: Settings
    connection: Connection

    @asynccontextmanager
    async def running(self) -> AsyncIterator["asyncio.Task[None]"]:
        """A ledger, until the block ends."""
        async with running(partial(serve, self.settings)) as task:
            yield task

    def tell(self, *runs: RunEvent, subject: str = "") -> None:
        self.connection.publish(subject or subjects.run_events(VERSION), codec.encode(Events(runs=list(runs))))

    def announce(self, message: messages.Fleet) -> None:
        self.connection.publish(subjects.fleet(VERSION), codec.encode(message))

    async def rows(self, limit: int = 1_000, algorithm: str = "", root: str = "") -> list[RunRow]:
        """What the ledger answers."""
        wanted = Runs(limit=limit, algorithm=algorithm, root=root)
        answer = await ask(self.connection, "runs", wanted, RunRows, program="ledger")
        return answer.runs

    async def until_state(self, run: str, state: str, timeout_s: float = 10.0) -> RunRow:
        """Wait until the ledger has this run in this state."""
        async with asyncio.timeout(timeout_s):
            while True:
                for row in await self.rows():
                    if (row.run, row.state) == (run, state):
                        return row
                await asyncio.sleep(0.02)


@asynccontextmanager
async def ledgers(folder: Path, server: NatsServer, postgres: str, **fields: Any) -> AsyncIterator[Ledgers]:
    settings = replace(Settings(nats=server.url, postgres=postgres, state=folder / "state"), **fields)
    credentials.ensure_secrets(settings.secrets)
    async with AsyncExitStack() as stack:
        connection = await Connection.open(server.url, Identity("k~me", subjects.inbox("k~me")))
        stack.push_async_callback(connection.close)
        yield Ledgers(server, settings, connection)
