"""The mesh's connection to NATS: publish and subscribe by plain functions that never wait.

Everything above speaks through this class, so no other module knows what is under it (ADR 0002).
What it guarantees: a publish is written in order, at the end of the loop's turn, together with all
others of that turn; a callback runs inside the read, in order; `leave()` keeps its callback until the
server has confirmed, so nothing that was routed is dropped; a lost connection is taken up again for
ever, and subscriptions with it, until `close()`. While it is down, publishes are kept (up to 16 MiB)
and go out after the reconnect; who would rather send anew looks at `is_connected` first.
"""

import asyncio
import base64
import contextlib
import itertools
import random
import re
import secrets
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Self, cast
from urllib.parse import urlsplit

import msgspec
import structlog

from algomesh_broker.errors import BadMessage, BrokerError, Forbidden, PayloadTooLarge, Unauthenticated, Unreachable
from algomesh_broker.identity import Identity
from algomesh_broker.protocol import NO_RESPONDERS, Message, Parser, format_publish

__all__ = ["Connection", "Message", "Subscription"]

log = structlog.get_logger("algomesh.connection")

Callback = Callable[[Message], None]

_PENDING_LIMIT_BYTES = 16 * 2**20
_PING_EVERY_S = 20.0
_RETRY_FIRST_S, _RETRY_LAST_S, _RETRY_REFUSED_S = 0.05, 0.5, 10.0
_REFUSALS_TO_BELIEVE = 20
_REFUSAL = re.compile(r"Permissions Violation for (Publish|Subscription) to \"([^\"]*)\"", re.IGNORECASE)
_AUTH_WORDS = ("authorization violation", "authentication")


