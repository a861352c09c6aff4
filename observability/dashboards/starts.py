"""Cold starts, and what the pre-warmer does about them."""

from typing import Final

from dashboards.panels import board, heatmap, lines, number, variable
from dashboards.queries import Json, growths, mean_phases, or_zero, over_range, quantiles, query, rate, rates

_CHOSEN: Final = '{algorithm=~"$algorithm"}'
_AHEAD: Final = "algomesh_prewarm_starts_total"


def make() -> Json:
    """The dashboard."""
    return board(
        "algomesh-starts",
        "Cold starts and pre-warming",
        "How often calls wait for a start, how long, and what starting ahead of them saves and wastes.",
        [
            ("Over the range", 4, _figures()),
            ("Cold starts", 8, _cold_starts()),
            ("How long starts take", 9, _durations()),
            ("Pre-warming", 8, _prewarming()),
            ("What it costs", 8, _costs()),
        ],
        variable("algorithm", "Algorithm", "label_values(algomesh_calls_total, algorithm)"),
    )


def _figures() -> list[Json]:
    calls = over_range("algomesh_calls_total", where=_CHOSEN)
    cold = f"{over_range('algomesh_cold_calls_total', where=_CHOSEN)} / {calls}"
    ahead = over_range(_AHEAD, where=_CHOSEN)
    in_time, unused = (
        or_zero(over_range(_AHEAD, where=f'{{algorithm=~"$algorithm", outcome="{outcome}"}}') + f" / {ahead}")
        for outcome in ("in_time", "unused")
    )
    spared = or_zero(over_range("algomesh_prewarm_spared_seconds_total", where=_CHOSEN))
    wasted = or_zero(over_range("algomesh_prewarm_wasted_gpu_seconds_total", where=_CHOSEN))
    return [
        number("Cold share", cold, "percentunit", "Calls that waited for a cold start.", warn=0.05, bad=0.2),
        number("Started ahead", or_zero(ahead), "short", "Instances started before a call came."),
        number("Ready in time", in_time, "percentunit", "Of those, ready when their first call came."),
        number("Never used", unused, "percentunit", "Of those, gone without a call.", warn=0.3, bad=0.6),
        number("Waiting spared", spared, "s", "What calls would have waited without the pre-warmer."),
        number("GPU-seconds wasted", wasted, "s", "Held by instances that were started ahead and never used."),
    ]


def _cold_starts() -> list[Json]:
    calls = rate("algomesh_calls_total", "algorithm", _CHOSEN)
    share = query(f"{rate('algomesh_cold_calls_total', 'algorithm', _CHOSEN)} / {calls}", "{{algorithm}}")
    reasons = rates("algomesh_cold_start_seconds_count", "reason", _CHOSEN)
    failed = growths("algomesh_start_failures_total", "algorithm, code", _CHOSEN)
    what = "call: one waited; next, stage, gap: started ahead; minimum: min_instances."
    return [
        lines("Cold share", [share], "percentunit", "Of each algorithm's calls."),
        lines("Starts by reason", reasons, "cps", what, is_stacked=True),
        lines("Failed starts", failed, "short", "Instances that died before they were ready."),
    ]


def _durations() -> list[Json]:
    took = quantiles("algomesh_cold_start_seconds", "algorithm", _CHOSEN, at=(0.5, 0.95))
    phases = "The mean of each part: files, fork, import, load, connect."
    return [
        heatmap("Start time", "algomesh_cold_start_seconds", _CHOSEN, "From launch to ready. A diamond is one start."),
        lines("Start time by algorithm", took, "s", "From launch to ready."),
        lines("Where a start goes", mean_phases(_CHOSEN), "s", phases, is_stacked=True),
    ]


def _prewarming() -> list[Json]:
    outcomes = growths(_AHEAD, "outcome", _CHOSEN)
    seconds = rates("algomesh_prewarm_spared_seconds_total", "reason", _CHOSEN)
    calls = rates("algomesh_prewarm_spared_calls_total", "algorithm", _CHOSEN)
    what = "in_time: ready before its call; late: called while it loaded; unused: never called."
    return [
        lines("Started ahead, by outcome", outcomes, "short", what, is_stacked=True),
        lines("Waiting spared", seconds, "s", "Seconds of waiting, a second, by what spared them.", is_stacked=True),
        lines("Calls spared a wait", calls, "reqps", "Calls that met an instance which would not have been there."),
    ]


def _costs() -> list[Json]:
    held = rates("algomesh_gpu_held_seconds_total", "state", _CHOSEN)
    wasted = rates("algomesh_prewarm_wasted_gpu_seconds_total", "algorithm", _CHOSEN)
    itself = [
        query("sum(algomesh_prewarm_holds)", "holds"),
        query("min(algomesh_prewarm_followed_ratio)", "share of requests followed"),
    ]
    decisions = quantiles("algomesh_prewarm_decision_seconds", at=(0.5, 0.99))
    return [
        lines("GPUs held", held, "short", "By what their instances do; idle is what warmth costs.", is_stacked=True),
        lines("GPU-seconds wasted", wasted, "s", "Of instances started ahead and never used, a second."),
        lines("The pre-warmer itself", itself, "short", "How many wishes it has, and how much it looks at."),
        lines("Time to decide", decisions, "s", "From a message to holds."),
    ]
