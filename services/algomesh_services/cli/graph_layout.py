"""Where everything stands in a picture of the call graph: layers from left to right in the order of calls.

Sugiyama's method in four steps: break cycles, give each algorithm a layer, order each layer so that few lines cross,
then straighten the lines. A line that passes layers has a place of its own in each, so that it passes nothing's box.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import networkx as nx

from algomesh_broker.platform import Edge

LEAST_PROBABILITY: Final = 0.05
MOST_EDGES: Final = 120
_SWEEPS: Final = 12
# How far apart two neighbours of a layer stand, in rows; a line that only passes takes less room.
_APART, _PASSING_APART = 1.0, 0.55

Spot: TypeAlias = str | tuple[int, int]
"""An algorithm's name, or a pair of a link's number and a layer for a line that passes."""


@dataclass(frozen=True, slots=True)
class Link:
    """An edge with the spots that its line goes through; `is_back` when it leads to an earlier layer, or to itself."""

    edge: Edge
    spots: tuple[Spot, ...]
    is_back: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """`layer` and `row` of every spot, the links between them, and how many edges are not shown."""

    layer: Mapping[Spot, int]
    row: Mapping[Spot, float]
    links: Sequence[Link]
    left_out: int

    @property
    def algorithms(self) -> list[str]:
        """The spots that are algorithms."""
        return [spot for spot in self.layer if isinstance(spot, str)]


def lay_out(edges: Sequence[Edge]) -> Layout:
    """Place what is worth drawing of these edges."""
    chosen = worth_drawing(edges)
    ahead, back = _without_cycles(chosen)
    layer = _layers(ahead)
    for edge in back:
        for name in (edge.caller_of, edge.algorithm):
            layer.setdefault(name, 0)
    spots: dict[Spot, int] = dict(layer.items())
    links = []
    for number, edge in enumerate(ahead):
        passed = [(number, between) for between in range(layer[edge.caller_of] + 1, layer[edge.algorithm])]
        spots.update(((number, between), between) for _, between in passed)
        links.append(Link(edge, (edge.caller_of, *passed, edge.algorithm), False))
    links += [Link(edge, (edge.caller_of, edge.algorithm), True) for edge in back]
    rows = _rows(spots, [pair for link in links if not link.is_back for pair in itertools.pairwise(link.spots)])
    return Layout(spots, rows, links, len(edges) - len(chosen))


def worth_drawing(edges: Sequence[Edge]) -> list[Edge]:
    """The edges that are likely enough, the likeliest where there are too many to be read."""
    likely = [edge for edge in edges if edge.probability >= LEAST_PROBABILITY]
    likely.sort(key=lambda edge: (-edge.probability, -edge.count))
    return likely[:MOST_EDGES]


def _without_cycles(edges: Sequence[Edge]) -> tuple[list[Edge], list[Edge]]:
    """The edges that lead onward, and those that lead back: of a circle, the least likely."""
    known = {(edge.caller_of, edge.algorithm): edge for edge in edges}
    graph: Any = nx.DiGraph(key for key in known if key[0] != key[1])
    back = [edge for edge in edges if edge.caller_of == edge.algorithm]
    while True:
        try:
            circle = nx.find_cycle(graph)
        except nx.NetworkXNoCycle:
            break
        # Of equally likely ones the later, since a circle is entered at its beginning.
        weakest = min((known[pair] for pair in circle), key=lambda edge: (edge.probability, -edge.delay_s))
        graph.remove_edge(weakest.caller_of, weakest.algorithm)
        back.append(weakest)
    left = set(graph.edges)
    return [edge for edge in edges if (edge.caller_of, edge.algorithm) in left], back


def _layers(edges: Sequence[Edge]) -> dict[str, int]:
    """How many calls come before each, on the longest way; beginnings stand just before what follows them."""
    graph: Any = nx.DiGraph((edge.caller_of, edge.algorithm) for edge in edges)
    layer = {name: depth for depth, names in enumerate(nx.topological_generations(graph)) for name in names}
    for name in [name for name in layer if not graph.in_degree(name)]:
        layer[name] = min(layer[later] for later in graph.successors(name)) - 1
    return layer


def _rows(spots: Mapping[Spot, int], pairs: Sequence[tuple[Spot, Spot]]) -> dict[Spot, float]:
    before: dict[Spot, list[Spot]] = {spot: [] for spot in spots}
    after: dict[Spot, list[Spot]] = {spot: [] for spot in spots}
    for first, second in pairs:
        after[first].append(second)
        before[second].append(first)
    layers: list[list[Spot]] = [[] for _ in range(max(spots.values(), default=-1) + 1)]
    for spot in _in_depth(spots, after):
        layers[spots[spot]].append(spot)
    layers = _uncross(layers, before, after)
    return _straighten(layers, before, after)


def _in_depth(spots: Mapping[Spot, int], after: Mapping[Spot, Sequence[Spot]]) -> list[Spot]:
    """Everything, with what follows it close behind it."""
    found: dict[Spot, None] = {}
    waiting = sorted(spots, key=lambda spot: -spots[spot])
    while waiting:
        spot = waiting.pop()
        if spot not in found:
            found[spot] = None
            waiting += reversed(after[spot])
    return list(found)


def _uncross(
    layers: list[list[Spot]], before: Mapping[Spot, Sequence[Spot]], after: Mapping[Spot, Sequence[Spot]]
) -> list[list[Spot]]:
    """Order each layer by where its neighbours are, to and fro; the best that was met."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers, after)
    for sweep in range(_SWEEPS):
        neighbours, order = (before, layers) if sweep % 2 == 0 else (after, layers[::-1])
        for previous, layer in itertools.pairwise(order):
            place = {spot: index for index, spot in enumerate(previous)}
            own = {spot: float(index) for index, spot in enumerate(layer)}
            layer.sort(key=lambda spot: _mean((place[near] for near in neighbours[spot]), own[spot]))
        crossings = _crossings(layers, after)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best


