"""The mesh's connection to NATS: publish and subscribe by plain functions that never wait.

Everything above speaks through this class, so no other module knows what is under it (ADR 0002).
What it guarantees: a publish is written in order, at the end of the loop's turn, together with all
others of that turn; a callback runs inside the read, in order; `leave()` keeps its callback until the
server has confirmed, so nothing that was routed is dropped; a lost connection is taken up again for
ever, and subscriptions with it, until `close()`. While it is down, publishes are kept (up to 16 MiB)
and go out after the reconnect; who would rather send anew looks at `is_connected` first.

Under it: `link.py` (one socket and its handshake), `protocol.py` (bytes), `retry.py` (when to try again),
`subscription.py` and `inbox.py` (requests and their answers).
"""

import asyncio
import contextlib
import itertools
import re
from collections import deque
from collections.abc import Callable
from typing import Self

import msgspec

from algomesh_broker.errors import BrokerError, Forbidden, PayloadTooLarge, Unauthenticated, Unreachable
from algomesh_broker.identity import Identity
from algomesh_broker.inbox import Inbox
from algomesh_broker.link import Link
from algomesh_broker.protocol import Message, Publisher, format_with_headers
from algomesh_broker.retry import Retry, is_silence
from algomesh_broker.rider import Rider
from algomesh_broker.subscription import Callback, Subscription
from algomesh_observability.logger import get_logger

__all__ = ["Connection", "Message", "Subscription"]

log = get_logger("algomesh.connection")

_PENDING_LIMIT_BYTES = 16 * 2**20
_PING_EVERY_S = 20.0
_ATTEMPT_S = 5.0
_PING = b"PING\r\n"
# What JetStream adds to a message that is read from a stream, and sent where the reader pointed: what it says may be
# the reader's own, a forged call too, and only these headers tell (ADR 0008). Inboxes expect such.
_OF_A_STREAM = frozenset(("Nats-Stream", "Nats-Sequence"))
_REFUSAL = re.compile(r"Permissions Violation for (Publish|Subscription) to \"([^\"]*)\"", re.IGNORECASE)


