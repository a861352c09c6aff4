"""Serves what a program of the mesh is asked: requests off the wire, a handler per verb, answers back on it.

Registry, launcher and ledger run one each; what they are asked is in platform.py. Who may ask what is the broker's to
say (permissions.py), so a handler trusts the subject's caller and algorithm, and nothing that stands in a body.
Every request that can be read is answered; one that cannot is logged, since nobody knows where to answer it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog
from msgspec import Struct

from algomesh_broker import codec, subjects
from algomesh_broker.connection import Connection, Message, Subscription
from algomesh_broker.errors import BadMessage, BrokerError
from algomesh_broker.messages import Answer, Ask
from algomesh_broker.metrics import REQUEST_SECONDS
from algomesh_broker.names import is_token
from algomesh_broker.platform import pack
from algomesh_broker.subjects import PlatformRequest

Handler = Callable[[PlatformRequest, bytes], Awaitable[Struct]]


class Refusal(Exception):
    """A request that a handler does not grant. `code` goes on the wire beside the sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RequestServer:
    """Answers from `serve` to `close`, with one task per request.

    `handlers` has a function for each verb; what it raises is answered by its code (Refusal, BrokerError), by
    `unavailable` (what `database_away` names), else by `failed_code`, and then only the log says more.
    At most `at_once` requests are under way; what is more is refused `overloaded`. With `is_shared` one of several
    programs of this name takes each request, otherwise each of them takes all.
    """

    def __init__(
        self,
        connection: Connection,
        program: str,
        handlers: Mapping[str, Handler],
        *,
        at_once: int,
        is_shared: bool = True,
        database_away: tuple[type[Exception], ...] = (),
        unknown_verb_code: str = "unknown_verb",
        failed_code: str = "internal_error",
    ) -> None:
        self._connection, self._program, self._handlers = connection, program, handlers
        self._at_once, self._is_shared, self._database_away = at_once, is_shared, database_away
        self._unknown_verb_code, self._failed_code = unknown_verb_code, failed_code
        self._running: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None
        self._log = structlog.get_logger(f"algomesh.{program}")

    async def serve(self) -> None:
        """Begin to take requests. Raises Forbidden, Unreachable."""
        queue = self._program if self._is_shared else ""
        self._subscription = await self._connection.subscribe(
            subjects.platform_requests(self._program), self._on_request, queue
        )

    async def close(self, grace_s: float = 0.0) -> None:
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
            request, ask = subjects.parse_platform(message.subject), codec.decode_ask(message.data)
            if not (is_token(ask.session) and is_token(ask.call)):
                raise BadMessage("session or call is not a token")  # the answer would go to another subject
        except BadMessage as error:
            self._log.warning("request_unreadable", subject=message.subject, error=str(error))
            return
        if len(self._running) >= self._at_once:
            sentence = f"the {self._program} has too many requests at once; ask again"
            self._answer(request, ask, Answer(code="overloaded", message=sentence))
            return
        task = asyncio.create_task(self._serve_one(request, ask), name=f"{self._program}-{request.verb}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _serve_one(self, request: PlatformRequest, ask: Ask) -> None:
        began = time.perf_counter()
        try:
            handler = self._handlers.get(request.verb)
            if handler is None:
                raise Refusal(self._unknown_verb_code, f"the {self._program} does not know {request.verb!r}")
            answer = Answer(body=pack(await handler(request, ask.body)))
        except (Refusal, BrokerError) as error:
            answer = Answer(code=error.code, message=str(error))
        except self._database_away as error:
            self._log.warning("database_away", error=str(error))
            sentence = f"the {self._program}'s database does not answer; ask again in a moment"
            answer = Answer(code="unavailable", message=sentence)
        except Exception:
            self._log.exception("request_failed", verb=request.verb, algorithm=request.algorithm)
            sentence = f"the {self._program} failed at this request; its log says why"
            answer = Answer(code=self._failed_code, message=sentence)
        verb = request.verb if request.verb in self._handlers else "unknown"
        REQUEST_SECONDS.observe(time.perf_counter() - began, verb, answer.code or "ok")
        self._answer(request, ask, answer)

    def _answer(self, request: PlatformRequest, ask: Ask, answer: Answer) -> None:
        mine = self._connection.identity.caller
        try:
            self._connection.publish(subjects.reply(mine, request.caller, ask.session, ask.call), codec.encode(answer))
        except BrokerError as error:
            self._log.warning("answer_lost", verb=request.verb, error=str(error))
