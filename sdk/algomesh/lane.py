"""The sender's side of a call: live first, parked when nobody answers, sent again when an instance dies.

One `Lane` belongs to one connection and one caller. It subscribes its answers once, keeps a table of
pending calls, and has one timer for all their deadlines. Everything it promises to a caller is in
`Lane.call`; what it decides about one call is in pending.py. A chain of a pipeline is one call, whose
answer comes from its last stage.
"""

import asyncio
import itertools
import secrets
import sys
from collections.abc import Hashable, Iterable
from typing import Final

from msgspec.structs import replace

from algomesh import call_spans, errors
from algomesh.chain import Chain, chain_of_call
from algomesh.claiming import Claims, is_large
from algomesh.content import Content
from algomesh.fleet_watch import FleetWatch
from algomesh.hearing import hear, record_of
from algomesh.order import Order
from algomesh.parking import RETRY_S, UNAVAILABLE, park, refused_parking, stream_refusal
from algomesh.pending import PARKED, RUNNING, SENT, Pending
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, BrokerError, PayloadTooLarge
from algomesh_broker.names import VersionId
from algomesh_broker.protocol import NO_RESPONDERS
from algomesh_observability import tracing
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.lane")

_HOMELESS_S: Final = 5.0
_DOUBT_S: Final = 5.0
_MARGIN_BYTES: Final = 4096
_NOBODY: Final[list[str]] = []
_SERVER: Final = "reply.none.none."  # as subjects.no_responders has it
_MOST_KNOWN: Final = 4096