class Connection:
    """One connection to NATS under one identity. Open it with `Connection.open`."""

    def __init__(self, url: str, identity: Identity, name: str) -> None:
        self.identity = identity
        self.max_payload = 2**20
        self.is_connected = False
        self.on_forbidden: list[Callable[[str, str], None]] = []
        self.on_reconnect: list[Callable[[], None]] = []
        self.on_disconnect: list[Callable[[], None]] = []
        self._url, self._name = url, name
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._sids = itertools.count(1)
        self._subscriptions: dict[int, Subscription] = {}
        self._publisher = Publisher()
        self._out: list[bytes] = []
        self._kept_bytes = 0
        self._flushing = False
        self._riders: list[Rider] = []
        self._pongs: deque[Callable[[Exception | None], None]] = deque()
        self._inbox = Inbox(self)
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._closed = False

    @classmethod
    async def open(
        cls,
        url: str,
        identity: Identity,
        *,
        name: str = "algomesh",
        timeout_s: float = 5.0,
        on_reconnect: Callable[[], None] | None = None,
    ) -> Self:
        """Connect, authenticated, within `timeout_s` seconds.

        Raises Unauthenticated when the server refuses the identity, Unreachable when no server
        answers at `url` (`nats://host:port` or `tls://host:port`) in time.
        """
        connection = cls(url, identity, name)
        if on_reconnect is not None:
            connection.on_reconnect.append(on_reconnect)
        await connection._connect_within(timeout_s)
        connection._keeper = connection._loop.create_task(connection._keep(), name=f"nats-keeper-{name}")
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Publishing and subscribing

    def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send a message; never waits. Raises PayloadTooLarge, and Unreachable when too much is kept already."""
        if len(payload) > self.max_payload:
            raise PayloadTooLarge(len(payload), self.max_payload)
        if headers is not None:
            self._write(format_with_headers(subject, payload, reply, headers))
        elif self._flushing:
            self._out.append(self._publisher.format(subject, payload, reply))
        else:
            self._write(self._publisher.format(subject, payload, reply))

    def join(self, subject: str, callback: Callback, queue: str = "") -> Subscription:
        """Subscribe without waiting for the server's word; for subjects that are known to be allowed."""
        subscription = Subscription(self, next(self._sids), subject, queue, callback)
        self._subscriptions[subscription.sid] = subscription
        if self.is_connected:
            self._write(subscription.format_subscribe())
        return subscription

    async def subscribe(
        self, subject: str, callback: Callback, queue: str = "", timeout_s: float = 5.0
    ) -> Subscription:
        """Subscribe, and return once the server has it. Raises Forbidden, Unreachable."""
        refused: list[Forbidden] = []

        def refuse(operation: str, named: str) -> None:
            if operation == "subscription" and named == subject:
                refused.append(Forbidden("subscribe to", subject))

        self.on_forbidden.append(refuse)
        subscription = self.join(subject, callback, queue)
        try:
            await self.flush(timeout_s)
        finally:
            self.on_forbidden.remove(refuse)
        if refused:
            self._subscriptions.pop(subscription.sid, None)
            raise refused[0]
        return subscription

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Return when the server has processed all that was sent. Raises Unreachable."""
        done = self._loop.create_future()
        self.ping(lambda error: _settle(done, error))
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError as error:
            raise Unreachable(f"the NATS server at {self._url} did not answer within {timeout_s:g} s") from error

    async def request(self, subject: str, payload: bytes = b"", timeout_s: float = 5.0) -> Message:
        """Publish and wait for one answer in this identity's inbox.

        Raises Forbidden when the publish is refused, Unreachable when nobody listens or answers in time.
        """
        return await self._inbox.ask(subject, payload, timeout_s)

    async def close(self) -> None:
        """Write what is left, and close. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._link is not None:
            if self.is_connected:
                self._flush()
            link, self._link = self._link, None
            link.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await link.gone.wait()
        self.is_connected = False
        self._fail_waiting(Unreachable("the connection was closed"))

    def rider(self, send: Callable[[], None], ready_s: float, latest_s: float) -> Rider:
        """What `send` publishes once it is armed: together with other things after `ready_s`, else after `latest_s`."""
        rider = Rider(send, ready_s, latest_s)
        self._riders.append(rider)
        return rider

    # Writing

    def _write(self, data: bytes) -> None:
        if self._closed:
            raise Unreachable("the connection is closed")
        if not self.is_connected:
            self._kept_bytes += len(data)
            if self._kept_bytes > _PENDING_LIMIT_BYTES:
                self._kept_bytes -= len(data)
                raise Unreachable(f"the NATS server at {self._url} is away, and 16 MiB wait for it already")
        self._out.append(data)
        if not self._flushing and self.is_connected:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._riders and self.is_connected:
            self._flushing = True  # what they publish goes along
            now = self._loop.time()
            for rider in self._riders:
                if rider.ready_at <= now:
                    rider.go()
        self._flushing = False
        if self._out and self._link is not None and self.is_connected:
            data = b"".join(self._out)
            self._out.clear()
            self._link.write(data)

    def ping(self, done: Callable[[Exception | None], None]) -> None:
        """Call `done` when the server has dealt with all that was sent until now; with an error if nobody can know."""
        if not self.is_connected:
            done(Unreachable(f"the NATS server at {self._url} is away"))
            return
        self._pongs.append(done)
        self._write(_PING)

    def _leave(self, subscription: Subscription) -> "asyncio.Future[None]":
        done = self._loop.create_future()

        def confirmed(_: Exception | None) -> None:
            self._subscriptions.pop(subscription.sid, None)
            _settle(done, None)

        if self.is_connected:
            self._write(b"UNSUB %d\r\n" % subscription.sid)
            self.ping(confirmed)
        else:
            confirmed(None)
        return done

    # Reading: the parser's receiver

    def on_message(self, sid: int, message: Message) -> None:
        """Hand a message to its subscription; an error in a callback is logged, and ends nothing."""
        subscription = self._subscriptions.get(sid)
        if subscription is None:
            return
        prefix = subscription.prefix
        is_read = message.headers is not None and not _OF_A_STREAM.isdisjoint(message.headers)
        if not message.subject.startswith(prefix) or (is_read and prefix):
            log.warning("steered_message_ignored", subject=message.subject, subscription=subscription.subject)
            return
        try:
            subscription.callback(message)
        except Exception:
            log.exception("callback_failed", subject=message.subject)

    def on_info(self, json: bytes) -> None:
        """The server's limits may change while connected."""
        self.max_payload = int(msgspec.json.decode(json).get("max_payload", self.max_payload))

    def on_ping(self) -> None:
        """Answer at once."""
        if self._link is not None:
            self._link.write(b"PONG\r\n")

    def on_pong(self) -> None:
        """Confirm the oldest PING."""
        if self._pongs:
            self._pongs.popleft()(None)

    def on_error(self, text: str) -> None:
        """A refusal goes to whoever waits; anything else ends the link, and the keeper reconnects."""
        refused = _REFUSAL.search(text)
        if refused is None:
            log.warning("server_error", error=text)
            return
        operation, subject = refused.group(1).lower(), refused.group(2)
        for hook in tuple(self.on_forbidden):
            hook(operation, subject)

    # Connecting and staying connected

    async def _connect_within(self, timeout_s: float) -> None:
        deadline = self._loop.time() + timeout_s
        retry = self._new_retry()
        while True:
            began = self._loop.time()
            try:
                async with asyncio.timeout_at(max(deadline, began + 0.1)):
                    self._take(await self._open_link())
            except (OSError, TimeoutError, BrokerError) as error:
                now = self._loop.time()
                took_s = now - began
                wait_s = retry.wait_s(error, took_s=took_s, now=now)
                if isinstance(error, Unauthenticated):
                    if not is_silence(error, took_s) or now >= deadline:
                        raise
                elif now + wait_s >= deadline:
                    raise Unreachable(f"no NATS server answers at {self._url}: {error or 'timed out'}") from error
            else:
                return
            await asyncio.sleep(wait_s)

    async def _open_link(self, *, pause_s: float = 0.0) -> Link:
        return await Link.open(self._url, self.identity, self._name, self._link_lost, pause_s=pause_s)

    def _new_retry(self) -> Retry:
        return Retry(is_program=self.identity.seed is not None, now=self._loop.time())

    def _take(self, link: Link) -> None:
        """Every subscription again, and what was kept; nothing may be waited for between the PONG and this."""
        self._link = link
        self.max_payload = link.max_payload
        self._lost.clear()
        link.hand_over(self)
        self.is_connected = True
        self._kept_bytes = 0
        again = b"".join(map(Subscription.format_subscribe, self._subscriptions.values()))
        if again:
            self._out.insert(0, again)
        self._flush()

    def _link_lost(self, link: Link) -> None:
        if link is not self._link:
            return
        self.is_connected, self._link = False, None
        self._fail_waiting(Unreachable(f"the connection to {self._url} was lost"))
        if not self._closed:
            for hook in tuple(self.on_disconnect):
                hook()
        self._lost.set()

    def _fail_waiting(self, error: Exception) -> None:
        # Unsent ones too: the next server's answer to them would be taken for that to a later one.
        self._out = [data for data in self._out if data is not _PING]
        while self._pongs:
            self._pongs.popleft()(error)
        self._inbox.fail(error)

    async def _keep(self) -> None:
        """Ping now and then; when the link is gone, connect again for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_EVERY_S):
                    await self._lost.wait()
            if self.is_connected:
                try:
                    await self.flush(_PING_EVERY_S)
                except Unreachable:
                    if self._link is not None:
                        self._link.close()
                continue
            await self._reconnect()

    async def _reconnect(self) -> None:
        retry = self._new_retry()
        while True:
            began = self._loop.time()
            try:
                async with asyncio.timeout(_ATTEMPT_S):
                    self._take(await self._open_link(pause_s=retry.pause_s()))
                break
            except (OSError, TimeoutError, BrokerError) as error:
                log.debug("reconnect_failed", url=self._url, error=str(error))
                now = self._loop.time()
                wait_s = retry.wait_s(error, took_s=now - began, now=now)
            await asyncio.sleep(wait_s)
        log.info("reconnected", url=self._url)
        for hook in tuple(self.on_reconnect):
            hook()


def _settle(future: "asyncio.Future[None]", error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
