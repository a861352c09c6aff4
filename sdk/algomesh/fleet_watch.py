"""Whose instances have died: what the launchers say, and what their silence says.

One for each lane. It subscribes the fleet subject of every version that is called, once, and the launchers' beats.
"""

import asyncio
from typing import Final, Protocol

from algomesh_broker import codec, messages, subjects
from algomesh_broker.claims_hosts import LauncherHosts
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, BrokerError
from algomesh_broker.names import VersionId
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.lane")

_HOST_SILENT_S: Final = 3.0


class Mourner(Protocol):
    """Who has calls under way."""

    def on_death(self, version: VersionId, death: messages.Death, /) -> None:
        """An instance of `version` is gone."""

    def on_unable(self, version: VersionId, unable: messages.Unable, /) -> None:
        """No instance of `version` will come for what is parked."""

    def on_host_lost(self, launcher: str, /) -> None:
        """Every instance of this launcher is gone."""


class FleetWatch:
    """Hears of deaths for one mourner."""

    def __init__(self, connection: Connection, mourner: Mourner) -> None:
        self._connection = connection
        self._mourner = mourner
        self._loop = asyncio.get_running_loop()
        self._watched: set[VersionId] = set()
        self._beats: dict[str, float] = {}
        self._hosts = LauncherHosts()
        # The one host on which all instances are and this process is; nothing when there are several. Asked by every
        # call, and changed by beats alone.
        self.shared_host = ""

    async def open(self) -> None:
        """Hear the launchers. Raises Forbidden, Unreachable."""
        await self._connection.subscribe(subjects.HOST_BEATS, self.on_host_beat)

    def watch(self, version: VersionId) -> None:
        """Hear of the instances of `version` from now on."""
        if version not in self._watched:
            self._watched.add(version)
            self._connection.join(subjects.fleet(version), self._on_fleet)

    def forgive(self) -> None:
        """After a reconnect: silence until now was ours."""
        self._beats = dict.fromkeys(self._beats, self._loop.time())

    def sweep(self, now: float) -> None:
        """Take launchers that have been silent for 3 s for lost."""
        for launcher, beat_at in list(self._beats.items()):
            if now - beat_at > _HOST_SILENT_S and self._connection.is_connected:
                del self._beats[launcher]
                self.shared_host = self._hosts.shared(now)
                self._mourner.on_host_lost(launcher)

    def _on_fleet(self, message: Message) -> None:
        try:
            word = codec.decode_fleet(message.data)
            version = VersionId.of_tokens(*message.subject.split(".")[1:4])
        except (BrokerError, TypeError) as error:
            log.warning("fleet_message_ignored", subject=message.subject, error=str(error))
            return
        if isinstance(word, messages.Death):
            self._mourner.on_death(version, word)
        elif isinstance(word, messages.Unable):
            self._mourner.on_unable(version, word)

    def on_host_beat(self, message: Message) -> None:
        """A launcher lives, or says goodbye."""
        try:
            beat = codec.decode_host_beat(message.data)
        except BadMessage:
            return
        now = self._loop.time()
        self._hosts.on_beat(beat, now)
        self.shared_host = self._hosts.shared(now)
        if beat.alive:
            self._beats[beat.launcher] = self._loop.time()
        else:
            self._beats.pop(beat.launcher, None)
            self._mourner.on_host_lost(beat.launcher)
