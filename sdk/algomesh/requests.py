"""Asking the programs of a mesh: the registry, the launcher, the ledger.

The SDK's `publish`, the command line and the demo speak to programs through `ask`, over a connection that is
already there. A program that is away is asked again for a moment, since a restart takes under a second; a request
that reached it is never repeated.
"""

import asyncio
import contextlib
import secrets
from typing import Final, TypeVar

from msgspec import Struct

from algomesh import errors
from algomesh_broker import codec, messages, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, BrokerError
from algomesh_broker.platform import pack, unpack
from algomesh_broker.protocol import NO_RESPONDERS

T = TypeVar("T", bound=Struct)

_CALL: Final = "0"
_AWAY_S: Final = 2.0
_AGAIN_S: Final = 0.1
# Codes that only the programs know, as the errors that callers know.
_KINDS: Final = {
    "bad_manifest": "bad_project",
    "requirements_missing": "bad_project",
    "name_reserved": "bad_project",
    "archive_missing": "bad_project",
    "digest_mismatch": "bad_project",
    "archive_too_large": "payload_too_large",
    "bad_scope": "bad_input",
    "key_exists": "bad_input",
    "unknown_key": "bad_input",
    "bad_message": "bad_input",
    "unavailable": "unreachable",
}
_SCOPES: Final = {
    "upload": "publish:{0}", "publish": "publish:{0}", "alias-set": "publish:{0}", "stop": "publish:{0}",
    "attach": "publish:{0}",
    "route": "call:*' or 'call:owner/name",
    "logs": "observe' or 'publish:{0}", "manifest": "observe' or 'publish:{0}",
    "ps": "observe", "runs": "observe", "history": "observe",
    "graph": "observe", "starts": "observe", "savings": "observe",
}  # fmt: skip


async def ask(
    connection: Connection,
    program: str,
    verb: str,
    algorithm: str,
    body: Struct,
    answer_type: type[T],
    timeout_s: float = 10.0,
) -> T:
    """Ask `program` one thing, about `owner/name` where `algorithm` is not empty, and return its answer.

    Raises PermissionDenied naming the scope that the key lacks, Unreachable when the program does not answer within
    `timeout_s` seconds, PayloadTooLarge, and the MeshError of whatever the program refuses with.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    away_until = loop.time() + min(_AWAY_S, timeout_s / 2)
    while True:
        try:
            message = await _once(connection, program, verb, algorithm, body, deadline)
        except TimeoutError as error:
            raise errors.Unreachable(
                f"the mesh's {program} did not answer within {timeout_s:g} s; its log says more"
            ) from error
        except BrokerError as error:
            raise errors.of_code(error.code, str(error)) from error
        if message.status != NO_RESPONDERS:
            return _read(message, program, answer_type)
        if loop.time() >= away_until:
            raise errors.Unreachable(f"the mesh's {program} is not running; start it with `algomesh serve {program}`")
        await asyncio.sleep(_AGAIN_S)


async def _once(
    connection: Connection, program: str, verb: str, algorithm: str, body: Struct, deadline: float
) -> Message:
    """Send the request under a session of its own, and wait for whatever comes first."""
    caller = connection.identity.caller
    session = secrets.token_hex(8)
    subject = subjects.platform(program, verb, caller, algorithm)
    answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def take(message: Message) -> None:
        if not answered.done():
            answered.set_result(message)

    def refuse(operation: str, named: str) -> None:
        if operation == "publish" and named == subject and not answered.done():
            answered.set_exception(_denied(verb, algorithm))

    replies = connection.join(subjects.replies_to(caller, session), take)
    connection.on_forbidden.append(refuse)
    try:
        request = messages.Ask(session=session, call=_CALL, body=pack(body))
        connection.publish(subject, codec.encode(request), subjects.no_responders(caller, session, _CALL))
        async with asyncio.timeout_at(deadline):
            return await answered
    finally:
        with contextlib.suppress(ValueError):
            connection.on_forbidden.remove(refuse)
        with contextlib.suppress(BrokerError):  # the connection may have been closed meanwhile
            replies.leave()


def _read(message: Message, program: str, answer_type: type[T]) -> T:
    try:
        answer = codec.decode_answer(message.data)
        if answer.code:
            raise errors.of_code(_KINDS.get(answer.code, answer.code), answer.message)
        return unpack(answer_type, answer.body)
    except BadMessage as error:
        raise errors.MeshError(f"the mesh's {program} speaks another version of the protocol: {error}") from error


def _denied(verb: str, algorithm: str) -> errors.PermissionDenied:
    scope = _SCOPES.get(verb, "admin").format(algorithm)
    about = f" of {algorithm}" if algorithm else ""
    return errors.PermissionDenied(f"this key may not ask for {verb!r}{about}; it needs the scope '{scope}'")
