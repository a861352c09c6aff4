"""What is remembered of each algorithm by itself, whatever requests it is called in. Versions share it."""

from collections import OrderedDict

from algomesh_services.prewarmer.decay import Mean
from algomesh_services.prewarmer.gaps import Gaps

MOST_ALGORITHMS = 20_000  # the longest uncalled goes first; one is about 3 kB


class Algorithm:
    """One algorithm: its gaps, what pre-starting leaves exposed of its cold starts, and what its callers hold."""

    __slots__ = ("beside", "caller", "exposed", "gaps", "idle_s", "planned", "standby", "version")

    def __init__(self) -> None:
        self.gaps = Gaps()
        self.exposed = Mean(1.0)
        """The share of a cold start that the first call of a request would lately have waited for, had it been off."""
        self.beside = Mean(0.0)
        """The share of its own calls that it makes while another of them waits: 1 where it fans out."""
        self.standby = Mean(0.0)
        """GPU weight of what waits with a caller."""
        self.idle_s: float | None = None
        """Since when it is idle; None while it is called, or where that is not known."""
        self.planned: dict[int, float] = {}
        """The starts of the windows that are held for its gap, by number."""
        self.caller: str | None = None
        self.version: str | None = None


class Algorithms:
    """The algorithms by name, bounded."""

    def __init__(self, most: int = MOST_ALGORITHMS) -> None:
        self.most = most
        self.known: OrderedDict[str, Algorithm] = OrderedDict()

    def get(self, name: str) -> Algorithm:
        """The algorithm; it counts as heard of."""
        found = self.known.get(name)
        if found is None:
            found = self.known[name] = Algorithm()
            if len(self.known) > self.most:
                self.known.popitem(last=False)
        else:
            self.known.move_to_end(name)
        return found

    def version(self, name: str) -> str | None:
        """The version called last, where calls say one."""
        found = self.known.get(name)
        return found.version if found is not None else None

    def put(self, known: OrderedDict[str, Algorithm]) -> None:
        """Know these instead, the last ones if they are too many."""
        while len(known) > self.most:
            known.popitem(last=False)
        self.known = known
