"""The demo's picture, by matplotlib: a timeline for each service, without the pre-warmer above, with it below."""

from pathlib import Path
from typing import Any, Final

from algomesh_services.demo_prewarm.figures import Called, Periodic, Side
from algomesh_services.demo_prewarm.timeline import Scene, State, scenes, spans
from algomesh_services.demo_prewarm.workload import LEARNING, PERIOD_S, PIPELINE

_COLOURS: Final[dict[State, str]] = {"loading": "#e8a33d", "idle": "#b9c9d8", "busy": "#1f5f8b"}
_WIDTHS: Final = (1.0, 1.0, 1.0, 1.9)
_BAR: Final = 0.62
_INK, _PALE, _BAD, _GOOD = "#222222", "#8a8a8a", "#b03a2e", "#2e7d4f"
_DPI: Final = 130
_LEAST_PX: Final = 3.0


def draw(file: Path, without: Side, ahead: Side, *, at_once_s: float) -> None:
    """Write the PNG. Raises OSError, ImportError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(17.0, 7.6), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    grid: Any = figure.add_gridspec(
        2, len(_WIDTHS), width_ratios=_WIDTHS, left=0.075, right=0.985, top=0.77, bottom=0.07, wspace=0.34, hspace=0.42
    )
    for row, side in enumerate((without, ahead)):
        for column, scene in enumerate(scenes(side)):
            _draw_scene(figure.add_subplot(grid[row, column]), side, scene, is_top=row == 0)
        word = "without the pre-warmer" if row == 0 else "with the pre-warmer"
        figure.text(0.012, 0.6 - 0.4 * row, word, rotation=90, va="center", weight="bold", size=12, color=_INK)
    figure.text(0.012, 0.965, "Four cold services in a row", size=17, weight="bold", va="top", color=_INK)
    figure.text(0.012, 0.915, _summary(without, ahead, at_once_s), size=11, va="top", color=_INK, linespacing=1.4)
    handles = [Patch(color=colour, label=state) for state, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="upper right", ncol=3, frameon=False, bbox_to_anchor=(0.99, 0.985), fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png")


def _draw_scene(axes: Any, side: Side, scene: Scene, *, is_top: bool) -> None:
    least_s = scene.length_s * _LEAST_PX / 400
    for row, algorithm in enumerate(scene.algorithms):
        axes.axhline(row, color="#eeeeee", lw=1, zorder=0)
        for span in spans(side, scene, algorithm):
            width = span.until_s - span.since_s
            if span.state == "busy":
                width = max(width, least_s)
            axes.barh(row, width, left=span.since_s - _zero(scene), height=_BAR, color=_COLOURS[span.state], lw=0,
                      zorder=3 if span.state == "busy" else 2)  # fmt: skip
    for call in scene.calls:
        begin = call.at - scene.since - _zero(scene)
        axes.axvline(begin, color=_INK, lw=0.9, ls=(0, (2, 2)), zorder=1)
        axes.axvspan(begin, begin + call.took_s, color=_BAD if call.cold_starts else _GOOD, alpha=0.1, lw=0, zorder=0)
    axes.set_yticks(range(len(scene.algorithms)), scene.algorithms, size=9)
    axes.set_ylim(len(scene.algorithms) - 0.45, -0.55)
    axes.set_xlim(-_zero(scene), scene.length_s - _zero(scene))
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
    axes.spines["bottom"].set_color("#cccccc")
    if is_top:
        axes.text(0, 1.14, scene.title, transform=axes.transAxes, size=12, weight="bold", color=_INK)
    axes.text(0, 1.03, _caption(scene), transform=axes.transAxes, size=10, color=_shade(scene.calls))
    axes.set_xlabel("seconds", size=9, color=_PALE)


def _zero(scene: Scene) -> float:
    """Where a scene's clock begins: at its first call."""
    return scene.calls[0].at - scene.since if scene.calls else 0.0


def _caption(scene: Scene) -> str:
    return ",  ".join(f"{_seconds(call.took_s)}, {_colds(call.cold_starts)}" for call in scene.calls)


def _shade(calls: list[Called]) -> str:
    return _BAD if any(call.cold_starts for call in calls) else _GOOD


def _summary(without: Side, ahead: Side, at_once_s: float) -> str:
    found = [Periodic.of(side, PIPELINE, after=LEARNING, period_s=PERIOD_S) for side in (without, ahead)]
    first = [side.of("pipeline")[0].took_s for side in (without, ahead)]
    return (
        f"First call of the pipeline: {first[0]:.1f} s without, {first[1]:.1f} s with; "
        f"all four started by hand at once: {at_once_s:.1f} s.\n"
        f"Called every {PERIOD_S:g} s, after {LEARNING} periods: {found[0].cold_starts} cold starts in "
        f"{found[0].calls} calls without, {found[1].cold_starts} with; GPU-seconds held: {found[0].share:.0%} and "
        f"{found[1].share:.0%} of always warm."
    )


def _colds(count: int) -> str:
    return "nothing cold" if count == 0 else f"{count} cold start{'s' if count > 1 else ''}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.5 else f"{value * 1000:.0f} ms"
