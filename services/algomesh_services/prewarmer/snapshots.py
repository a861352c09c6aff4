"""What the policy has learned, as plain structures that msgspec encodes, and back again.

Open requests and present gaps are not part of it: after a restart they are seen to begin anew. What is damaged is
refused as a whole, before anything is replaced.
"""

import math
from array import array
from collections import OrderedDict
from collections.abc import Generator, Iterable

import msgspec

from algomesh_services.prewarmer.algorithms import Algorithm, Algorithms
from algomesh_services.prewarmer.counts import Callee, Context, Counts, Node
from algomesh_services.prewarmer.decay import Mean
from algomesh_services.prewarmer.delays import SIZE, LoadSpread, Recent
from algomesh_services.prewarmer.gaps import OPINIONS, Gaps, Rhythm
from algomesh_services.prewarmer.hazards import BINS, MOST_UNIT, Histogram
from algomesh_services.prewarmer.pools import Pools

SCHEMA = 1
_PIECE = 256  # callees, about four microseconds each
_OF_ALGORITHM = 8  # an algorithm takes as long as so many of them
_encode = msgspec.msgpack.Encoder().encode


class CalleeState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A callee of a context."""

    algorithm: str
    count: float
    direct: float
    seen: int
    parent: str
    delays_s: list[float]


class NodeState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A context, least recently seen first."""

    context: list[str | None]
    count: float
    seen: int
    ends_s: list[float]
    callees: list[CalleeState]


class HistogramState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Weights by bin, and the weight of the last observation."""

    ended: dict[int, float]
    censored: dict[int, float]
    unit: float


class RhythmState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """When a caller called, and its gaps."""

    caller: str | None
    last_s: float
    gaps_s: list[float]


class AlgorithmState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is known of one algorithm."""

    name: str
    version: str | None
    caller: str | None
    exposed: tuple[float, float]
    standby: tuple[float, float]
    beside: tuple[float, float]
    mean: tuple[float, float]
    ended: float
    waited_s: float
    scores: list[float]
    recent_s: list[float]
    own: HistogramState
    callers: list[RhythmState]


