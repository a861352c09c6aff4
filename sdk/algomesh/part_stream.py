"""The parts of one call, for whoever reads them: a few ahead of the reader, in order, each once.

The reader's own pace gives the writer credit. Leaving the loop cancels the run. Once a part has been read the call
is not sent again: what yields twice would yield twice to the reader.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Final

from msgspec.structs import replace

from algomesh import errors
from algomesh.content import Content
from algomesh.lane import Lane
from algomesh.order import Order
from algomesh.pending import Pending
from algomesh_broker import messages

WINDOW: Final = 16


class PartStream:
    """One call that wants parts. `result` and `pending` are there when the parts have ended.

    `is_last` says whether a result is the output of the whole, or something to go on with, which is no part of it.
    """

    def __init__(self, lane: Lane, order: Order, is_last: Callable[[messages.Result], bool] = lambda _: True) -> None:
        self.result: messages.Result | None = None
        self.pending: Pending | None = None
        self._lane, self._is_last = lane, is_last
        self._order = replace(order, credit=WINDOW, on_part=self._take)
        self._parts: deque[messages.Part] = deque()
        self._some = asyncio.Event()
        self._arrived = 0
        self._upto = WINDOW
        self._broken: errors.MeshError | None = None

    async def parts(self) -> AsyncGenerator[Content, None]:
        """The parts, and the output where it does not come in parts. Raises MeshError."""
        calling = asyncio.ensure_future(self._lane.call(self._order))
        calling.add_done_callback(lambda _: self._some.set())
        taken = 0
        try:
            while True:
                while not self._parts and self._broken is None and not calling.done():
                    self._some.clear()
                    await self._some.wait()
                if self._parts:
                    part = self._parts.popleft()
                    taken += 1
                    self._give_credit(part, taken)
                    yield Content(part.content_type, part.detail, part.payload)
                elif self._broken is not None:
                    raise self._broken
                else:
                    break
            self.result, self.pending = await calling
            if 0 <= self.result.parts != taken:
                raise _lost(taken, str(self._order.version))
            if self.result.parts < 0 and self._is_last(self.result):
                yield Content(self.result.content_type, self.result.detail, self.result.payload)
        finally:
            if not calling.done():
                calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)

    def _take(self, part: messages.Part) -> None:
        if part.number != self._arrived:
            self._broken = self._broken or _lost(self._arrived, str(self._order.version))
        else:
            self._arrived += 1
            self._parts.append(part)
        self._some.set()

    def _give_credit(self, part: messages.Part, taken: int) -> None:
        if taken + WINDOW - self._upto >= WINDOW // 2:
            self._upto = taken + WINDOW
            self._lane.give_credit(part, self._upto)


def _lost(number: int, stage: str) -> errors.MeshError:
    return errors.InstanceLost(f"part {number} did not arrive: the connection was cut; call again", stage=stage)
