"""The demo's figures as a table, as timelines of characters, and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Final

from algomesh_services.demo.screen import Screen
from algomesh_services.demo_prewarm.figures import Called, Periodic, Side
from algomesh_services.demo_prewarm.timeline import Scene, State, scenes, states
from algomesh_services.demo_prewarm.workload import CODE, LEARNING, PERIOD_S, PIPELINE

_SIGNS: Final[dict[State, str]] = {"off": "·", "loading": "▒", "idle": "─", "busy": "█"}
_LABEL: Final = 12


def show_table(screen: Screen, without: Side, ahead: Side, *, at_once_s: float) -> None:
    """Latency, cold starts, GPU-seconds held, and what was saved, of both."""
    rows = [
        ("", "without", "with"),
        *_first_rows(without, ahead, at_once_s),
        *_code_rows(without, ahead),
        *_periodic_rows(without, ahead),
        *_all_rows(without, ahead),
    ]
    screen.table(rows[0], rows[1:])
    screen.text("held: GPU-seconds of a quarter of a GPU each, from launch to end: loading, idle and busy")


def show_timelines(screen: Screen, without: Side, ahead: Side) -> None:
    """What each service did in a few scenes; a column is the same time in both meshes."""
    columns = screen.width - _LABEL - 3
    for ours, theirs in zip(scenes(without), scenes(ahead), strict=True):
        screen.line()
        screen.text(f"{ours.title}: {ours.length_s:.1f} s, {ours.length_s / columns * 1000:.0f} ms a column")
        for side, scene in ((without, ours), (ahead, theirs)):
            screen.text(f"{side.name}:")
            for algorithm in scene.algorithms:
                screen.line(f"  {algorithm:<{_LABEL}} {_drawn(side, scene, algorithm, columns)}")
    screen.line()
    screen.text("· not there   ▒ loading   ─ idle   █ busy")


def as_json(without: Side, ahead: Side, *, at_once_s: float) -> dict[str, object]:
    """All figures, rounded."""
    return {
        "at_once_s": round(at_once_s, 3),
        "period_s": PERIOD_S,
        **{side.name: _figures(side, at_once_s) for side in (without, ahead)},
    }


def _first_rows(without: Side, ahead: Side, at_once_s: float) -> Iterator[tuple[str, str, str]]:
    first = [side.of("pipeline")[0] for side in (without, ahead)]
    yield ("first call of the pipeline", *_both(_seconds(call.took_s) for call in first))
    of_it = (f"{call.took_s / at_once_s:.2f} ×" for call in first)
    yield (f"  of the four started at once ({_seconds(at_once_s)})", *_both(of_it))


def _code_rows(without: Side, ahead: Side) -> Iterator[tuple[str, str, str]]:
    for number, name in ((0, "first"), (1, "second"), (-1, "sixth")):
        calls = [side.of("code")[number] for side in (without, ahead)]
        yield (f"{name} call through code (cold starts)", *_both(map(_call, calls)))


def _periodic_rows(without: Side, ahead: Side) -> Iterator[tuple[str, str, str]]:
    found = [Periodic.of(side, PIPELINE, after=LEARNING, period_s=PERIOD_S) for side in (without, ahead)]
    yield (
        f"every {PERIOD_S:g} s, after {LEARNING} periods: cold starts",
        *_both(str(one.cold_starts) for one in found),
    )
    yield ("  waited for these", *_both(_seconds(one.cold_s) for one in found))
    yield ("  slowest call", *_both(_seconds(one.slowest_s) for one in found))
    yield ("  held in each period", *_both(f"{one.held_s:.2f}" for one in found))
    always_s = found[0].always_s
    yield (f"    of always warm ({always_s:g})", *_both(f"{one.share:.0%}" for one in found))


def _all_rows(without: Side, ahead: Side) -> Iterator[tuple[str, str, str]]:
    sides = (without, ahead)
    yield ("all calls: waited for", *_both(_seconds(sum(call.took_s for call in side.calls)) for side in sides))
    yield ("  cold starts", *_both(str(sum(call.cold_starts for call in side.calls)) for side in sides))
    yield ("  held", *_both(f"{_held_s(side):.0f}" for side in sides))
    if ahead.saved_s is not None:
        yield ("  saved, as the pre-warmer counts it", "", f"{ahead.saved_s:.0f} s")


def _figures(side: Side, at_once_s: float) -> dict[str, object]:
    periodic = Periodic.of(side, PIPELINE, after=LEARNING, period_s=PERIOD_S)
    first = side.of("pipeline")[0]
    return {
        "first_s": round(first.took_s, 3),
        "first_of_at_once": round(first.took_s / at_once_s, 3),
        "pipeline": _series(side.of("pipeline")),
        "code": _series(side.of("code")),
        "periodic": {
            "calls": periodic.calls,
            "cold_starts": periodic.cold_starts,
            "cold_s": round(periodic.cold_s, 3),
            "slowest_s": round(periodic.slowest_s, 3),
            "held_gpu_s": round(periodic.held_s, 3),
            "idle_gpu_s": round(periodic.idle_s, 3),
            "always_gpu_s": periodic.always_s,
            "share": round(periodic.share, 3),
        },
        "waited_s": round(sum(call.took_s for call in side.calls), 2),
        "cold_starts": sum(call.cold_starts for call in side.calls),
        "held_gpu_s": round(_held_s(side), 2),
        "saved_s": None if side.saved_s is None else round(side.saved_s, 2),
        "starts": side.starts,
    }


def _series(calls: Sequence[Called]) -> dict[str, list[float]]:
    return {
        "took_s": [round(call.took_s, 3) for call in calls],
        "cold_starts": [call.cold_starts for call in calls],
        "cold_s": [round(call.cold_s, 3) for call in calls],
    }


def _held_s(side: Side) -> float:
    return side.held_s((*PIPELINE, *CODE), side.calls[0].at, side.ended)


def _drawn(side: Side, scene: Scene, algorithm: str, columns: int) -> str:
    return "".join(_SIGNS[state] for state in states(side, scene, algorithm, columns))


def _both(values: "Iterator[str] | map[str]") -> tuple[str, str]:
    first, second = values
    return first, second


def _call(call: Called) -> str:
    return f"{_seconds(call.took_s)} ({call.cold_starts})"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.5 else f"{value * 1000:.0f} ms" if value else "0"