class AccountState(msgspec.Struct, frozen=True, array_like=True):
    """What a caller computed and wasted, in GPU-seconds, by number of the time."""

    caller: str
    buckets: list[tuple[int, float, float]]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything learned, of one schema version, and the accounts of callers (speculation.py)."""

    schema: int = SCHEMA
    nodes: list[NodeState] = []
    algorithms: list[AlgorithmState] = []
    absolute: HistogramState = HistogramState({}, {}, 1.0)
    relative: list[tuple[int | None, HistogramState]] = []
    load_ratios: list[float] = []
    accounts: list[AccountState] = []


class Packed(msgspec.Struct, kw_only=True):
    """A Snapshot of which the long parts are packed already; packed itself, it has the same bytes."""

    schema: int = SCHEMA
    nodes: list[msgspec.Raw] = []
    algorithms: list[msgspec.Raw] = []
    absolute: HistogramState = HistogramState({}, {}, 1.0)
    relative: list[tuple[int | None, HistogramState]] = []
    load_ratios: list[float] = []
    accounts: list[msgspec.Raw] = []


def pack(counts: Counts, algorithms: Algorithms, pools: Pools, loads: LoadSpread) -> Generator[None, None, Packed]:
    """The state of these, piece by piece: it stops after each millisecond's work or so, and returns all at the end.

    What is learned in between may or may not be in it: each context and each algorithm is whole.
    """
    packed = Packed(
        absolute=_histogram_state(pools.absolute),
        relative=[(rate, _histogram_state(histogram)) for rate, histogram in pools.relative.items()],
        load_ratios=loads.ratios,
    )
    done = 0
    for context in list(counts.nodes):  # no tuples of two, which the garbage collector would go through
        node = counts.nodes.get(context)
        if node is None:
            continue
        packed.nodes.append(msgspec.Raw(_encode(_node_state(context, node))))
        done += 1 + len(node.callees)
        if done >= _PIECE:
            done = 0
            yield
    for name, known in list(algorithms.known.items()):
        packed.algorithms.append(msgspec.Raw(_encode(_algorithm_state(name, known))))
        done += _OF_ALGORITHM
        if done >= _PIECE:
            done = 0
            yield
    return packed


def take(counts: Counts, algorithms: Algorithms, pools: Pools, loads: LoadSpread) -> Snapshot:
    """The state of these as a structure of its own: what is learned later does not change it."""
    return Snapshot(
        nodes=[_node_state(context, node) for context, node in counts.nodes.items()],
        algorithms=[_algorithm_state(name, known) for name, known in algorithms.known.items()],
        absolute=_histogram_state(pools.absolute),
        relative=[(rate, _histogram_state(histogram)) for rate, histogram in pools.relative.items()],
        load_ratios=loads.ratios,
    )


def read(snapshot: Snapshot | bytes) -> Snapshot:
    """The structure, decoded from MessagePack or JSON if need be. Raises ValueError on what is damaged or unknown."""
    if not isinstance(snapshot, Snapshot):
        decode = msgspec.json.decode if snapshot[:1] == b"{" else msgspec.msgpack.decode
        try:
            snapshot = decode(snapshot, type=Snapshot)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ValueError(f"the snapshot cannot be read: {error}") from error
    if snapshot.schema != SCHEMA:
        raise ValueError(f"the snapshot has schema {snapshot.schema}, and this program reads {SCHEMA}")
    return snapshot


def fill(snapshot: Snapshot, counts: Counts, algorithms: Algorithms, pools: Pools) -> LoadSpread:
    """Put what was learned into these, which are new and empty. Raises ValueError on what cannot be."""
    for state in snapshot.nodes:
        _at_least_zero(state.count, *state.ends_s)
        node = Node()
        node.count, node.seen, node.ends = state.count, state.seen, _recent(state.ends_s)
        if not state.context or state.seen < 1:
            raise ValueError("the snapshot is damaged: a context without an algorithm, or that was never seen")
        for callee in state.callees:
            _at_least_zero(callee.count, callee.direct, *callee.delays_s)
            made = node.callees[callee.algorithm] = Callee(callee.parent, Recent())
            made.count, made.direct, made.seen = callee.count, callee.direct, callee.seen
            made.delays = _recent(callee.delays_s)
            if not 0 < callee.seen <= state.seen or not callee.delays_s:
                raise ValueError("the snapshot is damaged: a callee without a delay, or that was never seen")
        counts.put(tuple(state.context), node)
    known: OrderedDict[str, Algorithm] = OrderedDict()
    for one in snapshot.algorithms:
        known[one.name] = _algorithm(one)
    algorithms.put(known)
    pools.absolute = _histogram(snapshot.absolute, pools.absolute)
    for rate, histogram in snapshot.relative:
        pools.relative[rate] = _histogram(histogram, pools.absolute)
    _at_least_zero(*snapshot.load_ratios)
    return LoadSpread(snapshot.load_ratios[-SIZE:])


def _node_state(context: Context, node: Node) -> NodeState:
    callees = [
        CalleeState(name, callee.count, callee.direct, callee.seen, callee.parent, callee.delays.in_order())
        for name, callee in node.callees.items()
    ]
    return NodeState(list(context), node.count, node.seen, node.ends.in_order(), callees)


def _algorithm_state(name: str, known: Algorithm) -> AlgorithmState:
    gaps = known.gaps
    return AlgorithmState(
        name=name,
        version=known.version,
        caller=known.caller,
        exposed=(known.exposed.value, known.exposed.weight),
        standby=(known.standby.value, known.standby.weight),
        beside=(known.beside.value, known.beside.weight),
        mean=(gaps.mean.value, gaps.mean.weight),
        ended=gaps.ended,
        waited_s=gaps.waited_s,
        scores=list(gaps.scores),
        recent_s=gaps.recent.in_order(),
        own=_histogram_state(gaps.own),
        callers=[RhythmState(caller, one.last_s, one.gaps.in_order()) for caller, one in gaps.callers.items()],
    )


def _algorithm(state: AlgorithmState) -> Algorithm:
    _at_least_zero(state.ended, state.waited_s, *state.recent_s, *state.exposed, *state.standby, *state.beside)
    _finite(*state.mean, *state.scores)
    if len(state.scores) != len(OPINIONS) or abs(state.mean[0]) > 64 or max(state.scores) > 0:
        raise ValueError(f"the snapshot is damaged: the gaps of {state.name}")
    made = Algorithm()
    made.version, made.caller = state.version, state.caller
    made.exposed, made.standby, made.beside = Mean(*state.exposed), Mean(*state.standby), Mean(*state.beside)
    gaps = made.gaps = Gaps()
    gaps.mean = Mean(*state.mean)
    gaps.ended, gaps.waited_s, gaps.scores = state.ended, state.waited_s, list(state.scores)
    gaps.recent, gaps.own = _recent(state.recent_s), _histogram(state.own, gaps.own)
    for one in state.callers:
        _finite(one.last_s)
        _at_least_zero(*one.gaps_s)
        rhythm = gaps.callers[one.caller] = Rhythm(one.last_s)
        rhythm.gaps = _recent(one.gaps_s)
    return made


def _histogram_state(histogram: Histogram) -> HistogramState:
    return HistogramState(_sparse(histogram.ended), _sparse(histogram.censored), histogram.unit)


def _sparse(counts: "array[float]") -> dict[int, float]:
    return {b: count for b, count in enumerate(counts) if count > 0.0}


def _histogram(state: HistogramState, like: Histogram) -> Histogram:
    if not 1.0 <= state.unit <= MOST_UNIT:
        raise ValueError("the snapshot is damaged: the unit of a histogram")
    made = Histogram(like.keep)
    made.unit = state.unit
    for counts, sparse in ((made.ended, state.ended), (made.censored, state.censored)):
        for b, count in sparse.items():
            if not 0 <= b < BINS:
                raise ValueError(f"the snapshot is damaged: there is no bin {b}")
            _at_least_zero(count)
            counts[b] = count
    return made


def _recent(values: Iterable[float]) -> Recent:
    return Recent.of(values)


def _finite(*values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError("the snapshot is damaged: a number that is none")


def _at_least_zero(*values: float) -> None:
    _finite(*values)
    if values and min(values) < 0.0:
        raise ValueError("the snapshot is damaged: a negative count or time")
