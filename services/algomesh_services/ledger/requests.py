"""Answers what the ledger is asked: `runs`. Who may ask is the broker's to say."""

import asyncio
from typing import Final

import structlog

from algomesh_broker import codec, subjects
from algomesh_broker.connection import Connection, Message, Subscription
from algomesh_broker.errors import BadMessage, BrokerError
from algomesh_broker.identity import caller_of_program
from algomesh_broker.messages import Answer, Ask
from algomesh_broker.names import is_token
from algomesh_broker.platform import RunRows, Runs, pack, unpack
from algomesh_services.ledger.store import Store, StoreAway

log = structlog.get_logger("algomesh.ledger")

PROGRAM: Final = "ledger"
MOST_ROWS: Final = 1_000
_AT_ONCE: Final = 32


class Requests:
    """Serves requests, at most 32 at once; what is more is refused `overloaded`."""

    def __init__(self, connection: Connection, store: Store) -> None:
        self._connection = connection
        self._store = store
        self._running: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    async def serve(self) -> None:
        """Begin to take requests, sharing them with other ledgers. Raises Forbidden, Unreachable."""
        self._subscription = await self._connection.subscribe(
            subjects.platform_requests(PROGRAM), self._on_request, PROGRAM
        )

    async def close(self, grace_s: float) -> None:
        """Take no more, finish what is under way within `grace_s`, then give it up."""
        if self._subscription is not None:
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
            self._answer(request, ask, Answer(code="overloaded", message="the ledger is asked too much; ask again"))
            return
        task = asyncio.create_task(self._serve_one(request, ask), name=f"ledger-{request.verb}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _serve_one(self, request: subjects.PlatformRequest, ask: Ask) -> None:
        try:
            if request.verb != "runs":
                answer = Answer(code="unknown_verb", message=f"the ledger does not know {request.verb!r}")
            else:
                answer = Answer(body=pack(await self._runs(request, unpack(Runs, bytes(ask.body)))))
        except BadMessage as error:
            answer = Answer(code=error.code, message=str(error))
        except StoreAway as error:
            log.warning("database_away", error=str(error))
            answer = Answer(code="unavailable", message="the ledger's database does not answer; ask again in a moment")
        except Exception:
            log.exception("request_failed", verb=request.verb)
            answer = Answer(code="internal_error", message="the ledger failed at this request; its log says why")
        self._answer(request, ask, answer)

    async def _runs(self, request: subjects.PlatformRequest, wanted: Runs) -> RunRows:
        """The subject's algorithm counts more than the body's: it is what the broker allowed."""
        algorithm = request.algorithm or wanted.algorithm
        limit = max(0, min(wanted.limit, MOST_ROWS))
        return RunRows(runs=await self._store.latest(limit, algorithm=algorithm[:130], root=wanted.root[:64]))

    def _answer(self, request: subjects.PlatformRequest, ask: Ask, answer: Answer) -> None:
        subject = subjects.reply(caller_of_program(PROGRAM), request.caller, ask.session, ask.call)
        try:
            self._connection.publish(subject, codec.encode(answer))
        except BrokerError as error:
            log.warning("answer_lost", verb=request.verb, error=str(error))
