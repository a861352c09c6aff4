"""Contents that are too large for a message travel as a claim: a small content that says where the large one lies.

A claimed content is one of the type `claim`, whose payload names the type, the detail and the place of the real one.
It goes wherever a content goes, into a bundle too, so who only passes it on does not fetch it. It is fetched where it
is read, and deleted by its writer when the run has ended, else it expires.
"""

import asyncio
import contextlib
from collections.abc import Hashable
from typing import Final

import msgspec

from algomesh import content as contents
from algomesh import errors
from algomesh.content import Content
from algomesh_broker.claims import CLAIM_OVER_BYTES, ClaimStore
from algomesh_broker.connection import Connection
from algomesh_broker.errors import BrokerError
from algomesh_broker.messages import Claim, ContentType
from algomesh_observability.logger import get_logger

log = get_logger("algomesh.claims")

# Content types of which it must be looked at whether something is to be fetched.
MAY_BE_CLAIMED: Final = frozenset({"claim", "bundle"})
_SPARE_S: Final = 60.0
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(tuple[ContentType, str, Claim]).decode


def is_large(content: Content) -> bool:
    """Whether it must not travel in a message."""
    return len(content.payload) > CLAIM_OVER_BYTES


def is_claimed(content_type: str, payload: bytes | memoryview) -> bool:
    """Whether something must be fetched before it can be read."""
    if content_type != "bundle":
        return content_type == "claim"
    try:
        parts = contents.read_bundle(payload).parts
    except errors.BadInput:
        return False  # who reads it will say so
    return any(is_claimed(part.content_type, part.payload) for part in parts)


class Claims:
    """What one connection has claimed, and how it fetches what others have. `close` it before the connection."""

    def __init__(self, connection: Connection) -> None:
        self._store = ClaimStore(connection)
        self._loop = asyncio.get_running_loop()
        self._written: dict[Hashable, list[Claim]] = {}
        self._deleting: set[asyncio.Task[None]] = set()

    async def store(self, content: Content, deadline: float, owner: Hashable, host: str) -> Content:
        """Put a large content where it can be fetched until `deadline` (the loop's time), and return its claim.

        `host` is the machine that all who may read it are on, or nothing. `owner` is forgotten with `forget`.
        Raises PayloadTooLarge over 1 GiB, Overloaded, Unreachable.
        """
        ttl_s = max(0.0, deadline - self._loop.time()) + _SPARE_S
        try:
            claim = await self._store.put(content.payload, ttl_s, host=host, deadline=deadline)
        except BrokerError as error:
            raise errors.of_code(error.code, str(error)) from error
        self._written.setdefault(owner, []).append(claim)
        return Content("claim", "", _pack((content.content_type, content.detail, claim)))

    async def load(self, content: Content, deadline: float) -> Content:
        """What a content really is, its parts too. Raises ClaimGone, Unreachable, BadInput."""
        if content.content_type == "bundle" and is_claimed("bundle", content.payload):
            bundle = contents.read_bundle(content.payload)
            return contents.join([await self.load(part, deadline) for part in bundle.parts], bundle.names)
        if content.content_type != "claim":
            return content
        try:
            content_type, detail, claim = _unpack(content.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.BadInput(f"this is not a claim: {error}") from error
        try:
            return Content(content_type, detail, await self._store.get(claim, deadline=deadline))
        except BrokerError as error:
            raise errors.of_code(error.code, str(error)) from error

    def forget(self, owner: Hashable) -> None:
        """Delete what was claimed for `owner`."""
        claims = self._written.pop(owner, None)
        if claims:
            task = self._loop.create_task(self._delete(claims), name="delete-claims")
            self._deleting.add(task)
            task.add_done_callback(self._deleting.discard)

    def expire(self, owner: Hashable, after_s: float) -> None:
        """Forget `owner` later at the latest: by then what it claimed has expired."""
        self._loop.call_later(after_s, self._written.pop, owner, None)

    def close(self) -> None:
        """Let go of the connection."""
        self._store.close()

    async def _delete(self, claims: list[Claim]) -> None:
        for claim in claims:
            with contextlib.suppress(BrokerError):  # then it expires
                await self._store.delete(claim)
