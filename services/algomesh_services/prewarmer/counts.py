"""Which algorithms are called later in a request, given what was called so far: prediction by partial matching.

Contexts from specific to general, each backed off into the next (Cleary & Witten 1984, "Data compression using
adaptive coding and partial string matching"; here with the fixed escape weight κ and decayed counts):

    root and the last three calls · caller, algorithm, previous · previous, algorithm · algorithm

    p_k = (n_k + κ · p_{k−1}) / (N_k + κ)

All later callees of a request are learned at every context, not only the next or the children: what takes ten seconds
to load must be known ten seconds ahead, many hops before its caller calls it. (Xanadu, Daw et al., Middleware 2020,
follows a static most likely path of children; Orion, Mahgoub et al., OSDI 2022, knows its graph beforehand.)
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import msgspec

from algomesh_services.prewarmer.decay import KEEP, faded, left
from algomesh_services.prewarmer.delays import SIZE, Recent

Context: TypeAlias = tuple[str | None, ...]
"""Who was called; the length and the first field tell the orders apart."""

BACKING = 1.0
"""κ: the general context speaks with the weight of one observation of the specific one, the least that is a whole
observation: after the first time a specific context was seen, both count the same."""

MOST_CALLEES_IN_ALL = 200_000
"""Of all contexts together, some 500 bytes each: 100 MB at most. 500 algorithms that each call 50 others take an eighth
of it for themselves, and leave the rest for their contexts."""

MOST_CALLEES = 512  # of one context; the least likely goes. An algorithm with more successors has no likely ones.


class Later(NamedTuple):
    """An algorithm that was called after a context: warm seconds until then, by whom."""

    algorithm: str
    delay_s: float
    parent: str
    is_child: bool


class Prediction(NamedTuple):
    """An algorithm that may be called later: how likely, and what delays that had (most telling first)."""

    algorithm: str
    probability: float
    parent: str
    delays_s: list[float]


class Callee(msgspec.Struct, gc=False):
    """How often an algorithm followed a context, and after how long.

    Hundreds of thousands of them refer to nothing that refers back, so the garbage collector need not look at them:
    it would stop everything for half a second.
    """

    parent: str
    delays: Recent
    count: float = 0.0
    direct: float = 0.0
    seen: int = 0


class Node:
    """One context: how often it was seen (decayed `count`, `seen` in all), what followed, how long until the end."""

    __slots__ = ("callees", "count", "ends", "seen")

    def __init__(self) -> None:
        self.count = 0.0
        self.seen = 0
        self.callees: dict[str, Callee] = {}
        self.ends = Recent()

    def observe(self, later: Iterable[Later], end_s: float | None) -> int:
        """One more request went through this context; the number of callees that are new."""
        seen, callees = self.seen + 1, self.callees
        self.seen, self.count = seen, self.count * KEEP + 1.0
        before = len(callees)
        for algorithm, delay_s, parent, is_child in later:
            callee = callees.get(algorithm)
            if callee is None:
                callee = callees[algorithm] = Callee(parent, Recent())
            share = left(seen - callee.seen)
            callee.count = callee.count * share + 1.0
            callee.direct = callee.direct * share + is_child
            callee.seen = seen
            callee.parent = parent
            callee.delays.add(delay_s)
        if end_s is not None:
            self.ends.add(end_s)
        while len(callees) > MOST_CALLEES:
            del callees[min(callees, key=self.count_of)]
        return len(callees) - before

    def count_of(self, algorithm: str) -> float:
        """The decayed count of one callee."""
        callee = self.callees[algorithm]
        return faded(callee.count, self.seen - callee.seen)


class Counts:
    """All contexts, the least recently seen forgotten first once they hold more than `most` callees.

    `order`: how many of the last calls a context may hold, 1 to 3.
    """

    def __init__(self, *, order: int = 3, most: int = MOST_CALLEES_IN_ALL) -> None:
        self.order = order
        self.most = most
        self.size = 0
        self.nodes: OrderedDict[Context, Node] = OrderedDict()

    def contexts(self, root: str, caller: str | None, last: list[str]) -> tuple[Context, ...]:
        """The contexts of a call, general to specific; `last` ends with the algorithm called."""
        algorithm = last[-1]
        contexts: list[Context] = [(algorithm,)]
        if self.order >= 2:
            previous = last[-2] if len(last) > 1 else None
            contexts += [(previous, algorithm), (caller, previous, algorithm)]
        if self.order >= 3:
            contexts.append((root, *last[-3:], None))
        return tuple(contexts)

    def learn(self, contexts: Iterable[Context], later: list[Later], end_s: float | None) -> int:
        """A request went through these contexts, and called `later` afterwards; it ended after `end_s` warm seconds.

        Returns how many contexts have learned it.

        A specific context is made only once the one below it was seen before, so that contexts which never repeat
        (parallel calls in ever other order) do not fill the memory.
        """
        learned = 0
        for context in contexts:
            learned += 1
            node = self.nodes.get(context)
            is_new = node is None
            if node is None:
                node = self.nodes[context] = Node()
                self.size += 1
            else:
                self.nodes.move_to_end(context)
            self.size += node.observe(later, end_s)
            if is_new:
                break
        self._shrink()
        return learned

    def put(self, context: Context, node: Node) -> None:
        """Know this context, as the one seen last."""
        self.nodes[context] = node
        self.size += 1 + len(node.callees)
        self._shrink()

    def predict(self, contexts: Iterable[Context]) -> "Predictions":
        """What follows, judged by all contexts that are known."""
        return Predictions([node for node in map(self.nodes.get, contexts) if node is not None])

    def _shrink(self) -> None:
        while self.size > self.most and len(self.nodes) > 1:
            _, oldest = self.nodes.popitem(last=False)
            self.size -= 1 + len(oldest.callees)

    def edges(self) -> Iterator[tuple[str, str, float, float, list[float]]]:
        """Who calls whom: (from, to, probability that a call of `from` itself calls `to`, how often, delays)."""
        for context, node in self.nodes.items():
            if len(context) == 1 and context[0] is not None:
                for algorithm, callee in node.callees.items():
                    direct = faded(callee.direct, node.seen - callee.seen)
                    if direct > 0.0:
                        yield context[0], algorithm, direct / node.count, direct, list(callee.delays.values)


class Predictions:
    """What a chain of contexts says, general to specific."""

    __slots__ = ("_nodes",)

    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes

    def probabilities(self) -> dict[str, float]:
        """The probability of each algorithm that was ever seen to follow to be called later in this request."""
        if not self._nodes:
            return {}
        known: dict[str, float] = {}
        for node in self._nodes:
            scale = 1.0 / (node.count + BACKING)
            seen, callees = node.seen, node.callees
            for algorithm in known:
                if algorithm not in callees:
                    known[algorithm] *= BACKING * scale
            for algorithm, callee in callees.items():
                count = callee.count if callee.seen == seen else faded(callee.count, seen - callee.seen)
                known[algorithm] = (count + BACKING * known.get(algorithm, 0.0)) * scale
        return known

    def of(self, algorithm: str) -> tuple[str, list[float]]:
        """The algorithm that usually calls it, and up to sixteen delays until then, the most specific ones first."""
        parent = ""
        delays: list[float] = []
        for node in reversed(self._nodes):
            callee = node.callees.get(algorithm)
            if callee is not None:
                parent = parent or callee.parent
                delays += callee.delays.values[: SIZE - len(delays)]
                if len(delays) >= SIZE:
                    break
        return parent, delays

    def end_s(self) -> float | None:
        """Seconds until such a request ends, as the most specific context has it (its mean lately)."""
        for node in reversed(self._nodes):
            if node.ends.values:
                return sum(node.ends.values) / len(node.ends.values)
        return None
