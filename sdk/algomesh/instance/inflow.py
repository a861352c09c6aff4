"""Parts on their way into a run: pulled from the instance that yields them, a few ahead of who reads them.

The hop says which instance has them; this one asks it for parts (`Credit` on its control subject, which names our
session) and gets them as answers, in its own name. What is read in a thread is an iterator, what is read in the
loop an asynchronous one; both end with the writer, or raise what it ended in.
"""

import asyncio
import itertools
import queue
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

from algomesh import errors
from algomesh.content import Content
from algomesh.fleet_watch import FleetWatch
from algomesh.instance.job import Job
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage
from algomesh_broker.names import VersionId
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.inflow")

WINDOW: Final = 16

Read = Callable[[Content], Any]
_Item = Content | errors.MeshError | None


class Inflow:
    """The parts of one run's input; None ends them."""

    def __init__(self, job: Job, call_id: str, feeds: "Feeds") -> None:
        assert job.granted is not None
        assert job.place is not None
        self.call_id = call_id
        self.feeder = job.call.feed
        self.version: VersionId = job.granted.route.places[job.place.forwarder].version
        self.is_over = False
        self._at = job.place.forwarder
        self._job = job
        self._feeds = feeds
        self._arrived = self._taken = self._upto = 0
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._waiting: deque[_Item] = deque()
        self._some = asyncio.Event()

    def ask(self) -> None:
        """Ask for as many parts as there is room for; called in the loop."""
        if self.is_over or self._taken + WINDOW - self._upto < WINDOW // 2:
            return
        self._upto = self._taken + WINDOW
        call = self._job.call
        self._feeds.say(
            self.feeder,
            messages.Credit(
                run=call.run, attempt=call.attempt, upto=self._upto, at=self._at,
                session=self._feeds.session, call=self.call_id,
            ),
        )  # fmt: skip

    def take(self, item: _Item) -> None:
        """A part, the end, or an error; called in the loop."""
        if self.is_over:
            return
        self.is_over = not isinstance(item, Content)
        self._items.put(item)
        self._waiting.append(item)
        self._some.set()

    def part(self, part: messages.Part) -> None:
        """A part as it arrives; one that is missing ends the run."""
        if part.number != self._arrived:
            self.take(errors.InstanceLost(f"part {self._arrived} of its input was lost", stage=str(self.version)))
            return
        self._arrived += 1
        self.take(Content(part.content_type, part.detail, part.payload))

    def close(self) -> None:
        """The run reads no more: the writer need not go on. Called in the loop."""
        if not self.is_over:
            call = self._job.call
            self._feeds.say(self.feeder, messages.Cancel(run=call.run, attempt=call.attempt, at=self._at))
        self.take(errors.Cancelled("the run has ended"))
        self._feeds.forget(self)

    def iterate(self, read: Read) -> Iterator[Any]:
        """The parts for code in a thread."""
        while True:
            item = self._items.get()
            if item is None:
                return
            if isinstance(item, errors.MeshError):
                raise item
            self._feeds.loop.call_soon_threadsafe(self._have_taken)
            yield read(item)

    async def iterate_async(self, read: Read) -> AsyncIterator[Any]:
        """The parts for code in the loop."""
        while True:
            while not self._waiting:
                self._some.clear()
                await self._some.wait()
            item = self._waiting.popleft()
            if item is None:
                return
            if isinstance(item, errors.MeshError):
                raise item
            self._have_taken()
            yield read(item)

    def _have_taken(self) -> None:
        self._taken += 1
        self.ask()


class Feeds:
    """What feeds the runs of one instance."""

    def __init__(self, connection: Connection) -> None:
        self.loop = asyncio.get_running_loop()
        self.session = secrets.token_hex(5)
        self._connection = connection
        self._me = connection.identity.caller
        self._inflows: dict[str, Inflow] = {}
        self._ids = itertools.count(1)
        self._fleet = FleetWatch(connection, self)
        self._is_open = False

    def open(self, job: Job) -> Inflow:
        """Begin to pull what feeds `job`."""
        if not self._is_open:
            self._is_open = True
            self._connection.join(subjects.replies_to(self._me, self.session), self._on_reply)
            self._connection.join(subjects.HOST_BEATS, self._fleet.on_host_beat)
        inflow = Inflow(job, format(next(self._ids), "x"), self)
        self._inflows[inflow.call_id] = inflow
        self._fleet.watch(inflow.version)
        inflow.ask()
        return inflow

    def forget(self, inflow: Inflow) -> None:
        """Its run has ended."""
        self._inflows.pop(inflow.call_id, None)

    def say(self, instance: str, word: messages.Control) -> None:
        """Tell the instance that writes."""
        self._connection.publish(subjects.control(instance, self._me), codec.encode(word))

    def on_death(self, _version: VersionId, death: messages.Death) -> None:
        """The writer is gone."""
        for inflow in list(self._inflows.values()):
            if inflow.feeder == death.instance:
                why = death.detail or death.reason
                inflow.take(errors.InstanceLost(f"the instance that yields died ({why})", stage=str(inflow.version)))

    def on_unable(self, _version: VersionId, _unable: messages.Unable) -> None:
        """Nothing: what feeds is running."""

    def on_host_lost(self, launcher: str) -> None:
        """Every writer there is gone."""
        for inflow in list(self._inflows.values()):
            if inflow.feeder.startswith(f"{launcher}-"):
                inflow.take(errors.InstanceLost("the machine of the instance that yields is gone"))

    def _on_reply(self, message: Message) -> None:
        inflow = self._inflows.get(message.subject.rpartition(".")[2])
        if inflow is None or not message.subject.startswith(subjects.replies_of(inflow.version.caller)):
            return
        try:
            reply = codec.decode_reply(message.data)
        except BadMessage as error:
            log.warning("part_ignored", subject=message.subject, error=str(error))
            return
        match reply:
            case messages.Part():
                inflow.part(reply)
            case messages.Result():
                inflow.take(None)
            case messages.Failure():
                inflow.take(errors.of_code(reply.code, reply.message, stage=reply.stage, error_type=reply.error_type))
