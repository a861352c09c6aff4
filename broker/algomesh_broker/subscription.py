"""A standing interest in a subject, as `Connection.join` and `Connection.subscribe` hand it out."""

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from algomesh_broker.protocol import Message

if TYPE_CHECKING:
    from algomesh_broker.connection import Connection

Callback = Callable[[Message], None]


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

    def format_subscribe(self) -> bytes:
        """The command that tells a server of it."""
        queue = f" {self.queue}" if self.queue else ""
        return f"SUB {self.subject}{queue} {self.sid}\r\n".encode()
