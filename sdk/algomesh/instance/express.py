"""The short way through an instance: a call with nothing unusual about it, from its envelope to its answer in one go.

Most calls of a busy, quick algorithm are alike: sent by the same caller or handed over by the same step, under a route
token that the general way has checked before; there is a slot, the code runs inline in the loop, its output is small,
and it goes to who waits or to one next step. What is the same for all of these is looked up once (`_Known`), and the
rest of the general way (Intake, Runner, Onward) is left out: it is made of questions whose answers are known here.
Whatever is not so is left to the general way, from its beginning, or from the end of the code on; both must do the
same, which tests/unit/test_express.py holds them to.
"""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from algomesh.claiming import MAY_BE_CLAIMED
from algomesh.content import Content
from algomesh.context import Host
from algomesh.instance.answers import Outcome
from algomesh.instance.capacity import Capacity
from algomesh.instance.dispatch import LONG_S, DispatchChoice
from algomesh.instance.intake import Intake
from algomesh.instance.job import Job
from algomesh.instance.onward import Onward
from algomesh_broker.claims import CLAIM_OVER_BYTES
from algomesh_broker.grants import Granted
from algomesh_broker.messages import Call
from algomesh_broker.route import END, CallStep, Place

_MOST_KNOWN: Final = 4096
_FOR_EVER: Final = float("inf")


class _Known(NamedTuple):
    """What every call has in common that comes on one subject, under one token, for one step, for one who waits.

    `next` is the step that its output goes to, END: to `caller`. It holds until `until` (seconds since the epoch).
    """

    until: float
    caller: str
    next: int
    granted: Granted | None
    place: Place | None


class Express:
    """The short way of one instance of an algorithm that is a plain function; `take` is for Intake to ask first."""

    def __init__(
        self,
        stage: str,
        timeout_s: float | None,
        host: Host,
        *,
        capacity: Capacity,
        dispatch: DispatchChoice,
        jobs: dict[str, Job],
        intake: Intake,
        onward: Onward,
        run: Callable[[Job], tuple[Outcome, float]],
        end: Callable[[Job, Outcome, float], None],
    ) -> None:
        """`stage` is the version's name. `run(job)` runs its code inline, and says how many seconds that took;
        `end(job, outcome, took_s)` is the general way on for one that took long.
        """
        self._stage = stage
        self._timeout_s = _FOR_EVER if timeout_s is None else timeout_s
        self._host = host
        self._capacity, self._dispatch, self._jobs, self._intake = capacity, dispatch, jobs, intake
        self._onward, self._run, self._end = onward, run, end
        self._known: dict[tuple[bytes, int, str, str], _Known] = {}

    def take(self, call: Call, subject: str, now: float) -> bool:
        """Run this call that has just come, at the loop's time `now`; False: nothing was done about it."""
        capacity, dispatch, intake = self._capacity, self._dispatch, self._intake
        if dispatch.mode != "inline" or dispatch.strikes or self._jobs or not intake.may_run_at_once(call):
            return False
        started_at = time.time()
        known = self._known.get((call.grant, call.at, subject, call.reply_to))
        if known is None or started_at >= known.until:
            return False
        deadline = now + call.time_left_ms / 1000
        if now + capacity.median_s >= deadline or call.content_type in MAY_BE_CLAIMED or call.feed:
            return False
        _, caller, following, granted, place = known
        limit = min(deadline, now + self._timeout_s)
        run = call.run if place is None else f"{call.run}-{call.at}"
        job = Job(
            call, subject, caller, now, deadline, run, following, call.writers, False, granted, place,
            0.0, now, started_at, limit, host=self._host, algorithm=self._stage,
        )  # fmt: skip

        outcome, took_s = self._run(job)
        if took_s > LONG_S:
            job.has_slot = True
            capacity.taken += 1
            self._end(job, outcome, took_s)
            return True
        capacity.observe(took_s)
        if following == END or not isinstance(outcome, Content) or len(outcome.payload) > CLAIM_OVER_BYTES:
            self._onward.finish(job, outcome, took_s)
        else:
            self._onward.send_on(job, following, outcome, call.spent_ms + took_s * 1000, took_s)
        intake.serve()
        return True

    def learn(self, job: Job) -> None:
        """The general way has taken `job` and run it inline: the next call like it may go the short way, if it can."""
        call, granted, place = job.call, job.granted, job.place
        until = _FOR_EVER
        if granted is not None and place is not None:
            following = None if place.next == END else granted.route.steps[place.next]
            is_plain = following is None or (isinstance(following, CallStep) and not following.cache_s)
            if not is_plain or place.step.timeout_s is not None or place.step.cache_s is not None:
                return
            until = granted.expires
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        next_ = END if place is None else place.next
        self._known[call.grant, call.at, job.subject, call.reply_to] = _Known(until, job.caller, next_, granted, place)
