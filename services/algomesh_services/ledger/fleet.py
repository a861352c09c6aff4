"""Which instances are gone, as far as the ledger has heard: pure, time is an argument.

A death and the last events of the dead travel different ways, so a death counts only a moment after it was heard
of, and for a while after, since events may come even later. What an instance itself said of a run counts more.
"""

from typing import Final, NamedTuple

SETTLE_S: Final = 1.5
REMEMBER_S: Final = 120.0
SILENT_S: Final = 10.0
_MOST: Final = 10_000


class Gone(NamedTuple):
    """Instances that died of one reason."""

    reason: str
    instances: list[str]


class Deaths:
    """Dead instances, and launchers by their last beat. `began_at` is when the ledger began to listen."""

    def __init__(self, began_at: float) -> None:
        self._died: dict[str, tuple[str, float]] = {}
        self._beats: dict[str, float] = {}
        self._began_at = began_at

    def on_death(self, instance: str, reason: str, now: float) -> None:
        """A launcher says that an instance is gone."""
        self._died[instance] = (reason, now)
        while len(self._died) > _MOST:
            del self._died[next(iter(self._died))]

    def on_beat(self, launcher: str, now: float, *, is_alive: bool) -> None:
        """A launcher lives, or says goodbye."""
        if is_alive:
            self._beats[launcher] = now
        else:
            self._beats.pop(launcher, None)

    def on_silence(self, now: float) -> None:
        """The ledger itself heard nothing for a while: nobody's silence means anything until it has listened again."""
        self._began_at = now
        self._beats = dict.fromkeys(self._beats, now)

    def due(self, now: float) -> list[Gone]:
        """Whose runs are lost now, by reason."""
        gone: dict[str, list[str]] = {}
        for instance, (reason, at) in list(self._died.items()):
            if now - at > REMEMBER_S:
                del self._died[instance]
            elif now - at >= SETTLE_S:
                gone.setdefault(reason, []).append(instance)
        return [Gone(reason, instances) for reason, instances in gone.items()]

    def homeless(self, instances: list[str], now: float) -> list[str]:
        """Those whose launcher nobody has heard of for a while."""
        if now - self._began_at < SILENT_S:
            return []
        alive = tuple(f"{launcher}-" for launcher, at in self._beats.items() if now - at < SILENT_S)
        return [instance for instance in instances if not instance.startswith(alive)]
