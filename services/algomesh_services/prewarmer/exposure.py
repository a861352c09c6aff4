"""What a cold start would have added to a request: what pre-starting leaves exposed, and no other wait hides.

This couples keeping with starting ahead. An algorithm whose load is done before it is called need not be kept; nor one
whose load would only have run beside a longer one of the same request, because the request would have waited for that
anyway. What is worth ρ per second is the difference it makes to the request, not the wait of the call.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Load(NamedTuple):
    """The cold start of an algorithm's first call in a request, as it was or would have been.

    `hop` is the index of the call at which it would have begun, and `lead_s` what would be left of it when the
    algorithm is called, if nobody waits in between. `is_real`: it was off, so that the request did wait for it.
    """

    cold_s: float
    hop: int
    lead_s: float
    is_real: bool


def shares(calls: Sequence[tuple[int, Load | None]]) -> list[float]:
    """For the loads of a request, as (index of the call, load) in order: the share by which each prolonged the request.

    That is what it adds to the delay of the others, as they were: nothing, beside a longer one; and at most its fair
    share of what all of them would cost. Without the second, keeping one bares the next, keeping that one bares the
    third, each worth it by itself, and all of them together not.
    """
    before: dict[int, int] = {}  # loads before a call
    loads: list[tuple[Load, int]] = []
    for index, load in calls:
        before[index] = len(loads)
        if load is not None:
            loads.append((load, before.get(load.hop, len(loads))))
    whole_s = _delay_s(loads, -1)
    beside = sorted(load.lead_s for place, (load, hop) in enumerate(loads) if hop < place and load.lead_s > 0.0)
    found = []
    for place, (load, hop) in enumerate(loads):
        added_s = 0.0
        if load.lead_s > 0.0:
            other_s = _delay_s(loads, place)
            added_s = whole_s - other_s if load.is_real else other_s - whole_s
            added_s = min(added_s, fair_s(beside, load.lead_s) if hop < place else load.lead_s)
        found.append(min(load.cold_s, max(0.0, added_s)) / load.cold_s)
    return found


def fair_s(leads_s: Sequence[float], lead_s: float) -> float:
    """The share of one of these (sorted) in the longest: each second is split between all that take as long.

    The Shapley value, as of a runway that is as long as the largest aeroplane needs (Littlechild & Owen 1973).
    """
    share_s = last_s = 0.0
    for place, one_s in enumerate(leads_s):
        share_s += (one_s - last_s) / (len(leads_s) - place)
        last_s = one_s
        if one_s >= lead_s:
            break
    return share_s


def _delay_s(loads: Sequence[tuple[Load, int]], turned: int) -> float:
    """By how much the real loads delay a request: each counts from its hop, which the delays before that have moved.

    The one at `turned` counts as what it is not.
    """
    delay_s, before = 0.0, []
    for place, (load, hop) in enumerate(loads):
        before.append(delay_s)
        if load.is_real != (place == turned):
            delay_s = max(delay_s, before[hop] + load.lead_s)
    return delay_s
