"""Whether somebody in a request may call what would be started for it: the registry says, and is asked ahead.

A hold waits for the answer, the call path never does. What was said counts for a minute, and is asked again before.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from algomesh_broker.errors import BrokerError

log = structlog.get_logger("algomesh.prewarmer")

LASTS_S = 60.0
_AGAIN_S = 45.0
_MOST = 50_000
_MOST_AT_ONCE = 500
_ASKERS = 8
_PAUSE_S = 0.5


class Permits:
    """What callers may call. `ask(caller, algorithms)` returns those that it may, and raises BrokerError.

    `on_answer` is called with the algorithms about which something new is known. `run` asks until it is cancelled.
    """

    def __init__(
        self,
        ask: Callable[[str, Sequence[str]], Awaitable[Sequence[str]]],
        on_answer: Callable[[Iterable[str]], None],
        now: Callable[[], float],
    ) -> None:
        self._ask, self._on_answer, self._now = ask, on_answer, now
        self._known: OrderedDict[tuple[str, str], tuple[bool, float]] = OrderedDict()
        self._wanted: dict[str, dict[str, None]] = {}
        self._under_way: set[str] = set()
        self._is_wanted = asyncio.Event()

    def may(self, callers: Iterable[str], algorithm: str) -> bool:
        """Whether one of `callers` may call `algorithm`, as far as is known; what is not known is asked for."""
        now = self._now()
        for caller in callers:
            known = self._known.get((caller, algorithm))
            age_s = LASTS_S if known is None else now - known[1]
            if age_s >= _AGAIN_S:
                self._want(caller, algorithm)
            if age_s >= LASTS_S:
                return False  # the next caller is asked about once this one is known not to
            if known is not None and known[0]:
                return True
        return False

    async def run(self) -> None:
        """Ask what is wanted, for ever."""
        async with asyncio.TaskGroup() as group:
            for number in range(_ASKERS):
                group.create_task(self._work(), name=f"prewarmer-permits-{number}")

    def _want(self, caller: str, algorithm: str) -> None:
        self._wanted.setdefault(caller, {})[algorithm] = None
        self._is_wanted.set()

    async def _work(self) -> None:
        while True:
            await self._is_wanted.wait()
            caller = next((each for each in self._wanted if each not in self._under_way), None)
            if caller is None:
                self._is_wanted.clear()
                continue
            wanted = list(self._wanted.pop(caller))
            for_later = wanted[_MOST_AT_ONCE:]
            if for_later:
                self._wanted[caller] = dict.fromkeys(for_later)
            self._under_way.add(caller)
            try:
                await self._learn(caller, wanted[:_MOST_AT_ONCE])
            finally:
                self._under_way.discard(caller)
                if self._wanted:
                    self._is_wanted.set()

    async def _learn(self, caller: str, algorithms: list[str]) -> None:
        try:
            allowed = set(await self._ask(caller, algorithms))
        except BrokerError as error:
            log.debug("permits_not_known", caller=caller, error=str(error))
            await asyncio.sleep(_PAUSE_S)  # who still wants to know asks again
            return
        now = self._now()
        for algorithm in algorithms:
            self._known.pop((caller, algorithm), None)
            self._known[caller, algorithm] = (algorithm in allowed, now)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        self._on_answer(algorithms)