class Subscription:
    """A standing interest in a subject; ends with `leave()`."""

    def __init__(self, connection: "Connection", sid: int, subject: str, queue: str, callback: Callback) -> None:
        self._connection = connection
        self.sid, self.subject, self.queue, self.callback = sid, subject, queue, callback
        # JetStream delivers a pulled message under its own subject wherever the puller's reply field points, so a
        # message may arrive that was published elsewhere (ADR 0004). Only an inbox expects such; who pulls, checks.
        self.prefix = "" if subject.startswith("_INBOX.") else re.split(r"[*>]", subject, maxsplit=1)[0]

    def leave(self) -> "asyncio.Future[None]":
        """Stop new messages; what the server had routed before still reaches the callback until the future is done."""
        return self._connection._leave(self)


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
        self._link: _Link | None = None
        self._sids = itertools.count(1)
        self._subscriptions: dict[int, Subscription] = {}
        self._out: list[bytes] = []
        self._kept_bytes = 0
        self._flushing = False
        self._pongs: deque[Callable[[Exception | None], None]] = deque()
        self._asking: dict[str, asyncio.Future[Message]] = {}
        self._inbox: Subscription | None = None
        self._inbox_ids = itertools.count(1)
        self._asks = f"ask-{secrets.token_hex(6)}"  # connections of one identity share its inbox
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
        self._write(format_publish(subject, payload, reply, headers))

    def join(self, subject: str, callback: Callback, queue: str = "") -> Subscription:
        """Subscribe without waiting for the server's word; for subjects that are known to be allowed."""
        subscription = Subscription(self, next(self._sids), subject, queue, callback)
        self._subscriptions[subscription.sid] = subscription
        if self.is_connected:
            self._write(_format_subscribe(subscription))
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
        self._ping(lambda error: _settle(done, error))
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError as error:
            raise Unreachable(f"the NATS server at {self._url} did not answer within {timeout_s:g} s") from error

    async def request(self, subject: str, payload: bytes = b"", timeout_s: float = 5.0) -> Message:
        """Publish and wait for one answer in this identity's inbox.

        Raises Forbidden when the publish is refused, Unreachable when nobody listens or answers in time.
        """
        if self._inbox is None:
            self._inbox = self.join(f"{self.identity.inbox}.{self._asks}.*", self._on_answer)
        reply = f"{self.identity.inbox}.{self._asks}.{next(self._inbox_ids)}"
        future: asyncio.Future[Message] = self._loop.create_future()
        self._asking[reply] = future

        def refuse(operation: str, named: str) -> None:
            if operation == "publish" and named == subject and not future.done():
                future.set_exception(Forbidden("publish to", subject))

        self.on_forbidden.append(refuse)
        try:
            self.publish(subject, payload, reply)
            async with asyncio.timeout(timeout_s):
                message = await future
        except TimeoutError as error:
            raise Unreachable(f"no answer on {subject!r} within {timeout_s:g} s") from error
        finally:
            self._asking.pop(reply, None)
            self.on_forbidden.remove(refuse)
        if message.status == NO_RESPONDERS:
            raise Unreachable(f"nobody answers on {subject!r}")
        return message

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
        self._flushing = False
        if self._out and self._link is not None and self.is_connected:
            data = b"".join(self._out)
            self._out.clear()
            self._link.write(data)

    def _ping(self, done: Callable[[Exception | None], None]) -> None:
        if not self.is_connected:
            done(Unreachable(f"the NATS server at {self._url} is away"))
            return
        self._pongs.append(done)
        self._write(b"PING\r\n")

    def _leave(self, subscription: Subscription) -> "asyncio.Future[None]":
        done = self._loop.create_future()

        def confirmed(_: Exception | None) -> None:
            self._subscriptions.pop(subscription.sid, None)
            _settle(done, None)

        if self.is_connected:
            self._write(b"UNSUB %d\r\n" % subscription.sid)
            self._ping(confirmed)
        else:
            confirmed(None)
        return done

    # Reading: the parser's receiver

    def on_message(self, sid: int, message: Message) -> None:
        """Hand a message to its subscription; an error in a callback is logged, and ends nothing."""
        subscription = self._subscriptions.get(sid)
        if subscription is None:
            return
        if not message.subject.startswith(subscription.prefix):
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

    def _on_answer(self, message: Message) -> None:
        # JetStream and the server answer with the inbox as the message's subject.
        future = self._asking.get(message.subject)
        if future is not None and not future.done():
            future.set_result(message)

    # Connecting and staying connected

    async def _connect_within(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        delay_s = _RETRY_FIRST_S
        while True:
            began = time.monotonic()
            try:
                async with asyncio.timeout_at(self._loop.time() + max(0.1, deadline - began)):
                    await self._connect()
            except Unauthenticated:
                # The server gives the registry two seconds to answer; a quick no is the registry's own.
                if time.monotonic() - began < 1.0 or time.monotonic() >= deadline:
                    raise
            except (OSError, TimeoutError, BrokerError) as error:
                if time.monotonic() + delay_s >= deadline:
                    raise Unreachable(f"no NATS server answers at {self._url}: {error or 'timed out'}") from error
            else:
                return
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _RETRY_LAST_S)

    async def _connect(self) -> None:
        """One attempt: TCP (and TLS), INFO, CONNECT, PING, PONG; then every subscription again."""
        address = urlsplit(self._url if "//" in self._url else f"nats://{self._url}")
        link = _Link(self)
        host, port = address.hostname or "127.0.0.1", address.port or 4222
        transport, _ = await self._loop.create_connection(lambda: link, host, port)
        try:
            info = msgspec.json.decode(await link.info)
            self.max_payload = int(info.get("max_payload", self.max_payload))
            if address.scheme == "tls" or info.get("tls_required"):
                tls = await self._loop.start_tls(transport, link, ssl.create_default_context(), server_hostname=host)
                assert tls is not None
                link.transport = tls
            link.write(b"CONNECT %b\r\nPING\r\n" % msgspec.json.encode(self._hello(info.get("nonce", ""))))
            await link.pong
        except BaseException:
            link.close()
            raise
        self._take(link)

    def _hello(self, nonce: str) -> dict[str, object]:
        hello: dict[str, object] = {
            "verbose": False, "pedantic": False, "lang": "python", "version": "algomesh-0.1", "protocol": 1,
            "headers": True, "no_responders": True, "name": self._name,
        }  # fmt: skip
        return hello | _credentials(self.identity, nonce)

    def _take(self, link: "_Link") -> None:
        self._link = link
        self._lost.clear()
        link.connected(self)
        self.is_connected = True
        self._kept_bytes = 0
        again = b"".join(map(_format_subscribe, self._subscriptions.values()))
        if again:
            self._out.insert(0, again)
        self._flush()

    def _link_lost(self, link: "_Link") -> None:
        if link is not self._link:
            return
        self.is_connected, self._link = False, None
        self._fail_waiting(Unreachable(f"the connection to {self._url} was lost"))
        if not self._closed:
            for hook in tuple(self.on_disconnect):
                hook()
        self._lost.set()

    def _fail_waiting(self, error: Exception) -> None:
        while self._pongs:
            self._pongs.popleft()(error)
        for future in self._asking.values():
            _settle(future, error)

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
        delay_s, refusals = _RETRY_FIRST_S, 0
        while True:
            try:
                async with asyncio.timeout(5.0):
                    await self._connect()
                break
            except (OSError, TimeoutError, BrokerError) as error:
                log.debug("reconnect_failed", url=self._url, error=str(error))
                refusals += isinstance(error, Unauthenticated)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
            # Refused again and again: the key was revoked, not the registry late.
            delay_s = _RETRY_REFUSED_S if refusals > _REFUSALS_TO_BELIEVE else min(2 * delay_s, _RETRY_LAST_S)
        log.info("reconnected", url=self._url)
        for hook in tuple(self.on_reconnect):
            hook()