class Lane:
    """Calls from one caller over one connection."""

    def __init__(self, connection: Connection, session: str) -> None:
        self._connection = connection
        self._caller = connection.identity.caller
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._pending: dict[str, Pending] = {}
        self._ids = itertools.count(1)
        self._free_ids: list[str] = []
        self._chains: dict[VersionId, tuple[str, Chain]] = {}
        # By identity: a chain is made once for its route, and sent by one kind of sender.
        self._sent_chains: dict[int, tuple[Chain, str]] = {}
        self._fleet = FleetWatch(connection, self)
        self.claims = Claims(connection)
        self._no_responders = subjects.no_responders(self._caller, session, "")
        self._tail = len(self._caller) + len(session) + 2
        self._answers: dict[str, tuple[str, str]] = {}
        self._sweeping: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, connection: Connection) -> "Lane":
        """Subscribe this caller's answers. Raises Forbidden, Unreachable."""
        lane = cls(connection, secrets.token_hex(5))
        replies = subjects.replies_to(lane._caller, lane._session)
        connection.join(replies, lane._on_reply)
        await lane._fleet.open()
        connection.on_forbidden.append(lane._on_forbidden)
        connection.on_reconnect.append(lane._on_reconnect)
        return lane

    @property
    def in_flight(self) -> int:
        """How many calls wait for their answers."""
        return len(self._pending)

    @property
    def running(self) -> int:
        """How many of them an instance has said to run."""
        return sum(pending.state == RUNNING for pending in self._pending.values())

    async def call(self, order: Order) -> tuple[messages.Result, Pending]:
        """Run one call to its end.

        Raises the MeshError that the call ended in; a call always ends by `order.deadline`. When the
        waiting task is cancelled, the run is cancelled too.
        """
        if is_large(order.content):
            order = replace(order, content=await self.keep(order.content, order.deadline, order.run))
        span = call_spans.begin(order) if tracing.SDK in sys.modules else None
        if span is not None:
            order = replace(order, traceparent=span.traceparent)
        pending, call_id = self._register(order)
        try:
            self._send(pending, codec.encode(pending.call))
            return await pending.future, pending
        except asyncio.CancelledError:
            self._cancel(pending)
            self._tell(pending, "cancelled", "cancelled")
            raise
        except PayloadTooLarge as error:
            raise errors.PayloadTooLarge(f"{error}; {_LARGE}", stage=str(order.version)) from error
        except BrokerError as error:
            raise errors.Unreachable(str(error), stage=str(order.version)) from error
        finally:
            del self._pending[call_id]
            self.claims.forget(order.run)
            if pending.is_over_cleanly:
                self._free_ids.append(call_id)
            if span is not None:
                span.end(pending, sys.exc_info()[1], self._loop.time())

    @property
    def host(self) -> str:
        """The machine that this process and all instances are on; nothing when they are on several."""
        return self._fleet.shared_host

    async def keep(self, content: Content, deadline: float, owner: Hashable) -> Content:
        """Put a large content aside, for instances to fetch; see `Claims.store`."""
        return await self.claims.store(content, deadline, owner, self.host)

    def release(self, writers: Iterable[str], root: str) -> None:
        """Tell the instances that wrote claims for a root run that everything has been read."""
        forget = codec.encode(messages.Forget(root=root))
        for instance in writers:
            if self._connection.is_connected:
                self._connection.publish(subjects.control(instance, self._caller), forget)

    def give_credit(self, part: messages.Part, upto: int) -> None:
        """Tell the instance that sent `part` that there is room for parts below `upto`."""
        if self._connection.is_connected:
            credit = messages.Credit(run=part.run, attempt=part.attempt, upto=upto, at=part.at)
            self._connection.publish(subjects.control(part.instance, self._caller), codec.encode(credit))

    def close(self) -> None:
        """Fail what is still pending."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self.claims.close()
        for pending in self._pending.values():
            pending.fail(errors.Unreachable("the client was closed", stage=str(pending.version)))

    # Sending

    def _register(self, order: Order) -> tuple[Pending, str]:
        version = order.version
        subject, chain = self._facts(order)
        # A number is used again and again: nats-server caches what it knows of a subject, and few are enough.
        call_id = self._free_ids.pop() if self._free_ids else format(next(self._ids), "x")
        content = order.content
        call = messages.Call(
            order.run,
            order.root,
            order.parent,
            order.root_caller,
            1,
            self._session,
            call_id,
            self._left_ms(order.deadline),
            order.depth,
            order.budget,
            content.content_type,
            content.detail,
            memoryview(content.payload),
            order.traceparent,
            order.grant,
            order.at,
            self._caller if order.is_hop else "",
            order.credit,
            0.0,
            "",
            _NOBODY,
            order.is_near and self._fleet.shared_host != "",
        )
        if content.size_bytes > self._connection.max_payload - _MARGIN_BYTES:
            limit = self._connection.max_payload - _MARGIN_BYTES
            raise errors.PayloadTooLarge(f"{PayloadTooLarge(content.size_bytes, limit)}; {_LARGE}", stage=str(version))
        future = self._loop.create_future()
        pending = Pending(version, call, subject, order.deadline, chain, future, order.on_part, order.on_progress)
        self._pending[call_id] = pending
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_sweep_every_s(1), self._sweep)
        return pending, call_id

    def _facts(self, order: Order) -> tuple[str, Chain]:
        """Where the call goes, and what is to be known of its chain; kept where it is always the same."""
        version = order.version
        if order.chain is None:
            known = self._chains.get(version)
            if known is None:
                self._fleet.watch(version)
                known = subjects.call(version, self._caller), chain_of_call(version, order.attempts)
                self._chains[version] = known
            return known
        known_chain = self._sent_chains.get(id(order.chain))
        if known_chain is None or known_chain[0] is not order.chain:
            for stage in order.chain.stages.values():
                self._fleet.watch(stage)
            address = subjects.hop if order.is_hop else subjects.call
            if len(self._sent_chains) >= _MOST_KNOWN:
                self._sent_chains.clear()
            known_chain = self._sent_chains[id(order.chain)] = order.chain, address(version, self._caller)
        return known_chain[1], order.chain

    def _send(self, pending: Pending, envelope: bytes) -> None:
        """Publish on the live lane; while the server is away, the reconnect will send it."""
        pending.state, pending.instance, pending.at = SENT, "", pending.call.at
        if self._connection.is_connected:
            self._connection.publish(pending.subject, envelope, self._no_responders + pending.call.call)

    def _park(self, pending: Pending) -> None:
        """Nobody is there: leave it with the stream, and say that somebody waits."""
        if pending.parked_at == 0.0:
            pending.parked_at = self._loop.time()
        pending.state, pending.was_parked, pending.at = PARKED, True, pending.call.at
        park(
            self._connection,
            pending.subject,
            self._envelope(pending),
            self._no_responders + pending.call.call,
            pending.deadline - self._loop.time(),
            version=pending.version,
            demander=self._caller,
            call=pending.call,
            stages=pending.chain.after,
        )

    def _park_later(self, pending: Pending) -> None:
        """There is no stream: a server that has just started has none until the launcher has seen to it."""
        now = self._loop.time()
        pending.homeless_since = pending.homeless_since or now
        if now - pending.homeless_since > _HOMELESS_S:
            hint = "nothing starts instances here: is `algomesh up` (or a launcher) running?"
            pending.fail(errors.Unreachable(hint, stage=str(pending.version)))
        else:
            self._loop.call_later(RETRY_S, self._send_again, pending)

    def _send_again(self, pending: Pending) -> None:
        """Once more from the beginning: meanwhile an instance may be there, before there is a stream."""
        if pending.state == PARKED and not pending.future.done() and self._connection.is_connected:
            self._send(pending, self._envelope(pending))

    def _envelope(self, pending: Pending) -> bytes:
        """The call once more, with what is left of its time now."""
        pending.call = replace(pending.call, time_left_ms=self._left_ms(pending.deadline))
        return codec.encode(pending.call)

    def _left_ms(self, deadline: float) -> int:
        return max(1, int((deadline - self._loop.time()) * 1000))

    def _again(self, pending: Pending) -> None:
        if pending.parts:
            pending.fail(pending.cut())
            return
        pending.call = replace(pending.call, attempt=pending.call.attempt + 1)
        self._send(pending, self._envelope(pending))

    def _cancel(self, pending: Pending) -> None:
        if pending.instance and self._connection.is_connected:
            cancel = messages.Cancel(run=pending.call.run, attempt=pending.call.attempt, at=pending.at)
            self._connection.publish(subjects.control(pending.instance, self._caller), codec.encode(cancel))

    def _tell(self, pending: Pending, state: messages.RunState, error: str) -> None:
        """The record of a run that ended without an instance's word."""
        if self._connection.is_connected:
            event = record_of(pending, self._caller, state, error)
            self._connection.publish(subjects.caller_events(self._caller), codec.encode(messages.Events(runs=[event])))

    # Hearing

    def _on_reply(self, message: Message) -> None:
        answerer, call_id = self._answers.get(message.subject) or self._read_subject(message.subject)
        pending = self._pending.get(call_id)
        if pending is None:
            if answerer != _SERVER:
                self._on_late_reply(message)
            return
        if answerer == _SERVER:
            self._on_server_word(pending, message)
            return
        if answerer not in pending.chain.answerers:
            log.warning("foreign_answer_ignored", subject=message.subject, algorithm=str(pending.version))
            return
        try:
            reply = codec.decode_reply(message.data)
        except BadMessage as error:
            pending.fail(errors.MeshError(f"the instance answered in a way nobody can read: {error}"))
            return
        if reply.run != pending.call.run:
            return
        hear(pending, reply, self._loop.time())

    def _read_subject(self, subject: str) -> tuple[str, str]:
        """Who answers there, as `subjects.replies_of` has it, and which call. The same few come again and again."""
        if len(self._answers) >= _MOST_KNOWN:
            self._answers.clear()
        call_id = subject.rpartition(".")[2]
        known = self._answers[subject] = subject[: -self._tail - len(call_id)], call_id
        return known

    def _on_late_reply(self, message: Message) -> None:
        """Word of a call that is over: who still runs it is told so; a chain between two steps could not be."""
        try:
            reply = codec.decode_reply(message.data)
        except BadMessage:
            return
        if isinstance(reply, messages.Running | messages.Part) and self._connection.is_connected:
            cancel = messages.Cancel(run=reply.run, attempt=reply.attempt, at=reply.at)
            self._connection.publish(subjects.control(reply.instance, self._caller), codec.encode(cancel))

    def _on_server_word(self, pending: Pending, message: Message) -> None:
        """No responders for a live call, or the stream's answer to a parked one."""
        if message.status == NO_RESPONDERS:
            if pending.state == SENT:
                self._park(pending)
            elif pending.state == PARKED:
                self._park_later(pending)
            return
        refusal = stream_refusal(message.data)
        if refusal is None:
            pending.homeless_since = 0.0
        elif refusal[0] == UNAVAILABLE:
            self._park_later(pending)
        else:
            pending.fail(refused_parking(*refusal, stage=str(pending.version)))
            self._tell(pending, "refused", "overloaded")

    def _on_forbidden(self, operation: str, subject: str) -> None:
        if operation != "publish":
            return
        live = subject.removeprefix("park.")
        for pending in self._pending.values():
            if pending.subject == live:
                what = f"{self._caller} may not call it"
                hint = "ask for a key with the scope" if self._caller.startswith("k~") else "declare it in"
                form = f"call:{pending.version.algorithm}" if self._caller.startswith("k~") else "@algorithm(calls=[…])"
                pending.fail(errors.PermissionDenied(f"{what}; {hint} {form}", stage=str(pending.version)))

    def on_death(self, version: VersionId, death: messages.Death) -> None:
        """An instance is gone: what it had is sent again, or fails."""
        for pending in list(self._pending.values()):
            if pending.may_have_died_with(version, death.instance, death.reason):
                self._lose(pending, death.reason, death.detail)

    def on_unable(self, version: VersionId, unable: messages.Unable) -> None:
        """No instance will come for what is parked."""
        for pending in list(self._pending.values()):
            if pending.waits_for(version):
                pending.fail(errors.of_code(unable.code, unable.message, stage=str(version)))
                self._tell(pending, "refused", unable.code)

    def on_host_lost(self, launcher: str) -> None:
        """Every instance of this launcher is gone; who has heard nothing may have been there too."""
        for pending in list(self._pending.values()):
            if pending.state == SENT or (pending.state == RUNNING and pending.instance.startswith(f"{launcher}-")):
                self._lose(pending, "host_lost", "its launcher has gone")

    def _lose(self, pending: Pending, reason: str, detail: str) -> None:
        if pending.future.done():
            return
        error = pending.lost(reason, detail)
        self._tell(pending, "lost", reason if error is None else error.code)
        if error is None:
            self._once_more(pending)
        else:
            pending.fail(error)

    def _once_more(self, pending: Pending) -> None:
        """Send again after a death; parked, since the server may not yet know that the dead one listens no more."""
        pending.call = replace(pending.call, attempt=pending.call.attempt + 1)
        pending.instance, pending.parked_at = "", 0.0
        if self._connection.is_connected:
            self._park(pending)
        else:
            pending.state = SENT  # the reconnect will send it

    def _on_reconnect(self) -> None:
        """The server may have lost what was in flight and what was parked: send both again."""
        now = self._loop.time()
        self._fleet.forgive()
        for pending in list(self._pending.values()):
            if pending.state == RUNNING:
                pending.doubted_at = now
            elif not pending.future.done():
                self._again(pending)

    def _sweep(self) -> None:
        """One timer for every deadline and every silence."""
        now = self._loop.time()
        self._sweeping = None
        self._fleet.sweep(now)
        for pending in list(self._pending.values()):
            if now >= pending.deadline:
                self._expire(pending)
            elif pending.doubted_at and now - pending.doubted_at > _DOUBT_S:
                pending.doubted_at = 0.0
                self._again(pending)
        if self._pending:
            self._sweeping = self._loop.call_later(_sweep_every_s(len(self._pending)), self._sweep)

    def _expire(self, pending: Pending) -> None:
        if pending.future.done():
            return
        self._cancel(pending)
        self._tell(pending, "expired", "deadline_exceeded")
        pending.fail(
            errors.DeadlineExceeded(
                _EXPIRED[pending.state].format(instance=pending.instance), stage=str(pending.version)
            )
        )


def _sweep_every_s(pending: int) -> float:
    return 0.02 if pending < 1000 else 0.25


_LARGE = "send it in parts, or put it where the algorithm can fetch it and send the address"
_EXPIRED = {
    SENT: "no answer came in time; its instance is busy or hangs. Give more time (timeout=…), or see `algomesh ps`",
    PARKED: "no instance was free or started in time. Give more time (timeout=…), or see `algomesh ps`",
    RUNNING: "it still ran (instance {instance}) when your time was over. Give more time (timeout=…)",
}
