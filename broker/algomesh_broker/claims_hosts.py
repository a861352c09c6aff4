"""Whether every instance of the mesh sees the same shared memory as this process: told by the launchers' beats.

Pure: fed by whoever hears the beats, asked by whoever sends. While it does not know, the answer is no.
"""

from collections.abc import Callable

from algomesh_broker.claims_shm import SharedMemory
from algomesh_broker.messages import HostBeat

FORGET_AFTER_S = 5.0


class LauncherHosts:
    """The hosts of the launchers that live; `is_here` says whether a host is this machine's."""

    def __init__(self, is_here: Callable[[str], bool] | None = None) -> None:
        self._is_here = is_here or SharedMemory().is_here
        self._hosts: dict[str, tuple[str, float]] = {}

    def on_beat(self, beat: HostBeat, now: float) -> None:
        """A launcher's beat was heard at `now` (seconds of any clock that only runs forward)."""
        if beat.alive:
            self._hosts[beat.launcher] = beat.host, now
        else:
            self._hosts.pop(beat.launcher, None)

    def shared(self, now: float) -> str:
        """The one host of every launcher that lives, when it is this machine's; else nothing."""
        for launcher, (_, heard_at) in list(self._hosts.items()):
            if now - heard_at > FORGET_AFTER_S:
                del self._hosts[launcher]
        hosts = {host for host, _ in self._hosts.values()}
        if len(hosts) != 1:
            return ""
        host = hosts.pop()
        return host if host and self._is_here(host) else ""
