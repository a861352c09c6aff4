"""What a second of latency is worth, in seconds of a held instance."""

from algomesh_services.prewarmer.actions import Fleet, LatencyValue
from algomesh_services.prewarmer.requests import Record

_LEAST_WEIGHT = 1e-3  # of a GPU: what costs nothing at all would be held for ever


class Worth:
    """The price of waiting, by algorithm and caller."""

    __slots__ = ("_fleet", "_value")

    def __init__(self, fleet: Fleet, value: LatencyValue) -> None:
        self._fleet = fleet
        self._value = value

    def rho(self, name: str, caller: str | None, standby: float) -> float:
        """Seconds of an instance of this algorithm that a second of its callers' latency is worth; 0: hold nothing.

        The caller's time is worth `latency_value`; `standby` is the GPU weight of what is up meanwhile and can only
        wait: whoever calls it, and their callers.
        """
        worth = self._value(name, caller) if callable(self._value) else self._value
        if worth <= 0.0:
            return 0.0
        return (worth + standby) / max(_LEAST_WEIGHT, self._fleet.gpu_weight(name))

    def standby(self, record: Record) -> float:
        """The GPU weight of a call and its ancestors, each algorithm once."""
        above = record.parent
        if above is None:
            return self._weight(record.algorithm)
        ancestor: Record | None = above
        while ancestor is not None:
            if ancestor.algorithm == record.algorithm:
                return above.standby
            ancestor = ancestor.parent
        return above.standby + self._weight(record.algorithm)

    def _weight(self, name: str) -> float:
        return self._fleet.gpu_weight(name) if self._fleet.cold_start_s(name) > 0.0 else 0.0
