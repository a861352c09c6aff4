"""What becomes of an output: it goes to who waits, to the next step, or is joined with others first.

A large one is put aside before; a step whose result is kept is left out.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from algomesh import content, errors
from algomesh.instance.answers import Answers, Outcome
from algomesh.instance.forwarding import Forwarder
from algomesh.instance.job import Job
from algomesh.instance.joining import Joiner
from algomesh.instance.watch import WatchWriter
from algomesh.instance.yielding import NOTHING, Yielding
from algomesh.result_cache import ResultCache, is_kept
from algomesh_broker.claims import CLAIM_OVER_BYTES
from algomesh_broker.connection import Connection
from algomesh_broker.route import END, CallStep


class Onward:
    """The way on from the runs of one instance."""

    def __init__(self, connection: Connection, instance: str, answers: Answers, watch: WatchWriter) -> None:
        self.results = ResultCache(connection)
        self.yielding = Yielding(answers, self._feed)
        self.joiner = Joiner(connection, instance, answers, self.yielding, watch, self._hand_on, self.results)
        self._instance = instance
        self._answers = answers
        self._forwarder = Forwarder(connection, answers)
        self._loop = asyncio.get_running_loop()
        self._seen_to: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Hear when a hop finds nobody."""
        self._forwarder.open()

    async def drain(self) -> None:
        """Return when every output has found its way."""
        while self.active:
            if self._seen_to:
                await asyncio.wait(self._seen_to)
            await self.joiner.drain()
        await self._forwarder.drain()

    @property
    def active(self) -> int:
        """Outputs that are on their way, and joins that wait for branches."""
        return len(self._seen_to) + self.joiner.active

    def finish(self, job: Job, outcome: Outcome, took_s: float) -> None:
        """The code of `job` has come to its end, after `took_s` seconds."""
        if not isinstance(outcome, content.Content):
            self._answers.fail(job, outcome, took_s)
        elif len(outcome.payload) > CLAIM_OVER_BYTES:
            self._see_to(self._keep(job, outcome, took_s), f"keep-{job.run}")
        elif job.next == END:
            self._answers.answer(job, outcome, took_s)
        else:
            assert job.granted is not None
            job.is_cached = False
            spent_ms = job.call.spent_ms + took_s * 1000
            step = job.granted.route.steps[job.next]
            if isinstance(step, CallStep) and not step.cache_s:
                self.send_on(job, job.next, outcome, spent_ms, took_s)
            elif isinstance(step, CallStep):
                self._hand_on(job, job.next, outcome, spent_ms, took_s)
            else:
                self.joiner.begin(job, outcome, spent_ms, took_s)

    def _see_to(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Something that ends soon, and that draining waits for."""
        keeping = self._loop.create_task(work, name=name)
        self._seen_to.add(keeping)
        keeping.add_done_callback(self._seen_to.discard)

    async def _keep(self, job: Job, output: content.Content, took_s: float) -> None:
        """Put a large output where its reader can fetch it, and go on with its claim."""
        try:
            claim = await self.joiner.keep(job, output)
        except errors.MeshError as error:
            self._answers.fail(job, error, took_s)
        else:
            self.finish(job, claim, took_s)

    def _hand_on(self, job: Job, at: int, output: content.Content, spent_ms: float, took_s: float) -> None:
        """On to step `at`, or to what follows it where its result is kept."""
        assert job.granted is not None
        if is_kept(job.granted.route.steps[at]) and output.content_type != "claim":
            self._see_to(self._look(job, at, output, spent_ms, took_s), f"look-{job.run}")
        else:
            self.send_on(job, at, output, spent_ms, took_s)

    async def _look(self, job: Job, at: int, output: content.Content, spent_ms: float, took_s: float) -> None:
        """Leave out the steps whose results are kept, and go on after them."""
        assert job.granted is not None
        route, kept_at = job.granted.route, -1
        while at != END and is_kept(route.steps[at]):
            found = await self.results.get(route.places[at].version, output, job.deadline)
            if found is None:
                break
            output, kept_at, at = found, at, route.steps[at].next
        if at == END:
            job.is_cached = True
            self._answers.answer(job, output, took_s, spent_ms, kept_at=kept_at)
        elif isinstance(route.steps[at], CallStep):
            self.send_on(job, at, output, spent_ms, took_s)
        else:
            job.next = at
            self.joiner.begin(job, output, spent_ms, took_s)

    def send_on(self, job: Job, at: int, output: content.Content, spent_ms: float, took_s: float) -> None:
        """Hand an output of at most CLAIM_OVER_BYTES over to step `at`, a call whose result is not kept."""
        try:
            self._forwarder.hand_over(job, at, output, spent_ms)
        except errors.MeshError as error:
            self._answers.fail(job, error, took_s)
        else:
            self._answers.succeeded(job, took_s)
            if job.said_at:
                self._answers.say_handed_over(job, at)

    def _feed(self, job: Job) -> None:
        """The next step reads what this one yields, from the beginning."""
        self._forwarder.hand_over(job, job.next, NOTHING, job.call.spent_ms, feed=self._instance)
