"""Callers that go on calling, over NATS and over HTTP, while the mesh is maltreated; and what became of each call."""

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import algomesh
from algomesh.errors import MeshError

# Longer than any outage here: a call that is not answered by then hung.
TIMEOUT_S = 60.0
_CALLERS = 2
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Outcome:
    """One call: when it began and ended (seconds), over which address, and the code of its error, empty when it has a
    result. `is_typed` is false for an error that is none of the mesh's, and for a wrong result."""

    began: float
    ended: float
    over: str
    code: str = ""
    is_typed: bool = True
    said: str = ""


class Load:
    """`with Load(urls, key) as load:` calls a chain of two services all the while."""

    def __init__(self, urls: tuple[str, ...], key: str) -> None:
        self._urls, self._key = urls, key
        self.outcomes: list[Outcome] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._call()), name="load")

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait_for(20)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT_S + 10)

    @property
    def failed(self) -> list[Outcome]:
        """The calls that had an error."""
        return [outcome for outcome in self.outcomes if outcome.code]

    def wait_for(self, more: int, within_s: float = 30.0) -> None:
        """Return when so many more calls have succeeded. Raises AssertionError."""
        wanted, began = self._successes() + more, time.monotonic()
        while self._successes() < wanted:
            assert time.monotonic() - began < within_s, f"calls do not succeed: {self.summary()}"
            time.sleep(0.05)

    def summary(self) -> str:
        """How many calls, and what went wrong how often."""
        codes = Counter(f"{outcome.over} {outcome.code}" for outcome in self.failed)
        longest = max((outcome.ended - outcome.began for outcome in self.outcomes), default=0.0)
        wrong = ", ".join(f"{count} × {code}" for code, count in codes.items()) or "none failed"
        return f"{len(self.outcomes)} calls, {wrong}, the longest {longest:.1f} s"

    def _successes(self) -> int:
        return sum(not outcome.code for outcome in list(self.outcomes))

    async def _call(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for url in self._urls:
                for number in range(_CALLERS):
                    tasks.create_task(self._caller(url, number))

    async def _caller(self, url: str, number: int) -> None:
        over = url.partition(":")[0]
        async with algomesh.connect(self._key, url) as client:
            chain = client.algo("text/clean") | client.algo("text/keywords")
            for count in range(10**9):
                if self._stopping.is_set():
                    return
                word, began = f"word{number}x{count}", time.monotonic()
                code, is_typed, said = "", True, ""
                try:
                    response = await chain.pipe(f"{word} and   {word} &amp; {word}", timeout=TIMEOUT_S)
                    if word not in str(response.result):
                        code, is_typed, said = "wrong_result", False, str(response.result)
                except MeshError as error:
                    code, said = error.code, str(error)
                except Exception as error:  # the test says what it was
                    code, is_typed, said = type(error).__name__, False, str(error)
                self.outcomes.append(Outcome(began, time.monotonic(), over, code, is_typed, said))
                await asyncio.sleep(_PAUSE_S)
