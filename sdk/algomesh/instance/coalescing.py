"""Identical calls under way in one instance of an algorithm whose results are kept: one runs, the others wait for it.

Who waits holds no slot, is told that it runs, and gets an answer of its own. When the first is given up, by its caller
or by the clock, the others are not: they begin anew.
"""

from typing import Final, NamedTuple

from algomesh.content import Content
from algomesh.instance.job import Job
from algomesh.result_cache import digest_of
from algomesh_broker.route import Place

_MOST_WAITING: Final = 1024
_Key = tuple[str, int]


class First(NamedTuple):
    """A job that runs: its input's digest, for how long its result is kept, and who waits for it too."""

    job: Job
    digest: str
    cache_s: float
    waiting: list[Job]


class Coalescing:
    """Which jobs of one instance run, and which wait for one like them."""

    def __init__(self, cache_s: float) -> None:
        """`cache_s` is for how long the version's results are kept, 0 for not at all."""
        self._cache_s = cache_s
        self._firsts: dict[_Key, First] = {}
        self._keys: dict[str, _Key] = {}

    def __bool__(self) -> bool:
        """Whether anything runs that others wait for, or may come to wait for."""
        return bool(self._keys)

    def may_join(self, place: Place | None) -> bool:
        """Whether what runs at this place of a route, or alone, is a result to be kept."""
        return bool(self._cache_s) if place is None or place.step.cache_s is None else bool(place.step.cache_s)

    def joins(self, job: Job) -> bool:
        """Whether `job` waits for one like it from now on; else it is to run, and others may join it."""
        call = job.call
        cache_s = self._cache_s
        if job.place is not None and job.place.step.cache_s is not None:
            cache_s = job.place.step.cache_s
        if not cache_s or call.feed:
            return False
        digest = digest_of(Content(call.content_type, call.detail, call.payload))
        if not digest:
            return False
        # A run never waits for one that has called it, however far above: that one's depth is less.
        key = digest, call.depth
        first = self._firsts.get(key)
        if first is not None and len(first.waiting) >= _MOST_WAITING:
            return False
        self._keys[job.run] = key
        if first is None:
            self._firsts[key] = First(job, digest, cache_s, [])
            return False
        first.waiting.append(job)
        return True

    def end(self, job: Job) -> First | None:
        """`job` runs no longer: who waited for it, and what to keep; None where nothing is kept."""
        key = self._keys.get(job.run)
        first = None if key is None else self._firsts.get(key)
        if key is None or first is None or first.job is not job:
            return None
        del self._firsts[key]
        for each in (job, *first.waiting):
            self._keys.pop(each.run, None)
        return first

    def leaves(self, job: Job) -> bool:
        """Whether `job` waited for another; it does no longer."""
        key = self._keys.get(job.run)
        first = None if key is None else self._firsts.get(key)
        if first is None or job not in first.waiting:
            return False
        first.waiting.remove(job)
        del self._keys[job.run]
        return True