class _Link(asyncio.Protocol):
    """One TCP connection: collects INFO and PONG of the handshake, then feeds its owner."""

    def __init__(self, owner: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._owner = owner
        self._parser = Parser(self)
        self.transport: asyncio.Transport | None = None
        self.info: asyncio.Future[bytes] = loop.create_future()
        self.pong: asyncio.Future[None] = loop.create_future()
        self.gone = asyncio.Event()

    def connected(self, owner: Connection) -> None:
        """The handshake is over; what comes now is the owner's."""
        self._parser.receiver = owner

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """Close after what is buffered has been written."""
        if self.transport is None:
            self.gone.set()
        else:
            self.transport.close()
        for future in (self.info, self.pong):
            future.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is open."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes were read."""
        try:
            self._parser.feed(data)
        except (BadMessage, ValueError, IndexError) as error:
            log.warning("protocol_error", error=str(error))
            self._fail(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the socket is closed."""
        self._fail(exc or ConnectionError("the server closed the connection"))
        self.gone.set()
        self._owner._link_lost(self)

    def _fail(self, error: Exception) -> None:
        for future in (self.info, self.pong):
            if not future.done():
                future.set_exception(Unreachable(str(error)))
                future.exception()  # read: nobody may be waiting

    # The parser's receiver during the handshake

    def on_message(self, sid: int, message: Message) -> None:
        """Nothing is subscribed yet."""

    def on_info(self, json: bytes) -> None:
        """The first line a server sends."""
        if not self.info.done():
            self.info.set_result(json)

    def on_ping(self) -> None:
        """Answer at once."""
        self.write(b"PONG\r\n")

    def on_pong(self) -> None:
        """The server took our CONNECT."""
        if not self.pong.done():
            self.pong.set_result(None)

    def on_error(self, text: str) -> None:
        """The server did not take our CONNECT."""
        refused = any(word in text.lower() for word in _AUTH_WORDS)
        error = Unauthenticated("the mesh does not know this key") if refused else Unreachable(text)
        if not self.pong.done():
            self.pong.set_exception(error)
            self.pong.exception()


def _credentials(identity: Identity, nonce: str) -> dict[str, object]:
    if identity.seed is None:
        return {"auth_token": identity.token} if identity.token else {}
    import nkeys  # only programs of the mesh sign; callers and instances need no such package

    pair = nkeys.from_seed(bytearray(identity.seed))
    signature = base64.urlsafe_b64encode(pair.sign(nonce.encode())).rstrip(b"=").decode()
    return {"nkey": cast("bytes", pair.public_key).decode(), "sig": signature}


def _settle(future: "asyncio.Future[None] | asyncio.Future[Message]", error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)  # type: ignore[arg-type]  # only flush and leave settle without an error
    else:
        future.set_exception(error)


def _format_subscribe(subscription: Subscription) -> bytes:
    queue = f" {subscription.queue}" if subscription.queue else ""
    return f"SUB {subscription.subject}{queue} {subscription.sid}\r\n".encode()
