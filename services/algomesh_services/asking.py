"""Asks programs of the mesh from another one: a request on `platform.<program>.…`, one `Answer` (platform.py)."""

import asyncio
import itertools
import secrets
from typing import TypeVar

from msgspec import Struct

from algomesh_broker import codec, messages, platform, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, BrokerError, Unreachable
from algomesh_broker.protocol import NO_RESPONDERS

T = TypeVar("T", bound=Struct)


class Refused(BrokerError):
    """A program answered with an error: `code` is its word on the wire, `str()` its message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Programs:
    """Asks under the connection's own name, and hears the answers in a session of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._caller = connection.identity.caller
        self._session = secrets.token_hex(8)
        self._calls = itertools.count(1)
        self._pending: dict[str, asyncio.Future[messages.Answer]] = {}
        self._inbox = connection.join(subjects.replies_to(self._caller, self._session), self._on_answer)

    async def ask(
        self, program: str, verb: str, body: Struct, type_: type[T], *, algorithm: str = "", timeout_s: float = 5.0
    ) -> T:
        """Ask and return the answer's body as `type_`.

        Raises Refused when the program says no, Unreachable when it is not there or silent, BadMessage.
        """
        call = str(next(self._calls))
        future: asyncio.Future[messages.Answer] = asyncio.get_running_loop().create_future()
        self._pending[call] = future
        try:
            self._connection.publish(
                subjects.platform(program, verb, self._caller, algorithm),
                codec.encode(messages.Ask(session=self._session, call=call, body=platform.pack(body))),
                reply=subjects.no_responders(self._caller, self._session, call),
            )
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError as error:
            raise Unreachable(f"the {program} did not answer within {timeout_s:g} s") from error
        finally:
            self._pending.pop(call, None)
        if answer.code:
            raise Refused(answer.code, answer.message)
        return platform.unpack(type_, answer.body)

    def _on_answer(self, message: Message) -> None:
        tokens = message.subject.split(".")
        future = self._pending.get(tokens[-1])
        if future is None or future.done():
            return
        if message.status == NO_RESPONDERS:
            future.set_exception(Unreachable("that program of the mesh is away"))
        elif tokens[1] == "platform":
            try:
                future.set_result(codec.decode_answer(message.data))
            except BadMessage as error:
                future.set_exception(error)
