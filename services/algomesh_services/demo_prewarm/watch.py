"""Follows one mesh while the demo runs: which instances come and go, by what their launcher says of them.

That is heard and not asked for, so that looking on costs the mesh nothing. Runs are read from the ledger at the end.
"""

import asyncio
import time
from typing import Final

from algomesh.requests import ask
from algomesh_broker import codec, messages, platform, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage
from algomesh_services.demo_prewarm.figures import Busy, Life, busy_of

_LEDGER_WITHIN_S: Final = 10.0
_GONE_WITHIN_S: Final = 60.0
_LOOK_S: Final = 0.1


class Watch:
    """What becomes of the instances of one mesh, from `open` on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lives: dict[str, Life] = {}

    async def open(self) -> None:
        """Hear of instances from now on. Raises Forbidden, Unreachable."""
        await self._connection.subscribe(subjects.ALL_VERSIONS, self._hear)

    def lives(self, now: float) -> list[Life]:
        """All instances so far; those that are up end `now`."""
        return [life if life.ended else life._replace(ended=now) for life in self._lives.values()]

    async def instances(self) -> list[platform.InstanceRow]:
        """What is up. Raises MeshError."""
        return (await ask(self._connection, "launcher", "ps", "", platform.Ps(), platform.InstanceRows)).instances

    async def gone(self) -> None:
        """Wait until no instance is up. Raises MeshError, TimeoutError."""
        async with asyncio.timeout(_GONE_WITHIN_S):
            while await self.instances():  # noqa: ASYNC110 - deaths before `open` are not heard
                await asyncio.sleep(_LOOK_S)

    async def stop(self, algorithms: tuple[str, ...]) -> None:
        """Retire the instances of these. Raises MeshError."""
        for algorithm in algorithms:
            await ask(self._connection, "launcher", "stop", algorithm, platform.Stop(), platform.Done)

    async def runs(self, roots: set[str], each: int) -> list[Busy]:
        """The runs of these requests, of which each has so many; the ledger hears of them a moment later.

        Raises MeshError.
        """
        until = time.monotonic() + _LEDGER_WITHIN_S
        while True:
            wanted = platform.Runs(limit=1000)
            rows = (await ask(self._connection, "ledger", "runs", "", wanted, platform.RunRows)).runs
            found = [busy_of(row) for row in rows if row.ended_at and row.started_at]
            known = [run for run in found if run.root in roots]
            if len(known) >= each * len(roots) or time.monotonic() > until:
                return found
            await asyncio.sleep(0.2)

    async def savings(self) -> platform.SavingsRow:
        """What the pre-warmer says of itself. Raises MeshError."""
        return await ask(self._connection, "prewarmer", "savings", "", platform.Savings(), platform.SavingsRow)

    def _hear(self, message: Message) -> None:
        now = time.time()
        try:
            said = codec.decode_fleet(message.data)
        except BadMessage:
            return
        owner, name = message.subject.split(".")[1:3]
        match said:
            case messages.Ready():
                self._lives[said.instance] = Life(f"{owner}/{name}", now - said.start_ms / 1000, now, 0.0)
            case messages.Death() if said.instance in self._lives:
                self._lives[said.instance] = self._lives[said.instance]._replace(ended=now)
            case _:
                pass
