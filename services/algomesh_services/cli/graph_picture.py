"""The call graph as a picture: boxes for algorithms, lines from left to right, as SVG or PNG.

The wider a line, the likelier; its colour says which share of the cold starts behind it was begun ahead in time, and
is grey where there was none yet.
A unit of the drawing is an inch, so that text fits whatever the size of the graph.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Line

from algomesh_broker.platform import Edge
from algomesh_services.cli.graph import delay
from algomesh_services.cli.graph_layout import Layout, Link, Spot

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]
RGBA: TypeAlias = tuple[float, float, float, float]

_INK, _FAINT, _PAPER, _EDGE = "#1f2933", "#66727f", "#f5f7fa", "#9aa5b1"
# Orange to blue, which those who see red and green alike can tell apart.
_IN_TIME: Final = LinearSegmentedColormap.from_list("in time", ["#d9601a", "#b9a58c", "#1769aa"])
_NAME_SIZE, _LABEL_SIZE, _TITLE_SIZE, _NOTE_SIZE = 10.0, 8.0, 13.0, 8.5
_CHARACTER: Final = 0.0085  # inches that a character takes per point of its size, on the average
_BOX_HEIGHT, _REPEATED_HEIGHT, _BOX_PADDING = 0.36, 0.52, 0.13
_BETWEEN, _ROW, _MARGIN = 1.75, 0.68, 0.35
_HEAD, _FOOT = 0.72, 0.95
_UNDER, _ASIDE = 0.24, 0.26  # how far a line that leads back passes under the boxes, and beside them
_PORTS = 0.22  # of a box's height: where lines begin and end
_LEAST_WIDTH: Final = 7.5
_MOST_PIXELS, _DPI = 8_000, 160
_PLACES: Final = (0.5, 0.42, 0.58, 0.34, 0.66, 0.27, 0.73)


def draw(layout: Layout, path: Path, format_: str, *, title: str = "") -> None:
    """Write the picture to `path` as `format_`, svg or png. Raises OSError."""
    with rc_context({"font.family": "DejaVu Sans", "svg.fonttype": "none", "svg.hashsalt": "algomesh"}):
        figure = _Picture(layout, title or "What follows what, as the mesh has learned it").figure
        dpi = min(_DPI, _MOST_PIXELS / max(figure.get_size_inches()))
        figure.savefig(path, format=format_, dpi=dpi, metadata={"Date": None} if format_ == "svg" else None)


class _Picture:
    """Heights are counted from the middle of the first row, upwards."""

    def __init__(self, layout: Layout, title: str) -> None:
        self._layout = layout
        self._repeated = {link.edge.algorithm: link for link in layout.links if _is_repetition(link)}
        self._links = [link for link in layout.links if not _is_repetition(link)]
        self._widths = {name: self._width(name) for name in layout.algorithms}
        layers = range(max(layout.layer.values()) + 1)
        self._broadest = [
            max((width for name, width in self._widths.items() if layout.layer[name] == at), default=0.0)
            for at in layers
        ]
        drawn = sum(self._broadest) + (len(layers) - 1) * _BETWEEN + 2 * _MARGIN
        width = max(drawn + (2 * _ASIDE if any(link.is_back for link in self._links) else 0.0), _LEAST_WIDTH)
        left = (width - drawn) / 2 + _MARGIN
        self._lefts = [left + sum(self._broadest[:at]) + at * _BETWEEN for at in layers]
        self._ports = self._make_ports()
        self._floors = self._make_floors()
        heights = [self._middle(spot) for spot in layout.layer]
        bottom = min(*heights, *self._floors.values()) - _REPEATED_HEIGHT / 2 - _FOOT
        top = max(heights) + _REPEATED_HEIGHT / 2 + _HEAD
        self.figure = Figure(figsize=(width, top - bottom), facecolor="white")
        self._axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set_xlim(0, width)
        self._axes.set_ylim(bottom, top)
        self._axes.axis("off")
        self._taken: list[Box] = [self._box(name) for name in self._widths]
        for link in sorted(self._links, key=lambda link: link.edge.probability):
            self._draw_link(link)
        for name in self._widths:
            self._draw_box(name)
        # The likeliest choose their place first.
        for link in sorted(self._links, key=lambda link: -link.edge.probability):
            self._label(link)
        self._axes.text(_MARGIN, top - 0.38, title, size=_TITLE_SIZE, color=_INK, weight="bold", va="center")
        self._explain(width, top - bottom, bottom)

    def _width(self, name: str) -> float:
        again = self._repeated.get(name)
        written = max(_text_width(name, _NAME_SIZE), _text_width(_again(again), _LABEL_SIZE) if again else 0.0)
        return written + 2 * _BOX_PADDING

    def _middle(self, spot: Spot) -> float:
        return -self._layout.row[spot] * _ROW

    def _box(self, name: str) -> Box:
        left = self._lefts[self._layout.layer[name]]
        middle, half = self._middle(name), (_REPEATED_HEIGHT if name in self._repeated else _BOX_HEIGHT) / 2
        return left, middle - half, left + self._widths[name], middle + half

    def _make_ports(self) -> dict[tuple[int, int], float]:
        """How high each link begins (0) and ends (1), so that lines of one box lie beside each other."""
        ports = {}
        for end, near, far in ((0, 0, 1), (1, -1, -2)):
            by_box: dict[Spot, list[tuple[float, int]]] = {}
            for number, link in enumerate(self._links):
                height = -100.0 if link.is_back else self._middle(link.spots[far])
                by_box.setdefault(link.spots[near], []).append((height, number))
            for spot, found in by_box.items():
                step = _PORTS / max(3, len(found) - 1)
                for place, (_, number) in enumerate(sorted(found)):
                    ports[number, end] = self._middle(spot) + (place - (len(found) - 1) / 2) * step
        return ports

    def _make_floors(self) -> dict[int, float]:
        """How high the links that lead back pass under the boxes between their ends."""
        floors: dict[int, float] = {}
        for number, link in enumerate(self._links):
            if link.is_back:
                layers = sorted(self._layout.layer[spot] for spot in link.spots)
                boxes = [
                    self._box(name)[1] for name in self._widths if layers[0] <= self._layout.layer[name] <= layers[1]
                ]
                floor = min(boxes) - _UNDER
                while any(abs(floor - other) < _UNDER - 1e-9 for other in floors.values()):
                    floor -= _UNDER
                floors[number] = floor
        return floors

    def _draw_box(self, name: str) -> None:
        left, bottom, right, top = self._box(name)
        middle, again = (left + right) / 2, self._repeated.get(name)
        self._axes.add_patch(
            FancyBboxPatch(
                (left, bottom), right - left, top - bottom, boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=_PAPER, edgecolor=_EDGE, linewidth=1.0, zorder=3,
            )
        )  # fmt: skip
        centre = self._middle(name) + (0.1 if again else 0.0)
        self._axes.text(middle, centre, name, size=_NAME_SIZE, color=_INK, ha="center", va="center_baseline", zorder=4)
        if again is not None:
            self._axes.text(
                middle, centre - 0.2, _again(again), size=_LABEL_SIZE, color=_colour(again.edge),
                ha="center", va="center_baseline", zorder=4,
            )  # fmt: skip

    def _line(self, link: Link) -> list[Point]:
        """The points of Bézier curves: an end, two controls, an end, two controls, an end …"""
        number = self._links.index(link)
        first, last = self._box(link.edge.caller_of), self._box(link.edge.algorithm)
        begin, end = (first[2], self._ports[number, 0]), (last[0] - 0.03, self._ports[number, 1])
        if link.is_back:
            floor, right, left = self._floors[number], begin[0] + _ASIDE, end[0] - _ASIDE
            low = floor + _ASIDE
            return [
                begin, (right, begin[1]), (right, begin[1]), (right, begin[1] - _ASIDE),
                (right, low), (right, low), (right, low),
                (right, floor), (right, floor), (right - _ASIDE, floor),
                (right - _ASIDE, floor), (left + _ASIDE, floor), (left + _ASIDE, floor),
                (left, floor), (left, floor), (left, low),
                (left, low), (left, end[1] - _ASIDE), (left, end[1] - _ASIDE),
                (left, end[1]), (left, end[1]), end,
            ]  # fmt: skip
        stops: list[Point] = [begin]
        for spot in link.spots[1:-1]:
            left, broad = self._lefts[self._layout.layer[spot]], self._broadest[self._layout.layer[spot]]
            stops += [(left, self._middle(spot)), (left + broad, self._middle(spot))]
        points = [begin]
        for (x0, y0), (x1, y1) in itertools.pairwise([*stops, end]):
            bend = (x1 - x0) / 2
            points += [(x0 + bend, y0), (x1 - bend, y1), (x1, y1)]
        return points

    def _draw_link(self, link: Link) -> None:
        points = self._line(link)
        codes = [Line.MOVETO] + [Line.CURVE4] * (len(points) - 1)
        self._axes.add_patch(
            FancyArrowPatch(
                path=Line(points, codes), arrowstyle="-|>,head_length=4,head_width=2.4", mutation_scale=1.4,
                linewidth=_line_width(link.edge.probability), color=_colour(link.edge), zorder=2,
                capstyle="butt", joinstyle="miter", shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip

    def _label(self, link: Link) -> None:
        text = _figures(link.edge)
        width, height = _text_width(text, _LABEL_SIZE) + 0.06, 0.17
        points = self._line(link)
        # Where it runs alone: at the bottom, where it passes the first layer, else in the gap.
        start = 9 if link.is_back else 3 if len(link.spots) > 2 else 0
        curve = points[start : start + 4]
        best, least = _on_curve(curve, 0.5), float("inf")
        for place in _PLACES:
            x, y = _on_curve(curve, place)
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            overlap = sum(_overlap(box, other) for other in self._taken)
            if overlap < least - 1e-9:
                best, least = (x, y), overlap
        x, y = best
        self._taken.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        self._axes.text(
            x, y, text, size=_LABEL_SIZE, color=_INK, ha="center", va="center", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.88, "boxstyle": "round,pad=0.12"},
        )  # fmt: skip

    def _explain(self, width: float, height: float, bottom: float) -> None:
        axes = self.figure.add_axes((_MARGIN / width, 0.36 / height, 1.9 / width, 0.11 / height))
        bar = self.figure.colorbar(ScalarMappable(Normalize(0, 100), _IN_TIME), cax=axes, orientation="horizontal")
        bar.set_ticks([0, 50, 100], labels=["0 %", "50 %", "100 %"])
        bar.outline.set_visible(False)
        axes.tick_params(labelsize=_NOTE_SIZE - 1, colors=_FAINT, length=2)
        axes.set_title("cold starts begun ahead in time", size=_NOTE_SIZE, color=_FAINT, loc="left", pad=4)
        left, line, heading = _MARGIN + 2.75, bottom + 0.42, bottom + 0.575
        write = partial(self._axes.text, color=_FAINT, va="center")
        write(left, heading, "how likely it follows", size=_NOTE_SIZE)
        for number, probability in enumerate((0.1, 0.5, 1.0)):
            x = left + number * 0.75
            self._axes.add_line(
                Line2D(
                    [x, x + 0.3], [line] * 2, linewidth=_line_width(probability), color=_FAINT, solid_capstyle="butt"
                )
            )
            write(x + 0.37, line, f"{probability:g}", size=_NOTE_SIZE - 1)
        write(left + 2.45, heading, "0.93 · 1.2 s", size=_NOTE_SIZE)
        write(left + 2.45, line, "probability, and after how long", size=_NOTE_SIZE - 1)


def _is_repetition(link: Link) -> bool:
    return link.edge.caller_of == link.edge.algorithm


def _colour(edge: Edge) -> RGBA | str:
    return _EDGE if edge.in_time is None else _IN_TIME(edge.in_time)


def _figures(edge: Edge) -> str:
    return f"{edge.probability:.2f} · {delay(edge.delay_s)}"


def _again(link: Link) -> str:
    return f"again: {_figures(link.edge)}"


def _line_width(probability: float) -> float:
    return 0.7 + 3.6 * probability


def _text_width(text: str, size: float) -> float:
    return len(text) * size * _CHARACTER


def _on_curve(points: Sequence[Point], place: float) -> Point:
    a, b, c, d = (1 - place) ** 3, 3 * place * (1 - place) ** 2, 3 * place**2 * (1 - place), place**3
    weights = (a, b, c, d)
    return (
        sum(weight * point[0] for weight, point in zip(weights, points, strict=True)),
        sum(weight * point[1] for weight, point in zip(weights, points, strict=True)),
    )


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return across * up if across > 0 and up > 0 else 0.0
