"""Handing over: the output of a step goes straight to the next step's version, in this instance's own name.

The hop's reply field is an inbox of ours, where the server says at once if nobody is subscribed; then the same
envelope is parked. So an output is kept until the server has confirmed all that was sent before (one PING for many
hops), and for as long as the stream takes to answer where it had to be parked.
"""

import asyncio
from typing import Final

from msgspec import Struct

from algomesh import errors
from algomesh.content import Content
from algomesh.instance.answers import Answers
from algomesh.instance.job import Job
from algomesh.parking import RETRY_S, UNAVAILABLE, park, refused_parking, stream_refusal
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import PayloadTooLarge
from algomesh_broker.grants import Granted
from algomesh_broker.protocol import NO_RESPONDERS
from algomesh_broker.route import Place
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.forwarding")

_CONFIRM_READY_S: Final = 0.01
_CONFIRM_LATEST_S: Final = 0.02
_MOST_KNOWN: Final = 4096


class _Kept(Struct, frozen=True, gc=False):
    """A hop that may have to be parked: where it went, what was sent, until when (the loop's time), by which token."""

    place: Place
    call: messages.Call
    deadline: float
    granted: Granted


class Forwarder:
    """The way out of one instance to the next steps of pipelines."""

    def __init__(self, connection: Connection, answers: Answers) -> None:
        self._connection = connection
        self._answers = answers
        self._me = connection.identity.caller
        self._inbox = f"{connection.identity.inbox}.hop"
        self._loop = asyncio.get_running_loop()
        self._sent: dict[str, _Kept] = {}
        self._asked: dict[str, _Kept] = {}
        self._parked: dict[str, _Kept] = {}
        self._free: list[str] = []
        self._count = 0
        self._subjects: dict[Place, str] = {}
        self._confirm = connection.rider(self._ask, _CONFIRM_READY_S, _CONFIRM_LATEST_S)
        self._is_confirming = False
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self) -> None:
        """Hear when a hop finds nobody."""
        self._connection.join(f"{self._inbox}.*", self._on_word)

    def hand_over(self, job: Job, at: int, output: Content, spent_ms: float, feed: str = "") -> None:
        """Send `output` to step `at`; or, where `feed` is given, word that this instance yields its input.

        Raises PayloadTooLarge (the SDK's) when no message can carry it.
        """
        call, granted = job.call, job.granted
        assert granted is not None
        place = granted.route.places[at]
        left_ms = int((job.deadline - self._loop.time()) * 1000)
        onward = messages.Call(
            call.run,
            call.root,
            call.parent,
            call.root_caller,
            call.attempt,
            call.session,
            call.call,
            left_ms if left_ms > 0 else 1,
            call.depth,
            call.budget,
            output.content_type,
            output.detail,
            memoryview(output.payload),
            call.traceparent,
            call.grant,
            at,
            job.caller,
            call.credit,
            spent_ms,
            feed,
            job.writers,
            call.is_near,
        )
        subject = self._subjects.get(place) or self._address(place)
        ticket = self._free.pop() if self._free else self._new_ticket()
        try:
            self._connection.publish(subject, codec.encode(onward), ticket)
        except PayloadTooLarge as error:
            raise errors.PayloadTooLarge(f"the output is too large for the next step: {error}; return less") from error
        self._sent[ticket] = _Kept(place, onward, job.deadline, granted)
        if not self._is_confirming:
            self._is_confirming = True
            self._idle.clear()
            self._confirm.arm()

    async def drain(self) -> None:
        """Return when every hop has found somebody, or lies with the stream."""
        await self._idle.wait()

    def _address(self, place: Place) -> str:
        if len(self._subjects) >= _MOST_KNOWN:
            self._subjects.clear()
        subject = self._subjects[place] = subjects.hop(place.version, self._me)
        return subject

    def _new_ticket(self) -> str:
        self._count += 1
        return f"{self._inbox}.{self._count}"

    def _ask(self) -> None:
        """Have the server say when it has dealt with what was sent: its word about a hop comes before its PONG."""
        self._asked, self._sent = self._sent, {}
        self._connection.ping(self._confirmed)

    def _confirmed(self, error: Exception | None) -> None:
        if error is not None:  # whoever waits sends the pipeline again when the connection is back
            log.info("hops_not_confirmed", count=len(self._asked), error=str(error))
        self._free.extend(self._asked)
        self._asked.clear()
        if self._sent:
            self._confirm.arm()
        else:
            self._is_confirming = False
            self._idle.set()

    def _on_word(self, message: Message) -> None:
        """Nobody is there for a hop, or the stream's answer to a parked one."""
        ticket = message.subject
        kept = self._sent.pop(ticket, None) or self._asked.pop(ticket, None)
        if kept is not None:
            if message.status == NO_RESPONDERS:
                self._park(ticket, kept)
                self._answers.say_parked(kept.call, kept.call.reply_to)
            return
        kept = self._parked.pop(ticket, None)
        if kept is None:
            return
        refusal = (UNAVAILABLE, "") if message.status == NO_RESPONDERS else stream_refusal(message.data)
        if refusal is None:
            self._free.append(ticket)
        elif refusal[0] == UNAVAILABLE:
            self._loop.call_later(RETRY_S, self._park, ticket, kept)
        else:
            self._free.append(ticket)
            error = refused_parking(*refusal, stage=str(kept.place.version))
            self._answers.fail_step(kept.call, kept.call.reply_to, error)

    def _park(self, ticket: str, kept: _Kept) -> None:
        call, version = kept.call, kept.place.version
        left_s = kept.deadline - self._loop.time()
        if left_s <= 0:
            self._free.append(ticket)
            return  # who waited has given up
        self._parked[ticket] = kept
        try:
            park(
                self._connection,
                self._subjects.get(kept.place) or self._address(kept.place),
                codec.encode(call),
                ticket,
                left_s,
                version=version,
                demander=self._me,
                call=call,
                stages=kept.granted.route.after(call.at),
            )
        except PayloadTooLarge as error:
            del self._parked[ticket]
            self._free.append(ticket)
            refused = errors.PayloadTooLarge(str(error), stage=str(version))
            self._answers.fail_step(call, call.reply_to, refused)
