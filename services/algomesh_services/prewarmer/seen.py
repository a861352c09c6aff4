"""Whom sightings tell: the policy, which decides, and whoever keeps the books."""

from typing import Protocol

import msgspec

from algomesh_services.prewarmer.actions import Action, Call
from algomesh_services.prewarmer.spared import Began


class SeenCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call as the policy is told of it (actions.Call)."""

    request: str
    index: int
    parent: int
    algorithm: str
    caller: str | None
    at_s: float
    ready_at_s: float
    route: tuple[str, ...] = ()
    step: tuple[str, int] | None = None
    version: str | None = None
    attempt: int = 1


class Policy(Protocol):
    """What is asked of BreakEvenPolicy."""

    def called(self, call: Call) -> list[Action]:
        """A call begins."""
        ...

    def idle(self, algorithm: str, at_s: float) -> list[Action]:
        """Nothing of it runs any more."""
        ...

    def rests(self, algorithm: str, at_s: float) -> None:
        """Nothing of it runs any more, and what was decided before still keeps it: only a call to come need know."""
        ...

    def started(self, request: str, index: int, at_s: float) -> None:
        """A call of the request has started, which may have waited for that."""
        ...

    def finished(self, request: str, at_s: float) -> list[Action]:
        """The request is over."""
        ...


class Notes(Protocol):
    """Who keeps the books."""

    def began(self, call: Began) -> None:
        """A call has begun."""
        ...

    def computed(self, caller: str, version: str, took_s: float, ended_s: float) -> None:
        """Runs of a request of this caller took so long, until then."""
        ...
