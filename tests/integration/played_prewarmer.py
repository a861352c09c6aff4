"""A pre-warmer that wishes what a test says: it publishes holds as the real one does, and hears what launchers run."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.names import VersionId

EVERY_S = 1.0
LONG_S = 600.0


class PlayedPrewarmer:
    """Says everything once a second while it `is_speaking`, and changes at once. Times are monotonic seconds."""

    def __init__(self, connection: Connection) -> None:
        self.heard: list[tuple[float, messages.Machine]] = []
        self.off: list[str] = []
        self.is_speaking = True
        self._connection = connection
        self._holds: dict[tuple[str, str], tuple[float, float, str, float]] = {}

    def hold(
        self, version: VersionId, reason: str, *, key: str = "gap:0", in_s: float = 0.0, for_s: float = LONG_S,
        gain: float = 1.0,
    ) -> float:  # fmt: skip
        """Wish that a version be up from `in_s` on; return when that is."""
        start_at = time.monotonic() + in_s
        self._holds[str(version), key] = (start_at, start_at + for_s, reason, gain)
        self.say([(str(version), key)])
        return start_at

    def release(self, version: VersionId, key: str = "gap:0") -> float:
        """Wish that no more; return when that was."""
        del self._holds[str(version), key]
        self.say([], released=[(str(version), key)])
        return time.monotonic()

    def say(self, changed: list[tuple[str, str]] | None = None, released: list[tuple[str, str]] | None = None) -> None:
        """Publish these holds, or all."""
        now = time.monotonic()
        holds = []
        for version, key in self._holds if changed is None else changed:
            start_at, until_at, reason, gain = self._holds[version, key]
            start_ms, until_ms = (max(0, round((at - now) * 1e3)) for at in (start_at, until_at))
            holds.append(
                messages.Hold(version=version, key=key, start_ms=start_ms, until_ms=until_ms, reason=reason, gain=gain)
            )
        said = messages.Holds(holds=holds, released=released or [], is_whole=changed is None, off=self.off)
        self._connection.publish(subjects.HOLDS, codec.encode(said))

    def garble(self) -> None:
        """Publish what is no Holds."""
        self._connection.publish(subjects.HOLDS, b"\xc1nonsense")

    @property
    def instances(self) -> list[messages.MachineInstance]:
        """What was last told to be there."""
        return self.heard[-1][1].instances if self.heard else []

    def ready(self, version: VersionId) -> messages.MachineInstance | None:
        """An instance that takes calls, as last told."""
        return next((each for each in self.instances if each.version == str(version) and each.state == "ready"), None)

    def first(self, version: VersionId, state: str = "") -> tuple[float, messages.MachineInstance] | None:
        """The first that was heard of an instance of a version (in this state), and when."""
        for at, machine in self.heard:
            for each in machine.instances:
                if each.version == str(version) and state in ("", each.state):
                    return at, each
        return None

    async def _speak(self) -> None:
        while True:
            if self.is_speaking:
                self.say()
            await asyncio.sleep(EVERY_S)

    def _on_machine(self, message: Message) -> None:
        self.heard.append((time.monotonic(), codec.decode_machine(message.data)))


@asynccontextmanager
async def playing(connection: Connection) -> AsyncIterator[PlayedPrewarmer]:
    """A pre-warmer that speaks until the block ends."""
    played = PlayedPrewarmer(connection)
    await connection.subscribe(subjects.ALL_MACHINES, played._on_machine)
    speaking = asyncio.create_task(played._speak(), name="played pre-warmer")
    try:
        yield played
    finally:
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
