"""One TCP connection to a NATS server: opened, greeted and authenticated here, then read by its owner.

`Connection` opens one at the start and one after every loss. Source of the handshake:
https://docs.nats.io/reference/reference-protocols/nats-protocol. The server says INFO, we say CONNECT
and PING, and its PONG means that it took us. Until `hand_over` the link answers for itself; from then
on the parser calls the owner directly, so that a message costs no call more than it must.
"""

import asyncio
import base64
import ssl
from collections.abc import Callable
from typing import Self, cast
from urllib.parse import urlsplit

import msgspec

from algomesh_broker.errors import BadMessage, Unauthenticated, Unreachable
from algomesh_broker.identity import Identity
from algomesh_broker.protocol import Message, Parser, Receiver
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.connection")

_PORT = 4222
_MAX_PAYLOAD_BYTES = 2**20  # of a server that does not say
_AUTH_WORDS = ("authorization violation", "authentication")


class Link(asyncio.Protocol):
    """A socket to the server, its parser, and the handshake. Open it with `Link.open`."""

    def __init__(self, on_lost: Callable[["Link"], None]) -> None:
        loop = asyncio.get_running_loop()
        self.max_payload = _MAX_PAYLOAD_BYTES
        self.gone = asyncio.Event()
        self._on_lost = on_lost
        self._parser = Parser(self)
        self._transport: asyncio.Transport | None = None
        self._info: asyncio.Future[bytes] = loop.create_future()
        self._pong: asyncio.Future[None] = loop.create_future()

    @classmethod
    async def open(
        cls, url: str, identity: Identity, name: str, on_lost: Callable[["Link"], None], *, pause_s: float = 0.0
    ) -> Self:
        """One attempt: TCP (and TLS), INFO, CONNECT, PING, PONG.

        `on_lost` is called when the socket is closed, whoever closed it. `pause_s` is waited between INFO
        and CONNECT where the server wants to know who we are. Raises Unauthenticated, Unreachable, OSError;
        the caller sets a timeout.
        """
        address = urlsplit(url if "//" in url else f"nats://{url}")
        host, port = address.hostname or "127.0.0.1", address.port or _PORT
        loop = asyncio.get_running_loop()
        link = cls(on_lost)
        transport, _ = await loop.create_connection(lambda: link, host, port)
        try:
            info = msgspec.json.decode(await link._info)
            link.max_payload = int(info.get("max_payload", _MAX_PAYLOAD_BYTES))
            if address.scheme == "tls" or info.get("tls_required"):
                tls = await loop.start_tls(transport, link, ssl.create_default_context(), server_hostname=host)
                assert tls is not None
                link._transport = tls
            if pause_s and info.get("auth_required"):
                await asyncio.sleep(pause_s)
            hello = _hello(name) | _credentials(identity, info.get("nonce", ""))
            link.write(b"CONNECT %b\r\nPING\r\n" % msgspec.json.encode(hello))
            await link._pong
        except BaseException:
            link.close()
            raise
        return link

    def hand_over(self, owner: Receiver) -> None:
        """The handshake is over; what is read from now on is the owner's."""
        self._parser.receiver = owner

    def write(self, data: bytes) -> None:
        """Hand bytes to the transport."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close after what is buffered has been written."""
        if self._transport is None:
            self.gone.set()
        else:
            self._transport.close()
        for future in (self._info, self._pong):
            future.cancel()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """Bytes were read."""
        try:
            self._parser.feed(data)
        except (ValueError, IndexError) as error:  # BadMessage is a ValueError
            if not isinstance(error, BadMessage):
                error = BadMessage("the server sent what is not NATS; is this a NATS port?")
            if self._pong.done():  # before that, whoever opens the link hears of it
                log.warning("protocol_error", error=str(error))
            self._fail(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._fail(exc or ConnectionError("the server closed the connection"))
        self.gone.set()
        self._on_lost(self)

    def _fail(self, error: Exception) -> None:
        for future in (self._info, self._pong):
            if not future.done():
                future.set_exception(Unreachable(str(error)))
                future.exception()  # read: nobody may be waiting

    # The parser's receiver during the handshake

    def on_message(self, sid: int, message: Message) -> None:
        """Nothing is subscribed yet."""

    def on_info(self, json: bytes) -> None:
        """The first line a server sends."""
        if not self._info.done():
            self._info.set_result(json)

    def on_ping(self) -> None:
        """Answer at once."""
        self.write(b"PONG\r\n")

    def on_pong(self) -> None:
        """The server took our CONNECT."""
        if not self._pong.done():
            self._pong.set_result(None)

    def on_error(self, text: str) -> None:
        """The server did not take our CONNECT."""
        refused = any(word in text.lower() for word in _AUTH_WORDS)
        error = Unauthenticated("the mesh does not know this key") if refused else Unreachable(text)
        if not self._pong.done():
            self._pong.set_exception(error)
            self._pong.exception()


def _hello(name: str) -> dict[str, object]:
    return {
        "verbose": False, "pedantic": False, "lang": "python", "version": "algomesh-0.1", "protocol": 1,
        "headers": True, "no_responders": True, "name": name,
    }  # fmt: skip


def _credentials(identity: Identity, nonce: str) -> dict[str, object]:
    if identity.seed is None:
        return {"auth_token": identity.token} if identity.token else {}
    import nkeys  # only programs of the mesh sign; callers and instances need no such package

    pair = nkeys.from_seed(bytearray(identity.seed))
    signature = base64.urlsafe_b64encode(pair.sign(nonce.encode())).rstrip(b"=").decode()
    return {"nkey": cast("bytes", pair.public_key).decode(), "sig": signature}
