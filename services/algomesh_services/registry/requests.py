"""Takes requests to the registry off the wire and puts the answers on it."""

import asyncio

import structlog

from algomesh_broker import codec, subjects
from algomesh_broker.connection import Connection, Message
from algomesh_broker.errors import BadMessage, BrokerError
from algomesh_broker.identity import caller_of_program
from algomesh_broker.messages import Answer, Ask
from algomesh_broker.names import is_token
from algomesh_broker.platform import pack
from algomesh_services.registry.refusals import Refusal
from algomesh_services.registry.store import StoreAway
from algomesh_services.registry.verbs import Verb

log = structlog.get_logger("algomesh.registry")

PROGRAM = "registry"
_AT_ONCE = 64


class Requests:
    """Serves a table of verbs, at most 64 requests at once; what is more is refused `overloaded`."""

    def __init__(self, connection: Connection, verbs: dict[str, Verb]) -> None:
        self._connection = connection
        self._verbs = verbs
        self._running: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Begin to take requests, sharing them with other registries. Raises Forbidden, Unreachable."""
        self._subscription = await self._connection.subscribe(
            subjects.platform_requests(PROGRAM), self._on_request, PROGRAM
        )

    async def close(self, grace_s: float) -> None:
        """Take no more, finish what is under way within `grace_s`, then give it up."""
        await self._subscription.leave()
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _on_request(self, message: Message) -> None:
        try:
            request = subjects.parse_platform(message.subject)
            ask = codec.decode_ask(message.data)
        except BadMessage as error:
            log.warning("request_unreadable", subject=message.subject, error=str(error))
            return
        if not (is_token(ask.session) and is_token(ask.call)):
            log.warning("request_unreadable", subject=message.subject, error="session or call is not a token")
            return
        if len(self._running) >= _AT_ONCE:
            answer = Answer(code="overloaded", message="the registry has too many requests at once; ask again")
            self._answer(request, ask, answer)
            return
        task = asyncio.create_task(self._serve_one(request, ask), name=f"registry-{request.verb}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _serve_one(self, request: subjects.PlatformRequest, ask: Ask) -> None:
        try:
            verb = self._verbs.get(request.verb)
            if verb is None:
                raise Refusal("unknown_verb", f"the registry does not know {request.verb!r}")
            answer = Answer(body=pack(await verb(request, bytes(ask.body))))
        except (Refusal, BrokerError) as error:
            answer = Answer(code=error.code, message=str(error))
        except StoreAway as error:
            log.warning("database_away", error=str(error))
            answer = Answer(
                code="unavailable", message="the registry's database does not answer; ask again in a moment"
            )
        except Exception:
            log.exception("request_failed", verb=request.verb, algorithm=request.algorithm)
            answer = Answer(code="internal_error", message="the registry failed at this request; its log says why")
        self._answer(request, ask, answer)

    def _answer(self, request: subjects.PlatformRequest, ask: Ask, answer: Answer) -> None:
        subject = subjects.reply(caller_of_program(PROGRAM), request.caller, ask.session, ask.call)
        try:
            self._connection.publish(subject, codec.encode(answer))
        except BrokerError as error:
            log.warning("answer_lost", verb=request.verb, error=str(error))