def _crossings(layers: Sequence[Sequence[Spot]], after: Mapping[Spot, Sequence[Spot]]) -> int:
    count = 0
    for layer, later in itertools.pairwise(layers):
        place = {spot: index for index, spot in enumerate(later)}
        lines = [(index, place[second]) for index, spot in enumerate(layer) for second in after[spot]]
        count += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in itertools.combinations(lines, 2))
    return count


def _straighten(
    layers: Sequence[Sequence[Spot]], before: Mapping[Spot, Sequence[Spot]], after: Mapping[Spot, Sequence[Spot]]
) -> dict[Spot, float]:
    """Rows in which each spot is as near as may be to the middle of its neighbours, in the order of its layer."""
    rows: dict[Spot, float] = {}
    for layer in layers:
        rows.update(zip(layer, _apart(layer, [0.0] * len(layer)), strict=True))
    for sweep in range(2 * _SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = [_mean((rows[near] for near in (*before[spot], *after[spot])), rows[spot]) for spot in layer]
            rows.update(zip(layer, _apart(layer, wanted), strict=True))
    top = min(rows.values(), default=0.0)
    return {spot: row - top for spot, row in rows.items()}


def _apart(layer: Sequence[Spot], wanted: Sequence[float]) -> list[float]:
    """The rows nearest to those wanted that keep the order and the distances: least squares, by pooling neighbours."""
    offset, offsets = 0.0, []
    for index, spot in enumerate(layer):
        if index:
            is_passing = not isinstance(spot, str) or not isinstance(layer[index - 1], str)
            offset += _PASSING_APART if is_passing else _APART
        offsets.append(offset)
    blocks: list[tuple[float, int]] = []
    for row, moved in zip(wanted, offsets, strict=True):
        total, size = row - moved, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / size:
            more, count = blocks.pop()
            total, size = total + more, size + count
        blocks.append((total, size))
    levels = [total / size for total, size in blocks for _ in range(size)]
    return [level + moved for level, moved in zip(levels, offsets, strict=True)]


def _mean(values: Iterable[float], otherwise: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else otherwise
