"""What to start ahead in a request, decided anew at each of its calls."""

from heapq import nlargest
from typing import NamedTuple

from algomesh_services.prewarmer.actions import Action, Fleet, Hold, Release
from algomesh_services.prewarmer.algorithms import Algorithms
from algomesh_services.prewarmer.counts import Counts
from algomesh_services.prewarmer.delays import LoadSpread
from algomesh_services.prewarmer.outlook import Outlook
from algomesh_services.prewarmer.requests import FORGOTTEN_AFTER_S, Plan, Record, Request
from algomesh_services.prewarmer.windows import Ahead, Window
from algomesh_services.prewarmer.worth import Worth

_LEAST_PROBABILITY = 1e-3  # rarer than what the counts can tell from never: their memory is fifty observations

MOST_COMING = 64
"""What is weighed at one call, the likeliest: as many as a request remembers calls. Each algorithm is in a request with
its probability, so where more than 64 are likelier than any of the others, these are a long way off."""

WEIGHED_EACH_CALL = 16
"""Of these, so many are weighed at each call, and what earlier calls of the request have left of it, up to 64: all that
may come when a request begins, and then the soonest. For the others it stays at what was decided a call ago, as long
as they are likely enough: they come nearer, and there is another call before."""


class Coming(NamedTuple):
    """An algorithm that may be called later in the request, and the warm seconds until then."""

    typical_s: float
    name: str
    probability: float
    parent: str
    delays_s: list[float]


class Planner:
    """Plans with what is known at the moment. `key_of` names the hold of a request; it has one for each algorithm."""

    __slots__ = ("_algorithms", "_counts", "_fleet", "_loads", "_worth")

    def __init__(self, fleet: Fleet, worth: Worth, counts: Counts, algorithms: Algorithms, loads: LoadSpread) -> None:
        self._fleet = fleet
        self._worth = worth
        self._counts = counts
        self._algorithms = algorithms
        self._loads = loads

    def plan(self, key: str, request: Request, record: Record, at_s: float) -> list[Action]:
        """What changes in the holds of this request, now that `record` is its latest call."""
        actions: list[Action] = []
        coming, end_s = self._coming(request, record)
        before = request.plans
        request.plans = plans = {}
        outlook = Outlook(request, record, self._beside)
        request.to_weigh = min(MOST_COMING, request.to_weigh + WEIGHED_EACH_CALL)
        for one in coming:
            delay_s = outlook.before_s(one.parent)
            base_s = record.warm_s + delay_s - at_s
            cold_s = self._fleet.cold_start_s(one.name)
            if cold_s <= 0.0:
                outlook.tell(one.name, one.parent, delay_s)
                continue
            left_s = self._left_s(one.name)
            rho = self._worth.rho(one.name, request.caller, outlook.caller(one.parent).standby)
            ahead, window, old = None, None, before.get(one.name)
            if rho > 0.0 and (left_s is not None or one.probability * (1.0 + rho) > 1.0):
                request.to_weigh -= 1
                if request.to_weigh < 0:
                    start_s = base_s + one.typical_s
                    if old is not None and old.until_s > at_s:
                        plans[one.name], start_s = old, old.start_s - at_s
                    ready_s = left_s if left_s is not None else cold_s + max(0.0, start_s)
                    late_s = max(0.0, ready_s - max(0.0, base_s + one.typical_s))
                    outlook.tell(one.name, one.parent, delay_s + one.probability * late_s)
                    continue
                ahead = Ahead(
                    one.probability,
                    [at if (at := base_s + delay_s) > 0.0 else 0.0 for delay_s in one.delays_s],
                    self._loads.factors,
                    cold_s=cold_s,
                    rho=rho,
                    over_s=None if end_s is None else max(0.0, base_s + end_s),
                )
                window = ahead.best(left_s)
            call_s = max(0.0, base_s + one.typical_s)
            ready_s = left_s if left_s is not None else cold_s + (window.start_s if window is not None else call_s)
            outlook.tell(one.name, one.parent, delay_s + one.probability * max(0.0, ready_s - call_s))
            if ahead is None or window is None:
                continue
            plan = plans[one.name] = _plan_of(old, window, ahead.from_off_s(), record, at_s, is_off=left_s is None)
            is_stage = one.name in request.route
            if is_stage:
                plan.until_s = at_s + FORGOTTEN_AFTER_S  # until it is called, or the pipeline ends
            if old is not None and _is_alike(old, plan, at_s, cold_s):
                plan.start_s, plan.until_s = old.start_s, old.until_s
                continue
            actions.append(
                Hold(
                    algorithm=one.name,
                    key=key_of(key),
                    start_s=plan.start_s,
                    until_s=plan.until_s,
                    why="stage" if is_stage else "next",
                    gain_per_gpu_s=window.gain,
                    probability=one.probability,
                    after=record.algorithm,
                    in_s=call_s,
                    version=self._algorithms.version(one.name),
                )
            )
        request.to_weigh = max(0, request.to_weigh)
        actions += [Release(algorithm=name, key=key_of(key)) for name in before if name not in plans]
        return actions

    def _coming(self, request: Request, record: Record) -> tuple[list[Coming], float | None]:
        """What may come, soonest first, and when such a request ends."""
        predictions = self._counts.predict(record.contexts)
        probabilities = predictions.probabilities()
        for stage in request.route:
            probabilities[stage] = 1.0
        likely = [(name, each) for name, each in probabilities.items() if each > _LEAST_PROBABILITY]
        if len(likely) > MOST_COMING:
            likely = nlargest(MOST_COMING, likely, key=_probability)
        coming = []
        for name, probability in likely:
            parent, delays_s = predictions.of(name)
            if not delays_s:
                delays_s = [0.0]  # a stage that was never seen: at once
            coming.append(Coming(sorted(delays_s)[len(delays_s) // 2], name, probability, parent, delays_s))
        coming.sort(key=_typical_s)
        return coming, predictions.end_s()

    def _beside(self, name: str) -> float:
        known = self._algorithms.known.get(name)
        return known.beside.value if known is not None else 0.0

    def _left_s(self, name: str) -> float | None:
        """What is left of its load: 0 when warm, None when it is off."""
        match self._fleet.state(name):
            case "off":
                return None
            case "loading":
                return max(0.0, self._fleet.ready_in_s(name))
            case _:
                return 0.0


def key_of(request: str) -> str:
    """The key of the holds of a request."""
    return f"path:{request}"


def _probability(likely: tuple[str, float]) -> float:
    return likely[1]


def _typical_s(coming: Coming) -> float:
    return coming.typical_s


def _plan_of(
    old: Plan | None, window: Window, from_off_s: float | None, record: Record, at_s: float, *, is_off: bool
) -> Plan:
    """The plan, with what would have been started if it were off: once that is loading, it is not planned again."""
    if old is not None and old.from_off_s <= at_s:
        off_s, hop = old.from_off_s, old.hop
    elif from_off_s is None:
        off_s, hop = float("inf"), None
    else:
        off_s, hop = at_s + from_off_s, record if from_off_s == 0.0 else None
    return Plan(
        at_s + window.start_s,
        at_s + window.end_s,
        from_off_s=off_s,
        hop=hop,
        was_off=is_off or (old is not None and old.was_off),
    )


def _is_alike(old: Plan, new: Plan, at_s: float, cold_s: float) -> bool:
    """Whether the plans differ by less than a 64th of a load, and the old one still stands: not worth a message."""
    differ_s = abs(max(old.start_s, at_s) - new.start_s) + abs(old.until_s - new.until_s)
    return differ_s < cold_s / 64.0 and old.until_s > at_s
