"""Requests over a connection, and the answers that come to its identity's inbox.

For administration and look-ups, where a future per request is cheap enough; calls of algorithms have
their own lane (`algomesh.lane`).
"""

import asyncio
import itertools
import secrets
from typing import TYPE_CHECKING

from algomesh_broker.errors import Forbidden, Unreachable
from algomesh_broker.protocol import NO_RESPONDERS, Message

if TYPE_CHECKING:
    from algomesh_broker.connection import Connection


class Inbox:
    """What one connection has asked and not yet been told; subscribed at the first request."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        # Connections of one identity share its inbox, so each has a branch of it.
        self._prefix = f"{connection.identity.inbox}.ask-{secrets.token_hex(6)}"
        self._ids = itertools.count(1)
        self._is_joined = False
        self._asking: dict[str, asyncio.Future[Message]] = {}

    async def ask(self, subject: str, payload: bytes, timeout_s: float) -> Message:
        """Publish and wait for one answer. Raises Forbidden, Unreachable."""
        connection = self._connection
        if not self._is_joined:
            connection.join(f"{self._prefix}.*", self._on_answer)
            self._is_joined = True
        reply = f"{self._prefix}.{next(self._ids)}"
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asking[reply] = future

        def refuse(operation: str, named: str) -> None:
            if operation == "publish" and named == subject and not future.done():
                future.set_exception(Forbidden("publish to", subject))

        connection.on_forbidden.append(refuse)
        try:
            connection.publish(subject, payload, reply)
            async with asyncio.timeout(timeout_s):
                message = await future
        except TimeoutError as error:
            raise Unreachable(f"no answer on {subject!r} within {timeout_s:g} s") from error
        finally:
            self._asking.pop(reply, None)
            connection.on_forbidden.remove(refuse)
        if message.status == NO_RESPONDERS:
            raise Unreachable(f"nobody answers on {subject!r}")
        return message

    def fail(self, error: Exception) -> None:
        """No answer will come to whoever waits."""
        for future in self._asking.values():
            if not future.done():
                future.set_exception(error)

    def _on_answer(self, message: Message) -> None:
        # JetStream and the server answer with the inbox as the message's subject.
        future = self._asking.get(message.subject)
        if future is not None and not future.done():
            future.set_result(message)
