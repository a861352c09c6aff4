"""`prewarm replay`: what the runs of the last hours would have cost under other rules."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import typer

from algomesh_broker.connection import Connection
from algomesh_services.cli.output import Column, is_terminal, note, print_json, print_rows
from algomesh_services.cli.prewarm import duration, figure, share
from algomesh_services.cli.recorded_history import MOST_RUNS, KnownTraits, read_history, read_traits
from algomesh_services.cli.session import run
from algomesh_services.prewarmer.replay import AlwaysWarm, KeepAlive, Predicted, WhatIf
from algomesh_services.prewarmer.replay import replay as play
from algomesh_services.prewarmer.replay_history import Recording, record
from algomesh_services.prewarmer.simulation import Outcome

_DEFAULT_LATENCY_VALUE: Final = 5.0
_DEFAULT_KEEP_ALIVES_S: Final = (60.0, 600.0)
_LARGEST_VALUE: Final = 1e6
_HOUR_S: Final = 3_600.0


class _Unit(NamedTuple):
    """What GPU time is told in."""

    name: str
    seconds: float

    def column(self, field: str, heading: str) -> Column:
        """A column of GPU-seconds in this unit."""
        return Column(field, heading, lambda gpu_s: figure(gpu_s / self.seconds), is_number=True)


_HOURS, _SECONDS = _Unit("GPU-h", _HOUR_S), _Unit("GPU-s", 1.0)


class _History(NamedTuple):
    """What ran, and what is known of what ran. `until_s` is up to when it is known, in seconds since the epoch."""

    recording: Recording
    traits: KnownTraits
    until_s: float
    is_cut: bool


def replay(*, latency_values: Sequence[float], keep_alives: Sequence[str], since: str, as_json: bool) -> None:
    """Print what the runs of the last hours would have cost under each what-if."""
    values, what_ifs = _what_ifs(latency_values, keep_alives)
    since_s = duration("--since", since)
    with _progress() as say:
        history = run(lambda connection: _read(connection, since_s, say), needs_nats_for="prewarm replay")
        outcomes = [_play(history, what_if, say) for what_if in what_ifs if history.recording.requests]
    rows = [_row(what_if, outcome, values) for what_if, outcome in zip(what_ifs, outcomes, strict=False)]
    if as_json:
        print_json(rows)
    elif not rows:
        note(f"nothing ran in the last {since}, so there is nothing to replay; look further back with --since 168h")
    else:
        unit = _HOURS if max(row["gpu_s_held"] for row in rows) >= _HOUR_S else _SECONDS
        priced = [{**row, **{f"cost at {value}": cost for value, cost in row["costs_gpu_s"].items()}} for row in rows]
        print_rows(priced, _columns(unit, values), as_json=False, empty="")
        _explain(history, unit)


def _columns(unit: _Unit, values: Sequence[float]) -> list[Column]:
    return [
        Column("what_if", "what if"),
        unit.column("gpu_s_for_nothing", f"{unit.name} for nothing"),
        Column("added_s", "added s", figure, is_number=True),
        Column("cold_starts", "cold starts", lambda count: f"{count:,}", is_number=True),
        Column("cold_share", "of calls", share, is_number=True),
        *(unit.column(f"cost at {value:g}", f"cost at {value:g}") for value in values),
    ]


def _what_ifs(latency_values: Sequence[float], keep_alives: Sequence[str]) -> tuple[list[float], list[WhatIf]]:
    """The values to price by, and what to replay. Raises BadParameter."""
    if any(math.isnan(value) or not 0 <= value <= _LARGEST_VALUE for value in latency_values):
        raise typer.BadParameter(f"--latency-value is a number from 0 to {_LARGEST_VALUE:,.0f}")
    keep_alives_s = [duration("--keep-alive", text) for text in keep_alives]
    if not latency_values and not keep_alives:
        keep_alives_s = list(_DEFAULT_KEEP_ALIVES_S)
    values = list(dict.fromkeys(latency_values)) or [_DEFAULT_LATENCY_VALUE]
    return values, [*map(Predicted, values), *map(KeepAlive, dict.fromkeys(keep_alives_s)), AlwaysWarm()]


async def _read(connection: Connection, since_s: float, say: Callable[[str], None]) -> _History:
    until_s = time.time()
    rows = await read_history(connection, until_s - since_s, lambda count: say(f"reading what ran: {count:,} runs"))
    recording = record(rows)
    traits = await read_traits(connection, recording.cold_s, recording.versions)
    is_cut = len(rows) >= MOST_RUNS
    return _History(recording, traits, recording.end_s if is_cut else until_s, is_cut)


def _play(history: _History, what_if: WhatIf, say: Callable[[str], None]) -> Outcome:
    return play(
        history.recording,
        what_if,
        history.traits.known,
        until_s=history.until_s,
        on_progress=lambda done: say(f"replaying with {what_if}: {100 * done:.0f} %"),
    )


def _row(what_if: WhatIf, outcome: Outcome, values: Sequence[float]) -> dict[str, Any]:
    return {
        "what_if": str(what_if),
        "kind": what_if.kind,
        "value": what_if.value,
        "gpu_s_for_nothing": outcome.idle_gpu_s,
        "gpu_s_held": outcome.held_gpu_s,
        "gpu_s_busy": outcome.busy_gpu_s,
        "added_s": outcome.added_s,
        "cold_starts": outcome.cold_calls,
        "cold_share": outcome.cold_share,
        "starts": outcome.starts,
        "unused_starts": outcome.unused_starts,
        "calls": outcome.calls,
        "requests": outcome.requests,
        "costs_gpu_s": {f"{value:g}": outcome.cost_gpu_s(value) for value in values},
    }


def _explain(history: _History, unit: _Unit) -> None:
    recording = history.recording
    hours = (history.until_s - recording.begin_s) / _HOUR_S
    note(
        f"{recording.calls:,} runs of {len(recording.cold_s):,} algorithms in {len(recording.requests):,} requests "
        f"over {figure(hours)} hours; {recording.waited:,} of the runs had waited for a cold start"
    )
    note(
        f"cost at V is in {unit.name}, where a second that a caller waits is worth V seconds of a GPU; "
        "the pre-warmer begins here without having learned anything"
    )
    if history.is_cut:
        note(f"only the first {MOST_RUNS:,} runs since then were read; a shorter --since gets to the latest")
    if history.traits.unpublished:
        note(f"{history.traits.unpublished} of the algorithms are no longer published, and count as ones without a GPU")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Say what is being done, on a terminal's stderr."""
    if not is_terminal(sys.stderr):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.status import Status

    with Status("reading what ran", console=Console(stderr=True)) as status:
        yield status.update
