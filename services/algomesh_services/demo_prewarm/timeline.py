"""Which parts of what happened are shown, and in which state a service was at each moment of them."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from algomesh_services.demo_prewarm.figures import Called, Kind, Side
from algomesh_services.demo_prewarm.workload import CODE, LEARNING, PERIOD_S, PIPELINE

State = Literal["off", "loading", "idle", "busy"]
_BEFORE_S = 0.3
_SHOWN_S = 5.4


class Scene(NamedTuple):
    """A part of one mesh's time. `calls` are those that were made in it."""

    title: str
    algorithms: tuple[str, ...]
    since: float
    until: float
    calls: list[Called]

    @property
    def length_s(self) -> float:
        """How long it is."""
        return self.until - self.since


class Span(NamedTuple):
    """A service in one state, in seconds from the beginning of a scene."""

    state: State
    since_s: float
    until_s: float


def scenes(side: Side) -> list[Scene]:
    """The first call, the first and the last through code, and two periods after ten."""
    pipeline, code = side.of("pipeline"), side.of("code")
    known = pipeline[LEARNING + 1]
    return [
        _scene(side, "first call of the pipeline", PIPELINE, pipeline[0].at, _SHOWN_S),
        _scene(side, "first call through code", CODE, code[0].at, _SHOWN_S),
        _scene(side, "second call through code", CODE, code[1].at, _SHOWN_S),
        _scene(side, f"two periods after {LEARNING}", PIPELINE, known.at - PERIOD_S / 2, 2 * PERIOD_S),
    ]


def spans(side: Side, scene: Scene, algorithm: str) -> Iterator[Span]:
    """What a service did in a scene: its instances' loading and being up, then its runs, which lie above that."""
    for life in side.lives:
        if life.algorithm == algorithm:
            yield from _cut(scene, "loading", life.launched, life.ready)
            yield from _cut(scene, "idle", life.ready, life.ended)
    for run in side.runs:
        if run.algorithm == algorithm:
            yield from _cut(scene, "busy", run.began, run.ended)


def states(side: Side, scene: Scene, algorithm: str, count: int) -> list[State]:
    """The scene in so many equal parts; what matters most of each."""
    found: list[State] = ["off"] * count
    for span in sorted(spans(side, scene, algorithm), key=lambda span: span.state == "busy"):
        first = int(span.since_s / scene.length_s * count)
        last = max(first, round(span.until_s / scene.length_s * count) - 1)
        for column in range(first, min(last + 1, count)):
            found[column] = span.state
    return found


def _scene(side: Side, title: str, algorithms: tuple[str, ...], at: float, length_s: float) -> Scene:
    since, until = at - _BEFORE_S, at - _BEFORE_S + length_s
    kind: Kind = "pipeline" if algorithms == PIPELINE else "code"
    calls = [call for call in side.of(kind) if since <= call.at < until]
    return Scene(title, algorithms, since, until, calls)


def _cut(scene: Scene, state: State, since: float, until: float) -> Iterator[Span]:
    since, until = max(since, scene.since), min(until, scene.until)
    if since < until:
        yield Span(state, since - scene.since, until - scene.since)
