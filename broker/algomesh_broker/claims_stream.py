"""Payloads in the stream `claims`: pieces of 512 KiB, for readers anywhere (ADR 0008).

A claim's id is `<caller>.<32 hex digits>`; who knows it may read, only that caller may write. Pieces are published and
read through a window, in order, so memory stays flat and a round trip is not paid for each. A piece expires by itself;
its writer deletes it sooner by an empty one that lives for a second.
"""

import asyncio
import itertools
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

from algomesh_broker import codec, subjects
from algomesh_broker.claims_shm import MAX_CLAIM_BYTES
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import (
    BadMessage,
    BrokerError,
    ClaimGone,
    Forbidden,
    PayloadTooLarge,
    StreamError,
    Unreachable,
)
from algomesh_broker.messages import Claim
from algomesh_broker.protocol import NO_RESPONDERS

CHUNK_BYTES = 512 * 1024
_PUT_WINDOW, _GET_WINDOW = 8, 8
_TTL, _GONE_SOON = "Nats-TTL", {"Nats-TTL": "1s"}
_NOT_FOUND = 404
_SILENCE_S = 10.0
_ID = re.compile(r"[a-z0-9_-]+~[a-z0-9_-]+\.[0-9a-f]{32}", re.ASCII)


class ClaimStream:
    """Reads and writes claims in the stream, over one connection. `close` it before the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        # Not to be guessed, so that nobody can have JetStream answer here in our place.
        self._prefix = f"{connection.identity.inbox}.claim-{secrets.token_hex(12)}"
        self._numbers = itertools.count(1)
        self._asked: dict[str, tuple[str, asyncio.Future[Message]]] = {}
        self._is_open = False

    def new_id(self) -> str:
        """An id for a new claim of this connection's caller."""
        return f"{self._connection.identity.caller}.{secrets.token_hex(16)}"

    async def put(self, claim_id: str, pieces: AsyncIterator[memoryview], ttl_s: float) -> Claim:
        """Store the pieces, each of CHUNK_BYTES but the last, for `ttl_s` seconds (at least one, in whole seconds).

        When it fails, what it had stored is deleted. Raises PayloadTooLarge above 1 GiB, StreamError when the stream
        is full, Forbidden, Unreachable.
        """
        headers = {_TTL: f"{max(1, int(ttl_s + 0.999))}s"}
        answers: deque[tuple[str, asyncio.Future[Message]]] = deque()
        size = count = 0
        try:
            async for piece in pieces:
                size += len(piece)
                if size > MAX_CLAIM_BYTES:
                    raise PayloadTooLarge(size, MAX_CLAIM_BYTES)
                if len(answers) >= _PUT_WINDOW:
                    _check_stored(await self._answer(*answers.popleft()))
                # the publisher takes any buffer; a copy of each piece would be for the type alone.
                data = cast("bytes", piece)
                answers.append(self._ask(subjects.claim_chunk(claim_id, count), data, headers))
                count += 1
            while answers:
                _check_stored(await self._answer(*answers.popleft()))
        except BaseException:
            self._forget(answers)
            self._remove(claim_id, count)
            raise
        return Claim(id=claim_id, size_bytes=size, chunks=count)

    async def pieces(self, claim: Claim) -> AsyncGenerator[memoryview, None]:
        """The claim's pieces in order. Raises ClaimGone, Forbidden, Unreachable."""
        _check(claim)
        answers: deque[tuple[str, asyncio.Future[Message]]] = deque()
        asked = 0
        try:
            for number in range(claim.chunks):
                while asked < min(claim.chunks, number + _GET_WINDOW):
                    answers.append(self._ask(subjects.read_claim(claim.id, asked)))
                    asked += 1
                message = await self._answer(*answers.popleft())
                yield _checked_piece(claim, number, message)
        finally:
            self._forget(answers)

    def delete(self, claim: Claim) -> bool:
        """Delete a claim that this connection's caller wrote; never waits. False for another's."""
        _check(claim)
        if claim.id.partition(".")[0] != self._connection.identity.caller:
            return False
        return self._remove(claim.id, claim.chunks)

    def close(self) -> None:
        """Let go of what was asked."""
        if self._is_open:
            self._is_open = False
            self._connection.on_forbidden.remove(self._on_forbidden)
            self._connection.on_disconnect.remove(self._on_disconnect)
            self._subscription.leave()
            self._fail(Unreachable("the claims were closed"))

    def _open(self) -> None:
        self._is_open = True
        self._subscription = self._connection.join(f"{self._prefix}.*", self._on_answer)
        self._connection.on_forbidden.append(self._on_forbidden)
        self._connection.on_disconnect.append(self._on_disconnect)

    def _ask(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[str, "asyncio.Future[Message]"]:
        if not self._connection.is_connected:
            raise Unreachable("the NATS server is away")
        if not self._is_open:
            self._open()
        reply = f"{self._prefix}.{next(self._numbers)}"
        future: asyncio.Future[Message] = self._loop.create_future()
        self._connection.publish(subject, payload, reply, headers)
        self._asked[reply] = subject, future
        return reply, future

    async def _answer(self, reply: str, future: "asyncio.Future[Message]") -> Message:
        try:
            async with asyncio.timeout(_SILENCE_S):
                message = await future
        except TimeoutError as error:
            raise Unreachable(f"the stream of claims did not answer within {_SILENCE_S:g} s") from error
        finally:
            self._asked.pop(reply, None)
        if message.status == NO_RESPONDERS:
            raise Unreachable("there is no stream of claims")
        return message

    def _forget(self, answers: "deque[tuple[str, asyncio.Future[Message]]]") -> None:
        for reply, future in answers:
            self._asked.pop(reply, None)
            if not future.cancel() and not future.cancelled():
                future.exception()  # read: nobody else will

    def _remove(self, claim_id: str, count: int) -> bool:
        try:
            for number in range(count):
                self._connection.publish(subjects.claim_chunk(claim_id, number), b"", headers=_GONE_SOON)
        except BrokerError:  # away: it expires
            return False
        return True

    def _on_answer(self, message: Message) -> None:
        _, future = self._asked.get(message.subject, ("", None))
        if future is not None and not future.done():
            future.set_result(message)

    def _on_forbidden(self, operation: str, subject: str) -> None:
        # The server names what it made of the subject, with its mark in it.
        _, is_claim, tail = subject.partition("claim.")
        rest = tail.partition(".")[2]
        for asked, future in self._asked.values() if operation == "publish" and is_claim else ():
            if asked.endswith(f".{rest}") and not future.done():
                future.set_exception(Forbidden("publish to", asked))

    def _on_disconnect(self) -> None:
        self._fail(Unreachable("the connection was lost"))

    def _fail(self, error: Exception) -> None:
        for _, future in self._asked.values():
            if not future.done():
                future.set_exception(error)


def _check(claim: Claim) -> None:
    """A claim comes in a message: nothing of it may become a wildcard, or a number that nobody can have stored."""
    counted = -(-claim.size_bytes // CHUNK_BYTES)
    if not _ID.fullmatch(claim.id) or not 0 <= claim.size_bytes <= MAX_CLAIM_BYTES or claim.chunks != counted:
        raise ClaimGone("a claim names nothing that can be")


def _check_stored(message: Message) -> None:
    try:
        ack = codec.decode_puback(message.data)
    except BadMessage as error:
        raise StreamError(f"the stream of claims answered what is none: {error}") from error
    if ack.error is not None:
        raise StreamError(ack.error.description or "the stream of claims refused", ack.error.err_code)


def _checked_piece(claim: Claim, number: int, message: Message) -> memoryview:
    if message.status == _NOT_FOUND:
        raise ClaimGone(f"the claim {claim.id} is not there: it has expired or was deleted")
    subject = (message.headers or {}).get("Nats-Subject", "")
    if message.status or not subject.endswith(f".{claim.id}.{number}.chunk"):
        raise ClaimGone(f"the claim {claim.id} cannot be read (status {message.status})")
    wanted = min(CHUNK_BYTES, claim.size_bytes - number * CHUNK_BYTES)
    if len(message.data) != wanted:
        raise ClaimGone(f"the claim {claim.id} was deleted" if not message.data else f"{claim.id} is not as claimed")
    return memoryview(message.data)
