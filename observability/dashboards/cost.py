"""What each caller uses."""

from typing import Final

from dashboards.panels import bars, board, lines, number, table, variable
from dashboards.queries import Json, or_zero, over_range, rates

_CHOSEN: Final = '{caller=~"$caller"}'
_GPU, _HELD = "algomesh_gpu_seconds_total", "algomesh_gpu_held_seconds_total"
_COMPUTED, _CALLS = "algomesh_compute_seconds_total", "algomesh_calls_total"
_RANGE: Final = "Over the range of the dashboard."


def make() -> Json:
    """The dashboard."""
    return board(
        "algomesh-cost",
        "Cost per caller",
        "GPU-seconds, time of user code and calls, by who called.",
        [
            ("Over the range", 4, _figures()),
            ("Callers", 10, _callers()),
            ("Over time", 8, _courses()),
            ("Who uses what", 12, [_table()]),
        ],
        variable("caller", "Caller", "label_values(algomesh_calls_total, caller)"),
    )


def _figures() -> list[Json]:
    used, held = over_range(_GPU, where=_CHOSEN), over_range(_HELD)
    share = or_zero(f"{used} / {held}")
    return [
        number("GPU-seconds used", or_zero(used), "s", "Time of user code, times the GPUs that its version asks for."),
        number("GPU-seconds held", or_zero(held), "s", "For which instances had GPUs, idle or not."),
        number("Use of what is held", share, "percentunit", "The rest is warmth."),
        number("User code", over_range(_COMPUTED, where=_CHOSEN), "s", "Time of user code, GPU or not."),
        number("Calls", over_range(_CALLS, where=_CHOSEN), "short", "Calls that ended."),
    ]


def _callers() -> list[Json]:
    shown = (
        (_GPU, "GPU-seconds by caller", "s"),
        (_COMPUTED, "User code by caller", "s"),
        (_CALLS, "Calls by caller", "short"),
    )
    return [
        bars(title, over_range(metric, "caller", _CHOSEN), "{{caller}}", unit, _RANGE) for metric, title, unit in shown
    ]


def _courses() -> list[Json]:
    gpus = rates(_GPU, "caller", _CHOSEN)
    errors = rates(_CALLS, "caller, code", '{caller=~"$caller", code!="ok"}')
    return [
        lines("GPUs by caller", gpus, "short", "GPU-seconds a second.", is_stacked=True),
        lines("Errors by caller", errors, "reqps", "Calls that did not end well."),
    ]


def _table() -> Json:
    columns = (
        ("GPU-seconds", _GPU, "s"),
        ("User code", _COMPUTED, "s"),
        ("Calls", _CALLS, "short"),
        ("Cold calls", "algomesh_cold_calls_total", "short"),
    )
    return table(
        "By caller and algorithm",
        [(heading, over_range(metric, "caller, algorithm", _CHOSEN), unit) for heading, metric, unit in columns],
        f"{_RANGE} Who is beyond the first hundred callers counts as other.",
    )
