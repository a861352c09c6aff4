"""Which calls an instance takes, and when it says that it is full.

Live calls come by queue group, parked ones by a standing pull. An instance that is full leaves the group
and comes back when it has eased (capacity.py); what still reaches it, and what has waited 50 ms, it parks.
Joining again is written before the answer that made room, so a caller's next call always finds it.
Nothing that arrives is dropped: it is run, parked, or nak'ed back to the stream.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import replace

from algomesh.instance.capacity import Capacity
from algomesh.instance.job import Job
from algomesh.parking import RETRY_S, UNAVAILABLE, park, refused_parking, stream_refusal
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message, Subscription
from algomesh_broker.errors import BadGrant, BadMessage, PayloadTooLarge
from algomesh_broker.grants import GrantBook
from algomesh_broker.names import VersionId, is_token
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.intake")

WAIT_FOR_SLOT_S: Final = 0.05
_PULL_S: Final = 30.0
_ACK_WAIT_S: Final = 5.0
_MOST_KNOWN: Final = 4096
_ACK, _NAK = b"+ACK", b"-NAK"
_PULL = msgspec.json.encode({"batch": 1, "expires": int(_PULL_S * 1e9)})
_POLL = msgspec.json.encode({"batch": 1, "no_wait": True})


class Intake:
    """The door of one instance.

    `start(job)` runs a job that has its slot; `refuse(job, code, message)` answers for one that will not run;
    `refuse_hop(subject, reason)` records a hop without a valid route token.
    """

    def __init__(
        self,
        connection: Connection,
        version: VersionId,
        instance: str,
        capacity: Capacity,
        start: Callable[[Job], None],
        refuse: Callable[[Job, str, str], None],
        refuse_hop: Callable[[str, str], None],
        grants: GrantBook,
    ) -> None:
        self._connection = connection
        self._version = version
        self._instance = instance
        self._capacity = capacity
        self._start, self._refuse, self._refuse_hop = start, refuse, refuse_hop
        self._grants = grants
        self._loop = asyncio.get_running_loop()
        self.at_once: Callable[[messages.Call, str, float], bool] | None = None
        """What is asked first, with a call, its subject and the loop's time: whether it ran it at once (express.py)."""
        self._inbox = connection.identity.inbox
        self._parked_prefixes = (f"park.call.{version.tokens}.", f"park.hop.{version.tokens}.")
        self._next_pull = f"$JS.API.CONSUMER.MSG.NEXT.{subjects.PARKED_STREAM}.{version.consumer}"
        self._subjects: dict[str, tuple[bool, str]] = {}
        self._tokens: set[str] = set()
        self._joined: list[Subscription] = []
        self._backlog: deque[Job] = deque()
        self._resuming: deque[asyncio.Future[None]] = deque()
        self._parking: dict[str, Job] = {}
        self._parking_ids = 0
        self._is_pulling = False
        self._pull_until = 0.0
        self._reserved = False
        self._parked_wait = False
        self._draining = False
        self._serving = False
        self._sweeping: asyncio.TimerHandle | None = None
        self._last_read = self._loop.time()

    async def open(self) -> None:
        """Take calls from now on. Raises Forbidden, Unreachable."""
        self._connection.join(f"{self._inbox}.pull", self._on_pulled)
        self._connection.join(f"{self._inbox}.poll", self._on_polled)
        self._connection.join(f"{self._inbox}.parked.*", self._on_park_answer)
        self._connection.on_reconnect.append(self._on_reconnect)
        self._join()
        self._pull()
        await self._connection.flush()

    async def drain(self) -> None:
        """Take no more: leave the group, wait for what is on its way, park what waits for a slot."""
        self._draining = True
        leaving = [subscription.leave() for subscription in self._joined]
        self._joined = []
        if leaving:
            await asyncio.wait(leaving, timeout=2.0)
        while self._backlog:
            self.park(self._backlog.popleft())

    @property
    def is_draining(self) -> bool:
        """Whether no more calls are taken."""
        return self._draining

    @property
    def backlog(self) -> int:
        """Calls that wait here for a slot."""
        return len(self._backlog)

    # Arrivals

    def may_run_at_once(self, call: messages.Call) -> bool:
        """Whether this call, were it to be over at once, would run now and change nothing for others."""
        capacity, tokens = self._capacity, self._tokens
        return (
            capacity.taken < capacity.slots
            and not (self._reserved or self._backlog or self._draining)
            and bool(self._joined)
            and call.call in tokens
            and call.session in tokens
        )

    def _on_call(self, message: Message) -> None:
        now = self._loop.time()
        self._last_read = now
        try:
            call = codec.decode_call(message.data)
            if self.at_once is not None and self.at_once(call, message.subject, now):
                return
            job = self._read(call, message.subject, now)
        except BadMessage as error:
            log.warning("call_ignored", subject=message.subject, error=str(error))
            return
        if job is None:
            return
        capacity = self._capacity
        if self._draining:
            self.park(job)
        elif capacity.taken < capacity.slots and not self._reserved:
            job.has_slot = True
            capacity.taken += 1
            self._start(job)
        elif len(self._backlog) < capacity.backlog_limit:
            self._backlog.append(job)
            if self._sweeping is None:
                self._sweeping = self._loop.call_later(WAIT_FOR_SLOT_S / 2, self._sweep)
        else:
            self.park(job)
        if capacity.taken >= capacity.slots and self._joined and capacity.is_full(len(self._backlog)):
            self._leave()

    def _read(self, call: messages.Call, subject: str, now: float, *, waited_ms: float = -1.0) -> Job | None:
        """The job in a call; None when its route token does not allow it, which has been told then.

        `waited_ms` is how long it was parked. Raises BadMessage, also when its answer's subject could not be made
        of what it says.
        """
        if call.call not in self._tokens or call.session not in self._tokens:
            self._check_tokens(call)
        is_parked = waited_ms >= 0
        if is_parked:
            call = replace(call, time_left_ms=max(0, call.time_left_ms - int(waited_ms)))
        known = self._subjects.get(subject)
        if known is None:
            if len(self._subjects) >= _MOST_KNOWN:
                self._subjects.clear()
            known = self._subjects[subject] = subject.startswith("hop."), subject.rpartition(".")[2]
        is_hop, sender = known
        if call.at < 0 and not is_hop:
            return Job.of(call, subject, sender, now, is_parked)
        waits = call.reply_to if is_hop else sender
        try:
            granted, place = self._grants.check_hop(call.grant, call.at, sender, waits, time.time())
            if place.version != self._version:
                raise BadGrant(f"step {call.at} of this route is {place.version}")
        except BadGrant as error:
            if is_hop:
                self._refuse_hop(subject, str(error))
            else:
                self._refuse(Job.of(call, subject, sender, now, is_parked), error.code, str(error))
            return None
        return Job.of(call, subject, waits, now, is_parked, granted, place)

    def _check_tokens(self, call: messages.Call) -> None:
        """See that an answer's subject can be made of what the call says; the same few come again and again."""
        if not (is_token(call.session) and is_token(call.call)):
            raise BadMessage("its session or its call's number is not a token")
        if len(self._tokens) >= _MOST_KNOWN:
            self._tokens.clear()
        self._tokens.update((call.session, call.call))

    def _begin(self, job: Job) -> None:
        job.has_slot = True
        self._capacity.taken += 1
        self._start(job)

    def _sweep(self) -> None:
        """Park what has waited too long for a slot."""
        self._sweeping = None
        oldest = self._loop.time() - WAIT_FOR_SLOT_S
        while self._backlog and self._backlog[0].arrived <= oldest:
            self.park(self._backlog.popleft())
        if self._backlog:
            self._sweeping = self._loop.call_later(WAIT_FOR_SLOT_S / 2, self._sweep)

    # A slot becomes free

    def give_slot(self, job: Job) -> None:
        """`job` needs its slot no longer; call `serve` when its answer is written."""
        if not job.has_slot:
            return
        job.has_slot = False
        self._capacity.taken -= 1
        if self._joined:
            return
        others_first = self._draining or self._parked_wait or self._resuming
        if not others_first and self._capacity.has_eased(len(self._backlog)):
            self._join()

    def serve(self) -> None:
        """Fill free slots: runs that wait to go on, then parked calls, then the backlog."""
        if self._serving:
            return
        if self._resuming or self._parked_wait or self._backlog:
            self._fill()
        capacity = self._capacity
        if self._draining or self._reserved or capacity.taken >= capacity.slots:
            return
        if not self._joined and capacity.has_eased(len(self._backlog)):
            self._join()
        if not self._is_pulling or self._loop.time() >= self._pull_until:
            self._pull()

    def _fill(self) -> None:
        self._serving = True
        try:
            while self._capacity.free > 0 and not self._reserved:
                if self._resuming:
                    self._capacity.take()
                    future = self._resuming.popleft()
                    if future.cancelled():
                        self._capacity.give()
                    else:
                        future.set_result(None)
                elif self._parked_wait and not self._draining:
                    self._poll()
                elif self._backlog:
                    self._begin(self._backlog.popleft())
                else:
                    break
        finally:
            self._serving = False

    async def take_slot(self, job: Job) -> None:
        """Wait until `job`, which had given its slot back, has one again."""
        if self._capacity.free > 0 and not self._resuming:
            self._capacity.take()
        else:
            future: asyncio.Future[None] = self._loop.create_future()
            self._resuming.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self._capacity.give()
                    self.serve()
                raise
        job.has_slot = True

    # The group

    def _join(self) -> None:
        self._joined = [
            self._connection.join(subjects.calls_of(self._version), self._on_call, subjects.WORKERS),
            self._connection.join(subjects.hops_of(self._version), self._on_call, subjects.WORKERS),
        ]

    def _leave(self) -> None:
        for subscription in self._joined:
            subscription.leave()
        self._joined = []

    def _on_reconnect(self) -> None:
        self._is_pulling = self._reserved = False
        self.serve()

    # Parked calls

    def _pull(self) -> None:
        """Keep a standing pull open: the stream answers it when something is parked."""
        self._is_pulling = True
        self._pull_until = self._loop.time() + _PULL_S + 1
        self._connection.publish(self._next_pull, _PULL, f"{self._inbox}.pull")

    def _poll(self) -> None:
        """Ask once, with a slot kept free for the answer: parked calls go before live ones."""
        self._reserved = True
        self._connection.publish(self._next_pull, _POLL, f"{self._inbox}.poll")

    def _on_pulled(self, message: Message) -> None:
        self._is_pulling = False
        if message.status in (0, 404, 408):
            self._on_parked(message, has_slot=self._capacity.free > 0 and not self._reserved)
        else:  # 409: the consumer has gone, or the server shuts down
            self._loop.call_later(0.5, self.serve)

    def _on_polled(self, message: Message) -> None:
        self._reserved = False
        if message.status:
            self._parked_wait = False
        self._on_parked(message, has_slot=self._capacity.free > 0)

    def _on_parked(self, message: Message, *, has_slot: bool) -> None:
        now = self._loop.time()
        held_up, self._last_read = now - self._last_read > _ACK_WAIT_S / 2 and self._capacity.taken > 0, now
        if message.status == 0:
            if self._draining or not has_slot:
                self._parked_wait = True
                self._connection.publish(message.reply, _NAK)
            elif not held_up:  # else it may have lain here for longer than the stream waits, and be another's by now
                self._take_parked(message, now)
        self.serve()

    def _take_parked(self, message: Message, now: float) -> None:
        if not message.subject.startswith(self._parked_prefixes):
            log.warning("steered_call_ignored", subject=message.subject)  # another version's pull, pointed at us
            return
        self._connection.publish(message.reply, _ACK)
        tokens = message.reply.split(".")
        try:
            waited_ms = max(0.0, time.time() - int(tokens[-2]) / 1e9) * 1000
            self._parked_wait = int(tokens[-1]) > 0
            call = codec.decode_call(message.data)
            job = self._read(call, message.subject.removeprefix("park."), now, waited_ms=waited_ms)
        except (BadMessage, ValueError, IndexError) as error:
            log.warning("parked_call_ignored", subject=message.subject, error=str(error))
            return
        if job is None:
            return
        job.cold_ms = job.waited_ms = waited_ms
        self._begin(job)

    def park(self, job: Job) -> None:
        """Leave a call with the stream, tell its caller, and say that somebody waits."""
        left_ms = int((job.deadline - self._loop.time()) * 1000)
        if left_ms <= 0:
            return  # its caller has given up
        self._parking_ids += 1
        ticket = f"{self._inbox}.parked.{self._parking_ids}"
        self._parking[ticket] = job
        call = replace(job.call, time_left_ms=left_ms)
        version, sender = self._version, job.subject.rpartition(".")[2]
        try:
            park(
                self._connection,
                job.subject,
                codec.encode(call),
                ticket,
                left_ms / 1000,
                version=version,
                demander=sender,
                call=call,
                stages=[] if job.granted is None else job.granted.route.after(call.at),
            )
        except PayloadTooLarge as error:
            del self._parking[ticket]
            self._refuse(job, "payload_too_large", str(error))
            return
        parked = messages.Parked(run=call.run, attempt=call.attempt, instance=self._instance, at=call.at)
        self._connection.publish(
            subjects.reply(version.caller, job.caller, call.session, call.call), codec.encode(parked)
        )

    def _on_park_answer(self, message: Message) -> None:
        job = self._parking.pop(message.subject, None)
        if job is None:
            return
        refusal = (UNAVAILABLE, "") if message.status else stream_refusal(message.data)
        if refusal is None:
            return
        if refusal[0] == UNAVAILABLE:  # the server has just started, and the launcher not yet seen to its streams
            self._loop.call_later(RETRY_S, self.park, job)
        else:
            error = refused_parking(*refusal, stage="")
            self._refuse(job, error.code, error.message)
