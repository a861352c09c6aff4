"""Tells what this launcher runs on `machine.<launcher>`: soon after every change, and once a second.

The pre-warmer learns from it what is up, how long starts take, and which instances were started for its holds. A
message replaces the one before it, so none is kept for a server that is away.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from algomesh_broker import codec, messages, subjects
from algomesh_broker.errors import BrokerError
from algomesh_services.launcher.fleet import Fleet
from algomesh_services.launcher.instance import Instance
from algomesh_services.launcher.metrics import GpuHeld

log = structlog.get_logger("algomesh.launcher")

EVERY_S = 1.0
_TOGETHER_S = 0.005


class MachineReport:
    """Tells about one fleet while `run` runs; `publish` returns without waiting, `is_connected` says if it makes sense.

    It follows the fleet's `on_change`.
    """

    def __init__(
        self,
        launcher: str,
        fleet: Fleet,
        *,
        publish: Callable[[str, bytes], None],
        is_connected: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher, self._fleet = launcher, fleet
        self._publish, self._is_connected, self._clock = publish, is_connected, clock
        self._changed = asyncio.Event()
        self._held = GpuHeld()
        fleet.on_change = self._changed.set

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._changed.wait()
                await asyncio.sleep(_TOGETHER_S)  # several changes come together
            self.say()

    def say(self) -> None:
        """Tell how things stand now."""
        now = self._clock()
        self._fleet.observe(now)
        self._held.look(self._fleet.instances.values(), now)
        self._changed.clear()
        if not self._is_connected():
            return
        instances = [_as_told(instance, now) for instance in self._fleet.instances.values()]
        try:
            told = messages.Machine(launcher=self._launcher, instances=instances)
            self._publish(subjects.machine(self._launcher), codec.encode(told))
        except BrokerError as error:
            log.warning("machine_message_lost", error=str(error))


def _as_told(instance: Instance, now: float) -> messages.MachineInstance:
    has_nothing_to_do = instance.ready_at > 0 and instance.load == 0
    return messages.MachineInstance(
        instance=instance.id,
        version=str(instance.version),
        state=instance.state,
        age_ms=max(0, round((now - instance.launched_at) * 1e3)),
        # Without what came before its fork: a zygote that has first to import its libraries does so once.
        start_ms=instance.load_ms,
        reason=instance.reason,
        key=instance.key,
        idle_ms=max(0, round((now - instance.idle_since) * 1e3)) if has_nothing_to_do else -1,
        runs_total=instance.runs_total,
    )
