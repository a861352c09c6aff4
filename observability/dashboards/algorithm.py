"""One algorithm and its versions."""

from typing import Final

from dashboards.panels import board, heatmap, lines, number, variable
from dashboards.queries import Json, growths, mean_phases, or_zero, quantile, quantiles, query, rate, rates

_CHOSEN: Final = '{algorithm=~"$algorithm", version=~"$version"}'
_FAILED: Final = '{algorithm=~"$algorithm", version=~"$version", code!="ok"}'
_CALLS: Final = rate("algomesh_calls_total", where=_CHOSEN)


def make() -> Json:
    """The dashboard."""
    return board(
        "algomesh-algorithm",
        "One algorithm",
        "Calls, errors, latency, instances and starts of one algorithm.",
        [
            ("Now", 4, _now()),
            ("Calls", 8, _calls()),
            ("Latency", 9, _latency()),
            ("Instances", 8, _instances()),
            ("Starts", 8, _starts()),
        ],
        variable("algorithm", "Algorithm", "label_values(algomesh_calls_total, algorithm)", takes_all=False),
        variable("version", "Version", 'label_values(algomesh_calls_total{algorithm=~"$algorithm"}, version)'),
    )


def _now() -> list[Json]:
    failing = f"({or_zero(rate('algomesh_calls_total', where=_FAILED))}) / {_CALLS}"
    cold = f"{rate('algomesh_cold_calls_total', where=_CHOSEN)} / {_CALLS}"
    gpus = or_zero(rate("algomesh_gpu_seconds_total", where=_CHOSEN))
    return [
        number("Calls", _CALLS, "reqps", "Calls that end, a second."),
        number("Error share", failing, "percentunit", "Of all calls.", warn=0.01, bad=0.05),
        number("Latency p95", quantile(0.95, "algomesh_call_seconds", where=_CHOSEN), "s", "From call to end."),
        number("Cold share", cold, "percentunit", "Calls that waited for a cold start.", warn=0.05, bad=0.2),
        number("In flight", or_zero(f"sum(algomesh_runs_in_flight{_CHOSEN})"), "short", "Runs under way."),
        number("GPUs in use", gpus, "short", "GPU-seconds of its runs, a second."),
    ]


def _calls() -> list[Json]:
    callers = query(f"topk(10, {rate('algomesh_calls_total', 'caller', _CHOSEN)})", "{{caller}}")
    versions, errors = rates("algomesh_calls_total", "version", _CHOSEN), rates("algomesh_calls_total", "code", _FAILED)
    return [
        lines("Calls by version", versions, "reqps", "Side by side while an alias shares them out.", is_stacked=True),
        lines("Errors by code", errors, "reqps", "Calls that did not end well, by why.", is_stacked=True),
        lines("Calls by caller", [callers], "reqps", "Keys (k~…) and algorithms (owner~name).", is_stacked=True),
    ]


def _latency() -> list[Json]:
    took = quantiles("algomesh_call_seconds", "version", _CHOSEN, at=(0.5, 0.99))
    queued = quantiles("algomesh_queue_seconds", "version", _CHOSEN, at=(0.5, 0.99))
    return [
        heatmap("Call latency", "algomesh_call_seconds", _CHOSEN, "A diamond is one call: click it for its trace."),
        lines("Call latency by version", took, "s", "From call to end."),
        lines("Queue wait by version", queued, "s", "Waiting for a start or a slot."),
    ]


def _instances() -> list[Json]:
    states = query(f"sum by (state) (algomesh_instances{_CHOSEN})", "{{state}}")
    parked = query(f"max by (version) (algomesh_parked_calls{_CHOSEN})", "{{version}}")
    ends = growths("algomesh_instance_deaths_total", "reason", _CHOSEN)
    return [
        lines("Instances by state", [states], "short", "None: it uses no memory and no GPU.", is_stacked=True),
        lines("Parked calls", [parked], "short", "Calls that wait for an instance."),
        lines("Instances that ended", ends, "short", "By why; retired is as it should be."),
    ]


def _starts() -> list[Json]:
    took = quantiles("algomesh_cold_start_seconds", "reason", _CHOSEN, at=(0.5, 0.95))
    held = rates("algomesh_gpu_held_seconds_total", "state", _CHOSEN)
    return [
        lines("Start time by reason", took, "s", "From launch to ready. A diamond is one start."),
        lines("Where a start goes", mean_phases(_CHOSEN), "s", "The mean of each part of a start.", is_stacked=True),
        lines("GPUs held", held, "short", "By what the instances that have them do.", is_stacked=True),
    ]
